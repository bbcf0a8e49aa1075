"""`prefect_tpu.task`: Prefect's `task` with one argument more."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, Protocol, overload

import prefect
from prefect.assets import Asset
from prefect.assets import materialize as prefect_materialize
from prefect.tasks import MaterializingTask, Task, TaskOptions
from typing_extensions import Unpack

from prefect_tpu.core.errors import ConfigurationError
from prefect_tpu.task_run.checkpoint_dirs import CheckpointKey
from prefect_tpu.task_run.functions import check_function
from prefect_tpu.task_run.gang_task import GangTask, P, R, RunnerOrClass
from prefect_tpu.task_run.runner import runner_for
from prefect_tpu.task_runners import Flat, Nested, Process0, TpuMultisliceRunner


class FlatDecorator(Protocol):
    """What `task(task_runner=TpuMultisliceRunner())` returns, to type checkers: results are a list."""

    @overload
    def __call__(  # type: ignore[overload-overlap]
        self, fn: Callable[P, Coroutine[Any, Any, R]], /
    ) -> GangTask[P, Coroutine[Any, Any, list[R]]]: ...
    @overload
    def __call__(self, fn: Callable[P, R], /) -> GangTask[P, list[R]]: ...


class NestedDecorator(Protocol):
    """What `task(task_runner=TpuMultisliceRunner(flatten=False))` returns: a list per slice."""

    @overload
    def __call__(  # type: ignore[overload-overlap]
        self, fn: Callable[P, Coroutine[Any, Any, R]], /
    ) -> GangTask[P, Coroutine[Any, Any, list[list[R]]]]: ...
    @overload
    def __call__(self, fn: Callable[P, R], /) -> GangTask[P, list[list[R]]]: ...


class Process0Decorator(Protocol):
    """What `task(task_runner=TpuMultisliceRunner(returns="process0"))` returns: the function's own type."""

    def __call__(self, fn: Callable[P, R], /) -> GangTask[P, R]: ...


@overload
def task(fn: Callable[P, R], /) -> Task[P, R]: ...
@overload
def task(*, task_runner: None = None, **options: Unpack[TaskOptions]) -> Callable[[Callable[P, R]], Task[P, R]]: ...
@overload
def task(
    *,
    task_runner: TpuMultisliceRunner[Flat] | type[TpuMultisliceRunner[Any]],
    checkpoint_key: CheckpointKey | None = None,
    **options: Unpack[TaskOptions],
) -> FlatDecorator: ...
@overload
def task(
    *,
    task_runner: TpuMultisliceRunner[Nested],
    checkpoint_key: CheckpointKey | None = None,
    **options: Unpack[TaskOptions],
) -> NestedDecorator: ...
@overload
def task(
    *,
    task_runner: TpuMultisliceRunner[Process0],
    checkpoint_key: CheckpointKey | None = None,
    **options: Unpack[TaskOptions],
) -> Process0Decorator: ...


def task(
    fn: Callable[..., Any] | None = None,
    /,
    *,
    task_runner: RunnerOrClass | None = None,
    checkpoint_key: CheckpointKey | None = None,
    **options: Any,
) -> Any:
    """Prefect's `task`, with `task_runner=` for functions that run on every host of TPU slices.

    Without `task_runner` it is exactly `prefect.task`.

    Args:
        fn: the function, when used as a bare decorator.
        task_runner: a TpuMultisliceRunner, or the class itself for its defaults.
        checkpoint_key: the name of `runtime.current().checkpoint_dir` below `checkpoint_root`, or a function of
            (context, parameters) that returns it, as Prefect's `cache_key_fn`; whoever has the same goes on from there.
            None: the runner's, else a name by flow run, task and parameters.
        **options: every argument of `prefect.task`.

    Returns:
        A `prefect.Task`, or a decorator that makes one. With a task runner the task's result is one value
        per host in process-id order (`flatten=True`), one list per slice (`flatten=False`), or the value of
        process 0 (`returns="process0"`).

    Raises:
        ConfigurationError: a generator function, what is no plain function (a class, a task of Ray), a `task_runner`
            that is not a TpuMultisliceRunner, or a `checkpoint_key` that cannot be.
    """
    if task_runner is None:
        _needs_runner(checkpoint_key)
        return prefect.task(fn, **options) if fn is not None else prefect.task(**options)
    runner = runner_for(task_runner)

    options = {"log_prints": None} | options  # as prefect.task has it: the flow's; to its class it is False

    def decorate(function: Callable[P, R]) -> GangTask[P, R]:
        check_function(function)
        return GangTask.adopt(Task(fn=function, **options), runner, checkpoint_key)

    return decorate(fn) if fn is not None else decorate


