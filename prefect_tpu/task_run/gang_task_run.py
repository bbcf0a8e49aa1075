"""One task run of a gang, between Prefect's engine (which retries) and the cluster (which runs)."""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import inspect
import re
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextvars import copy_context
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

import anyio
from prefect.context import FlowRunContext, TaskRunContext
from prefect.logging import get_run_logger
from prefect.utilities.math import clamped_poisson_interval

from prefect_tpu.core.errors import (
    ConfigurationError,
    GangCancelledError,
    ProvisioningError,
    RetriesExhaustedError,
    SliceUnavailableError,
)
from prefect_tpu.core.rate import RateLimit
from prefect_tpu.core.report import AttemptReport
from prefect_tpu.core.retry import Decision, Spent, backoff_seconds, decide_retry
from prefect_tpu.core.verdict import Kind, Verdict
from prefect_tpu.gang.attempt import BARRIER_MARGIN_SECONDS
from prefect_tpu.gang.run import Call, Ended, GangRun
from prefect_tpu.observability import artifacts, states
from prefect_tpu.observability.logs import Logger, RunLog
from prefect_tpu.observability.observer import SETTLE_SECONDS, RunObserver
from prefect_tpu.settings import current_settings
from prefect_tpu.task_run.failures import as_exception
from prefect_tpu.task_run.resolve import Resolved
from prefect_tpu.wire import pickling

if TYPE_CHECKING:
    from prefect.client.schemas.objects import State, TaskRun


BACKOFF_CLAMPING = 0.3
"""Waits are up to this share shorter or longer than their average, by Prefect's own jitter."""
LOOK_SECONDS = 0.2
"""How often the engine's thread looks whether it is to stop, while the gang runs on a thread of its own."""

_COUNTING = threading.Lock()


class RetryFields(Protocol):
    """What a task run changes of its copy of the task, between the attempts."""

    name: str
    retries: int
    retry_delay_seconds: Any
    retry_jitter_factor: float | None
    retry_condition_fn: Any
    timeout_seconds: float | None


