"""`TpuMultisliceRunner`: where a gang runs, and how."""

from __future__ import annotations

import concurrent.futures
import logging
import threading
import weakref
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Literal, overload

from prefect.client.schemas.objects import RunInput, State
from prefect.futures import PrefectConcurrentFuture, PrefectFuture
from prefect.settings import get_current_settings
from prefect.task_runners import ThreadPoolTaskRunner
from prefect.tasks import Task
from typing_extensions import TypeVar, Unpack

from prefect_tpu.cluster.fleet import Fleet, LocalFleet, RayFleet
from prefect_tpu.cluster.plan import GangPlan
from prefect_tpu.core.errors import ConfigurationError
from prefect_tpu.core.host import DeviceCheck
from prefect_tpu.core.retry import Limits
from prefect_tpu.runner_options import RunnerOptions, check_options
from prefect_tpu.settings import current_settings

if TYPE_CHECKING:
    from typing import Self
    from uuid import UUID

    from prefect_tpu.launcher import GangLaunch
    from prefect_tpu.logs import Logger

log = logging.getLogger("prefect_tpu.task_runners")

DEFAULT_PRELOAD = ("jax", "numpy", "cloudpickle")


class Flat:
    """Marks a runner whose results are one value per host (types only)."""


class Nested:
    """Marks a runner whose results are one list per slice (types only)."""


class Process0:
    """Marks a runner whose result is process 0's (types only)."""


Shape = TypeVar("Shape", default=Flat)


class GangFuture(PrefectConcurrentFuture[Any]):
    """A future of a gang's task run. Unlike Prefect's own it pickles: it waits, and takes its end along."""

    def __reduce__(self) -> tuple[Any, ...]:
        concurrent.futures.wait([self.wrapped_future])
        try:
            state, error = self.wrapped_future.result(), None
        except BaseException as crash:  # noqa: BLE001 - what a crashed task run has in place of a state
            state, error = None, crash
        return _finished_future, (self.task_run_id, state, error)


def _finished_future(task_run_id: UUID, state: State[Any] | None, error: BaseException | None) -> GangFuture:
    done: concurrent.futures.Future[Any] = concurrent.futures.Future()
    if error is not None:
        done.set_exception(error)
    else:
        done.set_result(state)
    return GangFuture(task_run_id, done)


