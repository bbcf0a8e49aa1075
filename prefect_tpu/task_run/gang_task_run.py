"""One task run of a gang, between Prefect's engine (which retries) and the cluster (which runs)."""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextvars import copy_context
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import anyio
from prefect.client.schemas.objects import State
from prefect.context import FlowRunContext, TaskRunContext
from prefect.logging import get_run_logger

from prefect_tpu.core.errors import (
    ConfigurationError,
    GangCancelledError,
    ProvisioningError,
    SliceUnavailableError,
)
from prefect_tpu.core.kinds import KINDS, Kind
from prefect_tpu.core.report import AttemptReport
from prefect_tpu.gang.attempts import Attempts, Call, Ended
from prefect_tpu.observability import artifacts, logs, states
from prefect_tpu.observability.observer import SETTLE_SECONDS, RunObserver
from prefect_tpu.task_run.checkpoint_dirs import CheckpointDirectory, CheckpointKey
from prefect_tpu.task_run.failures import failure_of
from prefect_tpu.task_run.observing import observe
from prefect_tpu.task_run.prefect_run import RunForHosts
from prefect_tpu.task_run.resolve import Resolved
from prefect_tpu.task_run.retries import Retries, RetryFields

if TYPE_CHECKING:
    from prefect.client.schemas.objects import TaskRun

LOOK_SECONDS = 0.2
"""How often the engine's thread looks whether it is to stop, while the gang runs on a thread of its own."""


