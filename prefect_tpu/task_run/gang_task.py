"""A Prefect task that runs as a gang."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, cast

from prefect.context import FlowRunContext
from prefect.tasks import MaterializingTask, Task
from prefect.utilities.callables import get_call_parameters

from prefect_tpu import prefect_api
from prefect_tpu.core.errors import ConfigurationError
from prefect_tpu.core.text import clean
from prefect_tpu.task_run.arguments import RunnerOptions
from prefect_tpu.task_run.cache import with_gang_shape
from prefect_tpu.task_run.checkpoint_dirs import CheckpointKey, check_checkpoint_key
from prefect_tpu.task_run.crashes import GangCrash, end_of_call
from prefect_tpu.task_run.entry import wrap
from prefect_tpu.task_run.functions import check_function
from prefect_tpu.task_run.gang_task_run import GangTaskRun
from prefect_tpu.task_run.hooks import HooksOf
from prefect_tpu.task_run.runner import ConfiguredRunner, GangRunner, runner_for
from prefect_tpu.task_run.threads import threads_for

P = ParamSpec("P")
R = TypeVar("R")
RunnerOrClass = ConfiguredRunner | type[ConfiguredRunner]
_HOOKS = ("on_completion_hooks", "on_failure_hooks", "on_running_hooks")


class GangTask(Task[P, R]):
    """A Prefect task whose function runs on every host of a gang.

    Made by `prefect_tpu.task(task_runner=...)`. States, retries, caching and results are those of any
    Prefect task; only the body of the function goes to the hosts.

    Attributes:
        body: the user's function. `fn` launches the gang when Prefect's engine calls it, and is `body`
            everywhere else.
        task_runner: how the gang runs.
        made: the task that the user has, where it is not this one: see `adopt`.
        checkpoint_key: names `checkpoint_dir` below `checkpoint_root`; None: the runner's, else an automatic name.
    """

    body: Callable[..., Any]
    task_runner: ConfiguredRunner
    checkpoint_key: CheckpointKey | None = None
    gang_run: GangTaskRun | None = None
    made: Task[..., Any] | None = None

    @classmethod
    def adopt(
        cls, task: Task[P, Any], task_runner: ConfiguredRunner, checkpoint_key: CheckpointKey | None = None
    ) -> GangTask[P, Any]:
        """`task` as a gang: what `prefect.task` has made, or what a flow with a TpuMultisliceRunner submits."""
        check_function(task.fn)
        kind = MaterializingGangTask if isinstance(task, MaterializingTask) else cls
        gang = cast("GangTask[P, Any]", kind.__new__(kind))
        prefect_api.copy_attributes(task, gang)
        gang._become_gang(task_runner, checkpoint_key)  # noqa: SLF001 - of this very class
        return gang

    def _become_gang(self, task_runner: ConfiguredRunner, checkpoint_key: CheckpointKey | None) -> None:
        if self.isgenerator:
            raise ConfigurationError(
                f"Task {self.name!r} is a generator function. A gang returns one value per host; "
                "return a list, or send values on the way with prefect_tpu.runtime.report()."
            )
        if checkpoint_key is not None:
            try:
                check_checkpoint_key(checkpoint_key)
            except ValueError as error:
                raise ConfigurationError(
                    f"task {self.name!r}, checkpoint_key={checkpoint_key!r:.200}: {error}"
                ) from None
        self.name, self.tags = clean(self.name), {clean(tag) for tag in self.tags}  # else Prefect records no run of it
        self.task_runner = task_runner
        self.checkpoint_key = checkpoint_key
        self.body = self.fn
        self.fn = cast("Callable[P, R]", wrap(self.body))

    def for_run(self, parameters: dict[str, Any]) -> tuple[GangTask[P, R], GangTaskRun]:
        """A copy for one task run, whose retry fields its run may change, and that run.

        Args:
            parameters: by name, as the task was called with them, defaults among them.
        """
        clone = copy.copy(self)
        task_run = clone.gang_run = GangTaskRun(self.task_runner.resolve, clone, parameters, self.checkpoint_key)
        made = self.made or self
        clone.retry_condition_fn = task_run.retry_condition(made)
        for name in _HOOKS:
            setattr(clone, name, HooksOf(getattr(self, name), made))
        clone.timeout_seconds = None  # it counts from the launch of the gang, not from the queue
        if self.task_run_name:
            clone.task_run_name = cast("Any", self._run_name)
        written = copy.copy(self)
        written.fn = cast("Callable[P, R]", self.body)
        clone.cache_policy = with_gang_shape(self.cache_policy, lambda: task_run.resolved.result_shape(), written)
        return clone, task_run

    def with_options(
        self,
        *,
        task_runner: RunnerOrClass | None = None,
        checkpoint_key: CheckpointKey | None = None,
        **options: Any,
    ) -> GangTask[P, R]:
        """As `prefect.Task.with_options`; task runner and checkpoint key are kept unless others are given."""
        plain = self._plain()
        known = {*inspect.signature(Task.__init__).parameters, *inspect.signature(plain.with_options).parameters}
        known -= {"self", "fn", "task_kwargs"}
        unknown = sorted(set(options) - known)
        if unknown:
            runners = ", ".join(f"{name}=..." for name in unknown if name in RunnerOptions.__annotations__)
            way_out = f" (of a runner: task_runner=TpuMultisliceRunner({runners}))" if runners else ""
            raise TypeError(f"with_options() got unknown options {unknown}{way_out}; known: {sorted(known)}")
        merged = plain.with_options(**options)
        runner = runner_for(task_runner) if task_runner is not None else self.task_runner
        key = checkpoint_key if checkpoint_key is not None else self.checkpoint_key
        gang = GangTask.adopt(merged, runner, key)
        prefect_api.keep_binding(self.fn, gang.fn)
        return cast("GangTask[P, R]", gang)

    def _run_name(self, parameters: dict[str, Any]) -> Any:
        """What `task_run_name` makes of the parameters, clean: Prefect would record nothing of the run otherwise."""
        given: Any = self.task_run_name
        if isinstance(given, str):
            return clean(given.format(**parameters))
        takes = {"parameters": parameters} if "parameters" in inspect.signature(given).parameters else {}
        name = given(**takes)
        return clean(name) if isinstance(name, str) else name

    def _plain(self) -> Task[..., Any]:
        """The same task without a gang."""
        return Task(fn=self.body, **self._options())

    def _options(self) -> dict[str, Any]:
        names = (name for name in inspect.signature(Task.__init__).parameters if name not in ("self", "fn"))
        return {name: getattr(self, prefect_api.TASK_ATTRIBUTES.get(name, name)) for name in names}

    # -- the three ways to run it; to type checkers they are those of prefect.Task

    if not TYPE_CHECKING:

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            """Run the gang and return its result; a coroutine for an async function."""
            clone, task_run = self.for_run(get_call_parameters(self.fn, args, _without_engines(kwargs)))
            call = functools.partial(Task.__call__, clone, *args, **kwargs)
            return_state = bool(kwargs.get("return_state"))
            if self.isasync:
                return _finish(call, task_run, return_state=return_state)
            try:
                return call()
            except GangCrash as crash:
                return end_of_call(crash, return_state=return_state)
            finally:
                task_run.close()

        def submit(self, *args: Any, return_state: bool = False, wait_for: Any = None, **kwargs: Any) -> Any:
            """Run the gang on a thread of its own, in a flow or outside; see `prefect.Task.submit`."""
            parameters = get_call_parameters(self.fn, args, kwargs)
            runner = _threads()
            future = runner.submit(self, parameters, wait_for)
            if return_state:
                future.wait()
                return future.state
            return future

        def map(
            self,
            *args: Any,
            return_state: bool = False,
            wait_for: Any = None,
            deferred: bool = False,
            **kwargs: Any,
        ) -> Any:
            """One gang per element; see `prefect.Task.map`."""
            if deferred:
                raise self._no_background("map(deferred=True)")
            parameters = get_call_parameters(self.fn, args, kwargs, apply_defaults=False)
            futures = _threads().map(self, parameters, wait_for)
            if return_state:
                for future in futures:
                    future.wait()
                return [future.state for future in futures]
            return futures

        def apply_async(self, *_args: Any, **_kwargs: Any) -> Any:
            """Refused: a task worker would have to own slices for as long as it lives."""
            raise self._no_background("delay() and apply_async()")

        def serve(self) -> Any:
            """Refused, as `apply_async`."""
            raise self._no_background("serve()")

        async def aserve(self) -> Any:
            """Refused, as `apply_async`."""
            raise self._no_background("aserve()")

    def _no_background(self, what: str) -> ConfigurationError:
        return ConfigurationError(
            f"{what} of gang task {self.name!r}: background task runs cannot be gangs. Call it, or use .submit() or "
            ".map(); to run it elsewhere or later, deploy a flow that calls it."
        )


class MaterializingGangTask(GangTask[P, R], MaterializingTask[P, R]):  # type: ignore[misc]
    """A gang that materializes assets: once for the gang, not once for each host."""

    def _plain(self) -> Task[..., Any]:
        return MaterializingTask(
            fn=self.body, assets=self.assets, materialized_by=self.materialized_by, **self._options()
        )


def _without_engines(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Keyword arguments of a call that are the function's."""
    return {name: value for name, value in kwargs.items() if name not in ("return_state", "wait_for")}


async def _finish(call: Callable[[], Coroutine[Any, Any, Any]], task_run: GangTaskRun, *, return_state: bool) -> Any:
    try:
        return await call()
    except GangCrash as crash:
        return end_of_call(crash, return_state=return_state)
    finally:
        task_run.close()


def _threads() -> GangRunner:
    prefect_api.refuse_visualization("`submit` and `map` are not supported by `flow.visualize()`")
    return threads_for(FlowRunContext.get())
