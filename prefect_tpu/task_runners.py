"""`TpuMultisliceRunner`: where a gang runs, and how."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Generic, Literal, overload

from prefect.client.schemas.objects import RunInput
from prefect.futures import PrefectFuture
from prefect.tasks import Task
from typing_extensions import TypeVar, Unpack

from prefect_tpu.core.secrets import shown
from prefect_tpu.task_run.arguments import Given, RunnerOptions, by_name
from prefect_tpu.task_run.gang_task import GangTask
from prefect_tpu.task_run.resolve import Resolved
from prefect_tpu.task_run.runner import GangFuture, GangRunner

if TYPE_CHECKING:
    from typing import Self


class Flat:
    """Marks a runner whose results are one value per host (types only)."""


class Nested:
    """Marks a runner whose results are one list per slice (types only)."""


class Process0:
    """Marks a runner whose result is process 0's (types only)."""


Shape = TypeVar("Shape", default=Flat)


class TpuMultisliceRunner(GangRunner, Generic[Shape]):
    """Runs a task on every host of one or more TPU slices, as one gang.

    Give it to one task, `@task(task_runner=TpuMultisliceRunner(num_slices=2))`, or to a flow, where every
    submitted task becomes a gang. It is a value: making, copying, comparing and entering it reserves
    nothing. An argument that is None comes from the settings `PREFECT_INTEGRATIONS_TPU_*` if they are set, then
    from the pool, then from the settings' defaults. Times are in seconds.

    Args:
        pool: where the slices come from: a saved pool ("tpu-slice-pool/v6e-spot", loaded when the task first
            runs), a TpuSlicePool, or a fleet: LocalFleet(...), RayFleet(...). None: the setting `pool`, else the
            Ray cluster of the setting `ray_address`, else the pool saved as `default`, else simulated slices on
            this machine's CPU, with a warning.
        num_slices: slices of one gang. Several numbers, [2, 4, 8], are those that will do: the gang waits
            `size_wait_seconds` for the largest that there can be, then takes the most that are free, goes on with fewer
            after a loss, and grows again at the function's `runtime.resize_point()`.
        accelerator_type: "v4", "v5e", "v5p", "v6e", ...; see `ray.util.tpu` for the list.
        topology: chips of one slice, "2x2x2" or "4x4".
        chips_per_host: only where a host has another number of chips than its type's default.
        flatten: True: results are one flat list in process-id order; False: one list per slice.
        returns: "all" hosts' values, or only those of "process0".
        env: variables of the host processes. They are there before anything is imported.
        secret_env: secret variables of the host processes: texts or SecretStr, or "secret/NAME" for the Prefect Secret
            block that has the value, read when the task runs. Set after the modules of `preload` are imported; never
            shown, and left out of pickles but for the names of blocks.
        runtime_env: Ray's, for the host processes: pip, uv, conda, py_modules, working_dir, excludes, env_vars, config.
            Ray sets it up on each host once, before anything of ours starts there; nothing by default.
        preload: modules imported ahead on every host, once, so that attempts start without that cost. It says nothing
            else; jax is imported ahead too where `jax_distributed` is on.
        by_name: modules of the project that are installed on the hosts, with all below them: they are sent as names.
            All others of the project travel by value.
        jax_distributed: "auto" calls `jax.distributed.initialize` when there is more than one host process; True
            always; False never: then each host is alone to JAX, as `runtime.current().jax_distributed` tells.
        resumable: False: one attempt only, no retry for any cause.
        max_preemptions: attempts that may be lost to preemption; None is unlimited.
        max_infrastructure_failures: attempts that may be lost to hosts that vanish.
        max_preemptions_without_progress: preemptions in a row without a new step in `runtime.report`, or a checkpoint.
        preemptible: the slices can be taken away one host at a time, so a host that vanishes was preempted.
        warm_spares: so many free slices get agents ahead, unreserved, to take a lost one's place at once;
            None is one for simulated slices and none for others.
        hang_timeout_seconds: without a new `runtime.report` for so long (after the first) the attempt is
            ended as hung; None is the setting's value, off by default.
        drain_timeout_seconds: after a notice that has no deadline the attempt goes on for so long at most; None is the
            setting's value, without a limit by default.
        checkpoint_root: directory (or fsspec URL) that every host sees, for `runtime.current().checkpoint_dir`.
        size_wait_seconds: with several sizes: how long the largest that there can be is waited for; then it starts with
            the most that are free. Where slices are made on demand it waits until the lease deadline.
        resize_after_seconds: with several sizes: how long a replacement may take before it goes on with fewer slices.
        resize_interval_seconds: with several sizes: it grows no sooner than so long after its last start.
        lease_timeout_seconds: how long to wait for free slices, then SliceUnavailableError. Time in which only gangs of
            the same process are ahead does not count.
        lease_hold_seconds: slices are given back while the task's own retry delay is longer than this.
        launch_timeout_seconds: from forked host processes to the function entered on all hosts.
        cancel_grace_seconds: between SIGTERM and SIGKILL when a gang is cancelled or times out.
        agent_idle_release_seconds: agents that no gang uses are ended after it, so that hosts become idle.
        checkpoint_key: the name of `checkpoint_dir` below `checkpoint_root`, or a function of (context, parameters)
            that returns it, for tasks that have none of their own; None: a name by flow run, task and parameters.
        max_workers: how many of its gangs run at the same time; None is Prefect's own number.

    Raises:
        ConfigurationError: an argument of the wrong type or out of range; nothing has been started.
    """

    @overload
    def __init__(
        self: TpuMultisliceRunner[Process0],
        *,
        returns: Literal["process0"],
        flatten: bool = ...,
        **options: Unpack[RunnerOptions],
    ) -> None: ...
    @overload
    def __init__(
        self: TpuMultisliceRunner[Nested],
        *,
        flatten: Literal[False],
        returns: Literal["all"] = ...,
        **options: Unpack[RunnerOptions],
    ) -> None: ...
    @overload
    def __init__(
        self: TpuMultisliceRunner[Flat],
        *,
        flatten: Literal[True] = ...,
        returns: Literal["all"] = ...,
        **options: Unpack[RunnerOptions],
    ) -> None: ...

    def __init__(
        self,
        *values: Any,
        flatten: bool = True,
        returns: Literal["all", "process0"] = "all",
        **options: Unpack[RunnerOptions],
    ) -> None:
        if values:
            raise by_name(values)
        self._given = Given.of(flatten, returns, options)
        super().__init__(max_workers=self._given.max_workers)

    # -- a value

    def duplicate(self) -> Self:
        """A runner of the same configuration, not started."""
        return type(self)(**self._given.arguments())

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, TpuMultisliceRunner):
            return NotImplemented
        return self._given == other._given

    __hash__ = None  # type: ignore[assignment]  # as Prefect's own runners: equal by value, not hashable

    def __repr__(self) -> str:
        return f"TpuMultisliceRunner({', '.join(f'{k}={shown(v, k)}' for k, v in self._given.arguments().items())})"

    def __copy__(self) -> Self:
        return self.duplicate()

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self.duplicate()

    def __getstate__(self) -> dict[str, Any]:
        return {"_given": self._given.without_secrets()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state["_given"].arguments())  # type: ignore[misc]

    def resolve(self) -> Resolved:
        """This runner with everything filled in, as pool and settings are now."""
        return Resolved(self._given)

    # -- a task runner

    def submit(
        self,
        task: Task[Any, Any],
        parameters: dict[str, Any],
        wait_for: Iterable[PrefectFuture[Any]] | None = None,
        dependencies: dict[str, set[RunInput]] | None = None,
    ) -> GangFuture:
        """Start a task run of `task` as a gang on a thread of this runner; see `prefect.Task.submit`."""
        gang = task if isinstance(task, GangTask) else GangTask.adopt(task, self)
        gang.made = None if gang is task else task
        return super().submit(gang, parameters, wait_for, dependencies)