@overload
def materialize(
    *assets: str | Asset, by: str | None = None, task_runner: None = None, **options: Unpack[TaskOptions]
) -> Callable[[Callable[P, R]], MaterializingTask[P, R]]: ...
@overload
def materialize(
    *assets: str | Asset,
    by: str | None = None,
    task_runner: TpuMultisliceRunner[Flat] | type[TpuMultisliceRunner[Any]],
    checkpoint_key: CheckpointKey | None = None,
    **options: Unpack[TaskOptions],
) -> FlatDecorator: ...
@overload
def materialize(
    *assets: str | Asset,
    by: str | None = None,
    task_runner: TpuMultisliceRunner[Nested],
    checkpoint_key: CheckpointKey | None = None,
    **options: Unpack[TaskOptions],
) -> NestedDecorator: ...
@overload
def materialize(
    *assets: str | Asset,
    by: str | None = None,
    task_runner: TpuMultisliceRunner[Process0],
    checkpoint_key: CheckpointKey | None = None,
    **options: Unpack[TaskOptions],
) -> Process0Decorator: ...


def materialize(
    *assets: str | Asset,
    by: str | None = None,
    task_runner: RunnerOrClass | None = None,
    checkpoint_key: CheckpointKey | None = None,
    **options: Any,
) -> Any:
    """Prefect's `materialize`, with `task_runner=` for functions that run on every host of TPU slices.

    Without `task_runner` it is exactly `prefect.assets.materialize`. A gang materializes its assets once,
    when all of its hosts have returned.

    Args:
        *assets: what the task makes, at least one.
        by: the tool that does it, shown in the lineage.
        task_runner: a TpuMultisliceRunner, or the class itself for its defaults.
        checkpoint_key: the name of `runtime.current().checkpoint_dir` below `checkpoint_root`, or a function of
            (context, parameters) that returns it, as Prefect's `cache_key_fn`; whoever has the same goes on from there.
            None: the runner's, else a name by flow run, task and parameters.
        **options: every argument of `prefect.task`.

    Returns:
        A decorator; results have the same shapes as those of `prefect_tpu.task`.

    Raises:
        TypeError: no asset.
        ConfigurationError: a generator function, what is no plain function (a class, a task of Ray), a `task_runner`
            that is not a TpuMultisliceRunner, or a `checkpoint_key` that cannot be.
    """
    plain = prefect_materialize(*assets, by=by, **options)
    if task_runner is None:
        _needs_runner(checkpoint_key)
        return plain
    runner = runner_for(task_runner)

    def decorate(fn: Callable[..., Any]) -> GangTask[..., Any]:
        check_function(fn)
        return GangTask.adopt(plain(fn), runner, checkpoint_key)

    return decorate


def _needs_runner(checkpoint_key: CheckpointKey | None) -> None:
    if checkpoint_key is not None:
        raise ConfigurationError(
            f"checkpoint_key={checkpoint_key!r:.200} without task_runner=: only gangs have a checkpoint_dir. Where the "
            "flow's task runner makes gangs of tasks, set it there: TpuMultisliceRunner(checkpoint_key=...)"
        )