class GangTaskRun:
    """What the attempts of one task run share: leases, budgets, ledger, and the word to stop."""

    def __init__(self, resolve: Callable[[], Resolved], task: RetryFields) -> None:
        """`resolve`: says how the gang is made; asked once. `task`: of this task run alone."""
        self._resolve = resolve
        self.task = task
        self.timeout_seconds = task.timeout_seconds
        self.spent = Spent()
        self.reports: list[AttemptReport] = []
        self._call_number = _call_number(task.name)
        self._user_retries = task.retries
        self._best_step: int | None = None
        self._user_delay = task.retry_delay_seconds
        self._user_jitter = task.retry_jitter_factor
        self._user_condition = task.retry_condition_fn
        self._decision = Decision(None)
        self._backoff_seconds = 0.0
        self._attempts = 0
        self._running = False
        self._flow_had_ended = False
        self._cancelled = threading.Event()
        self._run: GangRun | None = None
        self._observer: RunObserver | None = None
        self._began = 0.0

    @functools.cached_property
    def resolved(self) -> Resolved:
        """How the gang is made; a pool is loaded once for a task run, when it is first needed."""
        return self._resolve()

    # -- from outside

    def cancel(self) -> None:
        """End the attempt that runs; the task run ends as Prefect's own cancelled task runs do."""
        self._cancelled.set()
        if self._run is not None:
            self._run.cancel()
            if not self._running:
                self._run.release()  # Prefect sleeps before the next attempt

    def close(self) -> None:
        """The task run is over: nothing stays reserved, and its future keeps no ledger alive."""
        if self._run is not None:
            self._run.cancel()
            self._run.release()
        if self._observer is not None:
            self._observer.closed(self.reports, self.spent.describe(self.resolved.limits, self._user_retries))
            self._observer = None
        self.reports = []

    def retry_condition(self) -> Callable[..., Any]:
        """Prefect's `retry_condition_fn` for the clone: our causes first, else the user's own."""
        user = self._user_condition
        if inspect.iscoroutinefunction(user):

            async def decide_async(task: Any, task_run: TaskRun, state: State[Any]) -> bool:
                if self._decision.retry is not None:
                    return self._decision.retry
                return self._keep_or_release(bool(await user(task, task_run, state)))

            return decide_async

        def decide(task: Any, task_run: TaskRun, state: State[Any]) -> bool:
            if self._decision.retry is not None:
                return self._decision.retry
            return self._keep_or_release(True if user is None else bool(user(task, task_run, state)))

        return decide

    def _keep_or_release(self, retry: bool) -> bool:
        self.task.timeout_seconds = None  # see _conclude: it must not be Prefect's in the next attempt
        delay = self.task.retry_delay_seconds
        longest = max(delay) if isinstance(delay, Sequence) else delay or 0
        if self._run is not None and (not retry or longest > self.resolved.options.lease_hold_seconds):
            self._run.release()
        return retry

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
        return self.resolved.options.cancel_grace_seconds + BARRIER_MARGIN_SECONDS + 2 * LOOK_SECONDS

    def _start(
        self,
        future: concurrent.futures.Future[Ended],
        body: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> None:
        context = TaskRunContext.get()
        assert context is not None
        logger = get_run_logger()
        run_id = str(context.task_run.id)
        if self._run is None:
            try:
                plan = self.resolved.plan(
                    timeout_seconds=self.timeout_seconds,
                    checkpoint_name=self._checkpoint_name(context.task_run),
                    say=logger,
                    flow_run_id=None if context.task_run.flow_run_id is None else str(context.task_run.flow_run_id),
                )
            except ConfigurationError:
                self._decision = Decision(False)
                raise
            self._run = GangRun(plan, run_id=run_id)
        run, backoff_seconds = self._run, self._backoff_seconds
        if self._cancelled.is_set():
            run.cancel()
        self._decision, self._backoff_seconds = Decision(None), 0.0
        self._set_retry()
        self._attempts += 1
        number = self._attempts  # never used twice, whatever an attempt ends with: hosts know attempts by it
        self._flow_had_ended = self._flow_ended_badly()
        call = Call(body, args, kwargs, pickling.project_root_of(body))
        observer = self._observer = self._observer or self._observe(context.task_run, logger)
        self._began = time.time()

        def work() -> None:
            try:
                try:
                    ended = run.attempt(number, call, observer, backoff_seconds=backoff_seconds)
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

    def _observe(self, task_run: TaskRun, logger: Logger) -> RunObserver:
        settings = current_settings()
        lines = settings.gang_log_lines_per_second
        run_log = RunLog(logger, RateLimit(lines, lines * settings.log_burst_seconds))
        return RunObserver(run_log, self.task.name, task_run, slice_bars=settings.slice_bars)

    def _checkpoint_name(self, task_run: TaskRun) -> str:
        """The same for every attempt, and when the flow run is retried, where the task run has another id."""
        if task_run.flow_run_id is None:
            return str(task_run.id)
        return f"{task_run.flow_run_id}/{re.sub(r'[^A-Za-z0-9_.-]+', '-', self.task.name)}-{self._call_number}"

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
        report = replace(report, budgets=self.spent.describe(self.resolved.limits, self._user_retries))
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
            self._decision = Decision(False)  # no repetition mends it; the capacity deadline is a budget of its own
            if not isinstance(error, ConfigurationError):
                self._record(self._unprovisioned(error))
            raise
        except GangCancelledError as error:
            raise asyncio.CancelledError("the gang was cancelled") from error
        except Exception:
            self._decision = Decision(None if self.resolved.limits.resumable else False)
            self._set_retry()
            raise
        report = ended.report
        verdict = report.verdict
        self.spent = self.spent.charge(verdict, progressed=self._progressed(report))
        if verdict.kind is not Kind.SUCCEEDED:
            self._decision = decide_retry(verdict, self.spent, self.resolved.limits)
        self._record(report, again=self._another_follows(verdict))
        if verdict.kind is Kind.SUCCEEDED:
            assert ended.results is not None
            assert report.gang is not None
            return self.resolved.shape_results(ended.results, report.gang.hosts_per_slice)
        self._set_retry()
        self._backoff_seconds = self._backoff(verdict)
        self._tell(self.reports[-1])
        if verdict.kind is Kind.TIMED_OUT:
            self.task.timeout_seconds = self.timeout_seconds  # Prefect's message quotes it
        if verdict.kind is Kind.CANCELLED:
            # What Prefect's own runner raises for a task run that it cancels; it ends Crashed, not retried.
            raise asyncio.CancelledError("the gang was cancelled") from GangCancelledError(verdict.cause)
        failure = ended.error if ended.error is not None else as_exception(report, self.timeout_seconds)
        if self._decision.retry is False and self._decision.reason:
            text = f"{self._decision.reason}; last: {verdict.cause}"
            raise RetriesExhaustedError(text, tuple(self.reports)) from failure
        raise failure

    def _another_follows(self, verdict: Verdict) -> bool:
        """As far as it is known; the user's own retry condition is asked later."""
        if verdict.kind is Kind.SUCCEEDED or self._decision.retry is False:
            return False
        return bool(self._decision.retry) or self.spent.failures <= self._user_retries

    def _unprovisioned(self, error: ProvisioningError | SliceUnavailableError) -> AttemptReport:
        return AttemptReport(
            number=self._attempts,
            gang=None,
            evidence=(),
            verdict=Verdict(Kind.UNPROVISIONED, str(error)),
            lease_seconds=time.time() - self._began,
            launch_seconds=0.0,
            run_seconds=0.0,
            began_unix_seconds=self._began,
        )

    def _progressed(self, report: AttemptReport) -> bool:
        """Whether the function got further than in any attempt before."""
        if report.step is None:
            return report.run_seconds >= current_settings().preemption_progress_seconds
        progressed = self._best_step is None or report.step > self._best_step
        self._best_step = max(report.step, self._best_step or 0)
        return progressed

    def _backoff(self, verdict: Verdict) -> float:
        """How long the next attempt waits before it looks for slices, with jitter."""
        settings = current_settings()
        cause = "preemption" if verdict.kind is Kind.PREEMPTED else "infrastructure"
        average = backoff_seconds(
            self.spent,
            verdict,
            first_seconds=getattr(settings, f"{cause}_backoff_seconds"),
            longest_seconds=getattr(settings, f"{cause}_backoff_longest_seconds"),
        )
        return round(clamped_poisson_interval(average, BACKOFF_CLAMPING), 2) if average else 0.0

    def _tell(self, report: AttemptReport) -> None:
        """The verdict in the logs, and a state of its own for a loss that is not the function's."""
        verdict, context = report.verdict, TaskRunContext.get()
        assert context is not None
        if verdict.kind in (Kind.CANCELLED, Kind.TIMED_OUT):
            return
        text = f"{verdict.cause}; {report.budgets}"
        if verdict.kind is Kind.RESIZED:
            get_run_logger().info("attempt %d %s: %s", report.number, verdict.kind.value, text)
            states.emit(context.task_run, states.RESIZED, text)
            return
        get_run_logger().warning("attempt %d %s: %s", report.number, verdict.kind.value, text)
        if verdict.kind is Kind.PREEMPTED:
            states.emit(context.task_run, states.PREEMPTED, text)
        elif verdict.kind is Kind.INFRASTRUCTURE:
            states.emit(context.task_run, states.HOST_LOST, text)

    def _set_retry(self) -> None:
        """Set the clone's retry fields for this cause; the engine reads them after the exception."""
        clone: Any = self.task
        if self._decision.retry:
            clone.retries += 1
            clone.retry_delay_seconds = 0
            clone.retry_jitter_factor = None
        else:
            delay: Any = self._user_delay
            if isinstance(delay, Sequence) and delay:
                delay = delay[min(max(self.spent.failures, 1), len(delay)) - 1]
            clone.retry_delay_seconds = delay
            clone.retry_jitter_factor = self._user_jitter


def _call_number(task_name: str) -> int:
    """How often the flow run has called a task of this name before: the same in every retry of the flow run."""
    flow = FlowRunContext.get()
    if flow is None:
        return 0
    key = f"prefect_tpu.{task_name}"  # beside Prefect's own counters, which start anew with each retry as well
    with _COUNTING:
        number = flow.task_run_dynamic_keys[key] = int(flow.task_run_dynamic_keys.get(key, -1)) + 1
    return number