class GangTaskRun:
    """One task run of a gang task: its attempts, their ledger, and the word to stop."""

    def __init__(
        self,
        resolve: Callable[[], Resolved],
        task: RetryFields,
        parameters: Mapping[str, Any],
        checkpoint_key: CheckpointKey | None,
    ) -> None:
        """Of one call of a task.

        Args:
            resolve: says how the gang is made; asked once.
            task: of this task run alone.
            parameters: as the task was called with them.
            checkpoint_key: the task's own.
        """
        self._resolve = resolve
        self.task = task
        self.timeout_seconds = task.timeout_seconds
        self.retries = Retries(task, lambda: self.resolved.limits, lambda: self.resolved.tuning)
        self.reports: list[AttemptReport] = []
        self._checkpoints = CheckpointDirectory(task, parameters, checkpoint_key, self.cancel)
        self._number = 0
        self._running = self._flow_had_ended = False
        self._cancelled = threading.Event()
        self._attempts: Attempts | None = None
        self._observer: RunObserver | None = None
        self._prefect: RunForHosts | None = None
        self._mend: Callable[[], bool] | None = None
        self._began = (0.0, 0.0)

    @functools.cached_property
    def resolved(self) -> Resolved:
        """How the gang is made; a pool is loaded once for a task run, when it is first needed."""
        return self._resolve()

    # -- from outside

    def cancel(self) -> None:
        """End the attempt that runs; the task run ends as Prefect's own cancelled task runs do."""
        self._cancelled.set()
        if self._attempts is not None and not self._running:
            self._attempts.release()  # Prefect sleeps before the next attempt

    def close(self) -> None:
        """The task run is over: nothing stays reserved, and its future keeps no ledger alive."""
        self._cancelled.set()
        if self._attempts is not None:
            self._attempts.release()
        if self._observer is not None:
            self._observer.closed(self.reports, self.retries.budgets())
            self._observer = None
        if self._mend is not None and self._mend():
            self._mend = None  # it holds the task run's context, and with it the parameters
        self.reports, self._prefect = [], None
        self._checkpoints.leave()

    def retry_condition(self, made: Any) -> Callable[..., Any]:
        """Prefect's `retry_condition_fn` for the clone of the task `made`: our causes first, else the user's own."""
        return self.retries.condition(made, self._keep_or_release)

    def _keep_or_release(self, retry: bool) -> None:
        """A failure of the function's own is retried, or is not."""
        if retry:
            self.task.timeout_seconds = None  # see _conclude: it must not be Prefect's in the next attempt
        if self._attempts is not None and (
            not retry or self.retries.longest_delay_seconds > self.resolved.options.lease_hold_seconds
        ):
            self._attempts.release()

    # -- one attempt, on the engine's thread

    def call(self, body: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run one attempt to its end and return the gang's result."""
        future: concurrent.futures.Future[Ended] = concurrent.futures.Future()
        try:
            self._start(future, body, args, kwargs)
            while not concurrent.futures.wait([future], timeout=LOOK_SECONDS).done:
                self._look()
        except BaseException:
            # A timeout, Ctrl-C or SIGTERM can arrive at any bytecode: stop the gang, then let it through.
            self.cancel()
            if self._running:
                concurrent.futures.wait([future], timeout=self._barrier_seconds)
            self._record_interrupted(future)
            self.close()
            raise
        return self._conclude(future)

    async def call_async(self, body: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """As `call`, and the event loop never blocks."""
        future: concurrent.futures.Future[Ended] = concurrent.futures.Future()
        waiting = asyncio.wrap_future(future)
        waiting.add_done_callback(lambda done: done.cancelled() or done.exception())  # it is read from `future`
        try:
            self._start(future, body, args, kwargs)
            while not (await asyncio.wait([waiting], timeout=LOOK_SECONDS))[0]:
                self._look()
        except BaseException:
            self.cancel()
            if self._running:
                with anyio.CancelScope(shield=True):
                    await asyncio.to_thread(concurrent.futures.wait, [future], self._barrier_seconds)
            self._record_interrupted(future)
            self.close()
            raise
        return self._conclude(future)

    @property
    def _barrier_seconds(self) -> float:
        assert self._attempts is not None  # one runs
        return self._attempts.barrier_seconds + 2 * LOOK_SECONDS

    def _start(
        self,
        future: concurrent.futures.Future[Ended],
        body: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> None:
        context = TaskRunContext.get()
        assert context is not None
        self._mend = functools.partial(copy_context().run, states.mend, context.task_run)
        logs.keep_lines_clean()
        logger = get_run_logger()
        if self._attempts is None:
            try:
                resolved = self.resolved
                checkpoints = self._checkpoints.place(
                    context,
                    resolved.checkpoint_root,
                    resolved.checkpoint_key,
                    logger,
                    look_timeout_seconds=resolved.tuning.checkpoint_look_timeout_seconds,
                )
                plan = resolved.plan(
                    timeout_seconds=self.timeout_seconds,
                    checkpoint_name=checkpoints.key,
                    checkpoints=checkpoints if context.task_run.flow_run_id else None,
                    say=logger,
                    flow_run_id=None if context.task_run.flow_run_id is None else str(context.task_run.flow_run_id),
                )
            except ConfigurationError:
                self.retries.refuse()
                raise
            self._attempts = Attempts(plan, str(context.task_run.id), self._cancelled, context.task_run.name)
        attempts, backoff_seconds = self._attempts, self.retries.begin()
        self._number += 1
        number = self._number  # never used twice, whatever an attempt ends with: hosts know attempts by it
        self._flow_had_ended = self._flow_ended_badly()
        self._prefect = self._prefect or RunForHosts(body, self.resolved.tuning)
        call = Call(body, args, kwargs, self._prefect.now(context))
        observer = self._observer = self._observer or observe(self.task, context.task_run, logger, self.resolved.tuning)
        self._began = time.monotonic(), time.time()

        def work() -> None:
            try:
                try:
                    self._checkpoints.take(self._cancelled.is_set, attempts.barrier_seconds)
                    ended = attempts.attempt(number, call, observer, backoff_seconds=backoff_seconds)
                finally:
                    observer.flush()
            except BaseException as error:  # noqa: BLE001 - it is raised again on the engine's thread
                self._running = False
                future.set_exception(error)
            else:
                self._running = False
                future.set_result(ended)

        self._running = True
        # A thread of its own: what Prefect injects into the engine's thread cannot tear the attempt apart.
        threading.Thread(
            target=copy_context().run, args=(work,), name=f"gang-{context.task_run.name}", daemon=True
        ).start()

    def _look(self) -> None:
        """Stop if the flow run that this task run belongs to has ended badly, or the process is ending.

        A process that ends normally outside a flow waits for what was submitted, as for any thread pool.
        """
        process_ends = not threading.main_thread().is_alive()
        ended_badly = FlowRunContext.get() is not None or hasattr(sys, "last_type")
        if (self._flow_ended_badly() and not self._flow_had_ended) or (process_ends and ended_badly):
            self.cancel()

    def _flow_ended_badly(self) -> bool:
        """Failed, Crashed, Cancelled, or about to be retried as a whole."""
        flow = FlowRunContext.get()
        state = flow.flow_run.state if flow is not None and flow.flow_run is not None else None
        return state is not None and not state.is_completed() and (state.is_final() or state.is_scheduled())

    def _record(self, report: AttemptReport, *, again: bool = False) -> None:
        """Put the attempt into the ledger, and show it."""
        report = replace(report, budgets=self.retries.budgets())
        self.reports.append(report)
        if self._observer is not None:
            self._observer.ended(self.reports, again=again, budgets=report.budgets)

    def _record_interrupted(self, future: concurrent.futures.Future[Ended]) -> None:
        """An attempt that was ended from outside is in the table too."""
        if future.done() and not future.cancelled() and future.exception() is None:
            self._record(future.result().report)
            artifacts.flush(SETTLE_SECONDS)

    def _conclude(self, future: concurrent.futures.Future[Ended]) -> Any:
        try:
            ended = future.result()
        except (ConfigurationError, ProvisioningError, SliceUnavailableError) as error:
            self.retries.refuse()  # no repetition mends it; the capacity deadline is a budget of its own
            if not isinstance(error, ConfigurationError):
                began, unix = self._began
                now = time.monotonic()
                self._record(AttemptReport.without_slices(self._number, str(error), began, unix, now))
            raise
        except GangCancelledError as error:
            raise asyncio.CancelledError("the gang was cancelled") from error
        except Exception:
            self.retries.leave_to_prefect()
            raise
        report = ended.report
        verdict, shaped = report.verdict, None
        self.retries.judge(report)
        if report.crashed:
            self.retries.refuse()  # as Prefect
        if verdict.kind is Kind.SUCCEEDED:
            assert ended.results is not None
            assert report.gang is not None
            shaped = self.resolved.shape_results(ended.results, report.gang.hosts_per_slice)
            if isinstance(shaped, State) and shaped.is_failed():
                self.retries.returned_failure()
        self._record(report, again=self.retries.another_follows())
        if verdict.kind is Kind.SUCCEEDED:
            return shaped
        context = TaskRunContext.get()
        assert context is not None
        self._tell(self.reports[-1], context.task_run)
        if verdict.kind is Kind.TIMED_OUT:
            self.task.timeout_seconds = self.timeout_seconds  # Prefect's message quotes it
        if verdict.kind is Kind.CANCELLED:
            # What Prefect's own runner raises for a task run that it cancels; it ends Crashed, not retried.
            raise asyncio.CancelledError("the gang was cancelled") from GangCancelledError(verdict.cause)
        raise failure_of(self.reports, ended.error, self.timeout_seconds, self.retries.exhausted, context.task_run)

    def _tell(self, report: AttemptReport, task_run: TaskRun) -> None:
        """The verdict in the logs, and a state of its own for a loss that is not the function's."""
        verdict, row = report.verdict, KINDS[report.verdict.kind]
        text = f"{verdict.cause}; {report.budgets}"
        if row.log_level is not None:
            get_run_logger().log(row.log_level, "attempt %d %s: %s", report.number, verdict.kind.value, text)
        if row.state:
            states.emit(task_run, row.state, text)
