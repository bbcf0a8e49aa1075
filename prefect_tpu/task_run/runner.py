"""The threads that task runs of gangs run on, and their futures."""

from __future__ import annotations

import concurrent.futures
import threading
import weakref
from typing import TYPE_CHECKING, Any, Protocol, cast

from prefect.client.schemas.objects import State
from prefect.futures import PrefectConcurrentFuture
from prefect.task_runners import ThreadPoolTaskRunner

from prefect_tpu import prefect_api
from prefect_tpu.core.errors import ConfigurationError
from prefect_tpu.observability.observer import settle
from prefect_tpu.task_run.crashes import end_of_future

if TYPE_CHECKING:
    from collections.abc import Iterable
    from uuid import UUID

    from prefect.client.schemas.objects import RunInput
    from prefect.futures import PrefectFuture
    from prefect.tasks import Task

    from prefect_tpu.task_run.gang_task_run import GangTaskRun
    from prefect_tpu.task_run.resolve import Resolved


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


class ConfiguredRunner(Protocol):
    """Knows how its gangs are made: a TpuMultisliceRunner."""

    def resolve(self) -> Resolved:
        """With everything filled in, as pool and settings are now."""


class Launchable(Protocol):
    """A task that makes a copy of itself for each task run, and what runs it."""

    def for_run(self, parameters: dict[str, Any]) -> tuple[Task[Any, Any], GangTaskRun]:
        """For one task run, called with these."""


class GangRunner(ThreadPoolTaskRunner[Any]):
    """Threads on which gang tasks run; the tasks bring how their gangs are made."""

    def __init__(self, max_workers: int | None = None) -> None:
        super().__init__(max_workers=max_workers)
        self._task_runs_lock = threading.Lock()
        self._task_runs: weakref.WeakSet[GangTaskRun] = weakref.WeakSet()

    def submit(
        self,
        task: Task[Any, Any],
        parameters: dict[str, Any],
        wait_for: Iterable[PrefectFuture[Any]] | None = None,
        dependencies: dict[str, set[RunInput]] | None = None,
    ) -> GangFuture:
        """Start a task run of a gang task on a thread of this runner; see `prefect.Task.submit`."""
        clone, task_run = cast("Launchable", task).for_run(parameters)
        future = super().submit(clone, parameters, wait_for, dependencies)
        with self._task_runs_lock:
            self._task_runs.add(task_run)
        future.wrapped_future.add_done_callback(lambda _: task_run.close())
        return GangFuture(future.task_run_id, end_of_future(future.wrapped_future))

    def cancel_all(self) -> None:
        """End every gang that this runner started: SIGTERM, grace period, SIGKILL; leases are released."""
        with self._task_runs_lock:
            task_runs = list(self._task_runs)
        for task_run in task_runs:
            task_run.cancel()
        super().cancel_all()

    def join(self) -> None:
        """Wait for every gang that this runner started."""
        prefect_api.join_threads(self)

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
            if exc_type is not None:
                settle()


def runner_for(given: Any) -> ConfiguredRunner:
    """The runner that a user gave as an instance or as the class."""
    made = given() if isinstance(given, type) and issubclass(given, GangRunner) else given
    if isinstance(made, GangRunner) and hasattr(made, "resolve"):
        return cast("ConfiguredRunner", made)
    raise ConfigurationError(
        f"task_runner must be a TpuMultisliceRunner (class or instance), not {given!r}. For a flow's own "
        "task runner use @flow(task_runner=...)."
    )