class TpuMultisliceRunner(ThreadPoolTaskRunner[Any], Generic[Shape]):
    """Runs a task on every host of one or more TPU slices, as one gang.

    Give it to one task, `@task(task_runner=TpuMultisliceRunner(num_slices=2))`, or to a flow, where every
    submitted task becomes a gang. It is a value: making, copying, comparing and entering it reserves
    nothing. Arguments that are None come from the pool, and then from the settings
    `PREFECT_INTEGRATIONS_TPU_*`. Times are in seconds.

    Args:
        pool: the fleet that the slices come from: LocalFleet(...) or RayFleet(...). None: the Ray cluster
            of the setting `ray_address`, else simulated slices on this machine's CPU, with a warning.
        num_slices: slices of one gang.
        accelerator_type: "v4", "v5e", "v5p", "v6e", ...; see `ray.util.tpu` for the list.
        topology: chips of one slice, "2x2x2" or "4x4".
        chips_per_host: only where a host has another number of chips than its type's default.
        flatten: True: results are one flat list in process-id order; False: one list per slice.
        returns: "all" hosts' values, or only those of "process0".
        env: variables of the host processes. They are there before anything is imported.
        preload: modules imported ahead on every host, once, so that attempts start without that cost.
        jax_distributed: "auto" calls `jax.distributed.initialize` when there is more than one host process
            and jax is in `preload`; True always; False never.
        resumable: False: one attempt only, no retry for any cause.
        max_preemptions: attempts that may be lost to preemption; None is unlimited.
        max_infrastructure_failures: attempts that may be lost to hosts that vanish.
        max_preemptions_without_progress: preemptions in a row in which `runtime.report` saw no new step.
        preemptible: the slices can be taken away one host at a time, so a host that vanishes was preempted.
        warm_spares: so many free slices get agents ahead, unreserved, to take a lost one's place at once;
            None is one for simulated slices and none for others.
        hang_timeout_seconds: without a new `runtime.report` for so long (after the first) the attempt is
            ended as hung; None is the setting's value, off by default.
        checkpoint_root: directory (or fsspec URL) that every host sees, for `runtime.current().checkpoint_dir`.
        lease_timeout_seconds: how long to wait for free slices, then SliceUnavailableError.
        lease_hold_seconds: slices are given back while the task's own retry delay is longer than this.
        launch_timeout_seconds: from forked host processes to the function entered on all hosts.
        cancel_grace_seconds: between SIGTERM and SIGKILL when a gang is cancelled or times out.

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
        *,
        pool: Fleet | str | None = None,
        num_slices: int = 1,
        accelerator_type: str | None = None,
        topology: str | None = None,
        chips_per_host: int | None = None,
        flatten: bool = True,
        returns: Literal["all", "process0"] = "all",
        env: Mapping[str, str] | None = None,
        preload: Sequence[str] = DEFAULT_PRELOAD,
        jax_distributed: Literal["auto"] | bool = "auto",
        resumable: bool = True,
        max_preemptions: int | None = None,
        max_infrastructure_failures: int = 10,
        max_preemptions_without_progress: int = 20,
        preemptible: bool = False,
        warm_spares: int | None = None,
        hang_timeout_seconds: float | None = None,
        checkpoint_root: str | Path | None = None,
        lease_timeout_seconds: float | None = None,
        lease_hold_seconds: float | None = None,
        launch_timeout_seconds: float | None = None,
        cancel_grace_seconds: float | None = None,
        max_workers: int | None = None,
    ) -> None:
        self._options: dict[str, Any] = {
            "pool": pool,
            "num_slices": num_slices,
            "accelerator_type": accelerator_type,
            "topology": topology,
            "chips_per_host": chips_per_host,
            "flatten": flatten,
            "returns": returns,
            "env": env if env is not None else {},
            "preload": preload,
            "jax_distributed": jax_distributed,
            "resumable": resumable,
            "max_preemptions": max_preemptions,
            "max_infrastructure_failures": max_infrastructure_failures,
            "max_preemptions_without_progress": max_preemptions_without_progress,
            "preemptible": preemptible,
            "warm_spares": warm_spares,
            "hang_timeout_seconds": hang_timeout_seconds,
            "checkpoint_root": checkpoint_root,
            "lease_timeout_seconds": lease_timeout_seconds,
            "lease_hold_seconds": lease_hold_seconds,
            "launch_timeout_seconds": launch_timeout_seconds,
            "cancel_grace_seconds": cancel_grace_seconds,
            "max_workers": max_workers,
        }
        check_options(self._options)
        self._options |= {"env": dict(self._options["env"]), "preload": tuple(preload)}
        super().__init__(max_workers=max_workers)
        self._launches_lock = threading.Lock()
        self._launches: weakref.WeakSet[GangLaunch] = weakref.WeakSet()

    # -- a value

    def duplicate(self) -> Self:
        """A runner of the same configuration, not started."""
        return type(self)(**self._options)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, TpuMultisliceRunner):
            return NotImplemented
        return self._options == other._options

    __hash__ = None  # type: ignore[assignment]  # as Prefect's own runners: equal by value, not hashable

    def __repr__(self) -> str:
        default = TpuMultisliceRunner.__init__.__kwdefaults__ or {}
        given = ", ".join(f"{k}={v!r}" for k, v in self._options.items() if v != default.get(k) and v != {})
        return f"TpuMultisliceRunner({given})"

    def __getstate__(self) -> dict[str, Any]:
        return {"_options": self._options}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state["_options"])  # type: ignore[misc]

    @property
    def limits(self) -> Limits:
        """Budgets other than the task's own `retries`."""
        return Limits(
            max_preemptions=self._options["max_preemptions"],
            max_infrastructure_failures=self._options["max_infrastructure_failures"],
            max_preemptions_without_progress=self._options["max_preemptions_without_progress"],
            resumable=self._options["resumable"],
        )

    @property
    def lease_hold_seconds(self) -> float:
        """How long slices are kept over a retry delay."""
        return self._seconds("lease_hold_seconds")

    @property
    def cancel_grace_seconds(self) -> float:
        """Between SIGTERM and SIGKILL."""
        return self._seconds("cancel_grace_seconds")

    def _seconds(self, name: str) -> float:
        given = self._options[name]
        return float(given if given is not None else getattr(current_settings(), name))

    def _slice_kind(self) -> tuple[str, str, int | None]:
        """Accelerator type, topology and chips per host: given, else the fleet's, else the settings'."""
        pool, settings = self._options["pool"], current_settings()
        kind: list[Any] = []
        for name in ("accelerator_type", "topology", "chips_per_host"):
            value = self._options[name]
            if value is None:
                value = getattr(pool, name, None)
            kind.append(value if value is not None else getattr(settings, name, None))
        return kind[0], kind[1], kind[2]

    def result_shape(self) -> tuple[str, ...]:
        """What the shape of a result depends on; part of the cache key."""
        accelerator_type, topology, chips_per_host = self._slice_kind()
        options = self._options
        return tuple(
            str(one)
            for one in (
                options["num_slices"], accelerator_type, topology, chips_per_host,
                options["flatten"], options["returns"],
            )
        )  # fmt: skip

    def shape_results(self, results: list[Any], hosts_per_slice: int) -> Any:
        """Results in process-id order, as the task returns them."""
        if self._options["returns"] == "process0":
            return results[0]
        if self._options["flatten"]:
            return results
        return [results[i : i + hosts_per_slice] for i in range(0, len(results), hosts_per_slice)]

    def plan(self, *, timeout_seconds: float | None, checkpoint_name: str, say: Logger) -> GangPlan:
        """Everything about the gang with the defaults filled in. Connects to nothing.

        Args:
            timeout_seconds: the task's own.
            checkpoint_name: the same for every attempt, and for the same task of a retried flow run.
            say: where a warning about simulated slices goes.
        """
        options, settings = self._options, current_settings()
        accelerator_type, topology, chips_per_host = self._slice_kind()
        root = options["checkpoint_root"] or settings.checkpoint_root
        root = root or get_current_settings().home / "tpu" / "checkpoints"
        fleet = _fleet(options["pool"], say)
        simulated = isinstance(fleet, LocalFleet)
        hang_timeout = options["hang_timeout_seconds"]
        spares = options["warm_spares"]
        return GangPlan(
            fleet=fleet,
            num_slices=options["num_slices"],
            accelerator_type=accelerator_type,
            topology=topology,
            chips_per_host=chips_per_host,
            preload=options["preload"],
            env=options["env"],
            jax_distributed=options["jax_distributed"],
            process0_only=options["returns"] == "process0",
            lease_timeout_seconds=self._seconds("lease_timeout_seconds"),
            lease_linger_seconds=settings.lease_linger_seconds,
            queue_message_interval_seconds=settings.queue_message_interval_seconds,
            agent_start_timeout_seconds=settings.agent_start_timeout_seconds,
            agent_idle_release_seconds=settings.agent_idle_release_seconds,
            agent_poll_seconds=settings.agent_poll_seconds,
            launch_timeout_seconds=self._seconds("launch_timeout_seconds"),
            jax_initialization_timeout_seconds=int(settings.jax_initialization_timeout_seconds),
            failure_window_seconds=settings.failure_window_seconds,
            clear_failure_window_seconds=settings.clear_failure_window_seconds,
            heartbeat_timeout_seconds=settings.heartbeat_timeout_seconds,
            hang_timeout_seconds=settings.hang_timeout_seconds if hang_timeout is None else hang_timeout,
            hang_compile_grace_seconds=settings.hang_compile_grace_seconds,
            lease_hold_seconds=self.lease_hold_seconds,
            metadata_url=settings.metadata_url or ("" if simulated else None),
            preemptible=options["preemptible"],
            warm_spares=int(simulated) if spares is None else spares,
            cancel_grace_seconds=self.cancel_grace_seconds,
            inline_payload_bytes=settings.inline_payload_bytes,
            result_window_bytes=settings.result_window_bytes,
            timeout_seconds=timeout_seconds,
            checkpoint_dir=f"{str(root).rstrip('/')}/{checkpoint_name}",
            devices=DeviceCheck(tuple(settings.device_globs), settings.libtpu_lock_file, settings.device_wait_seconds),
            log_lines_per_second=settings.host_log_lines_per_second,
            log_burst_lines=settings.host_log_lines_per_second * settings.log_burst_seconds,
            log_level=say.getEffectiveLevel(),
        )

    # -- a task runner

    def submit(
        self,
        task: Task[Any, Any],
        parameters: dict[str, Any],
        wait_for: Iterable[PrefectFuture[Any]] | None = None,
        dependencies: dict[str, set[RunInput]] | None = None,
    ) -> GangFuture:
        """Start a task run of `task` as a gang on a thread of this runner; see `prefect.Task.submit`."""
        from prefect_tpu.tasks import GangTask

        gang = task if isinstance(task, GangTask) else GangTask.adopt(task, self)
        clone, launch = gang.for_run()
        future = super().submit(clone, parameters, wait_for, dependencies)
        with self._launches_lock:
            self._launches.add(launch)
        wrapped = future.wrapped_future
        wrapped.add_done_callback(lambda _: launch.close())
        return GangFuture(future.task_run_id, wrapped)

    def cancel_all(self) -> None:
        """End every gang that this runner started: SIGTERM, grace period, SIGKILL; leases are released."""
        with self._launches_lock:
            launches = list(self._launches)
        for launch in launches:
            launch.cancel()
        super().cancel_all()

    def join(self) -> None:
        """Wait for every gang that this runner started."""
        if self._executor is not None:
            self._executor.shutdown(wait=True)

    def __exit__(self, exc_type: Any, exc_value: Any, traceback: Any) -> None:
        """Join what still runs; if the flow ends by an exception, cancel it."""
        try:
            if exc_type is None:
                self.join()
        except BaseException:
            self.cancel_all()
            raise
        finally:
            super().__exit__(exc_type, exc_value, traceback)


def runner_for(given: Any) -> TpuMultisliceRunner[Any]:
    """The runner that a user gave as an instance or as the class."""
    if isinstance(given, type) and issubclass(given, TpuMultisliceRunner):
        return given()
    if isinstance(given, TpuMultisliceRunner):
        return given
    raise ConfigurationError(
        f"task_runner must be a TpuMultisliceRunner (class or instance), not {given!r}. For a flow's own "
        "task runner use @flow(task_runner=...)."
    )


_warned = threading.Event()


def _fleet(pool: Fleet | str | None, say: Logger) -> Fleet:
    if isinstance(pool, str):
        raise ConfigurationError(
            f"pool={pool!r}: pools saved as blocks are not built yet; pass a fleet: LocalFleet(...) or RayFleet(...)"
        )
    if pool is not None:
        return pool
    address = current_settings().ray_address
    if address:
        return RayFleet(address=address)
    if not _warned.is_set():
        _warned.set()
        say.warning(
            "No pool given and no PREFECT_INTEGRATIONS_TPU_RAY_ADDRESS set: simulated TPU slices on CPU "
            "(LocalFleet). Pass pool=RayFleet(...) to run on real ones."
        )
    return LocalFleet()
