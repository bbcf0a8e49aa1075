"""Whether and when Prefect's engine runs the next attempt of a task run, and what the attempts have cost."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

from prefect.utilities.math import clamped_poisson_interval

from prefect_tpu.core.kinds import Kind
from prefect_tpu.core.report import AttemptReport
from prefect_tpu.core.retry import Decision, Limits, Spent, backoff_seconds, decide_retry
from prefect_tpu.core.verdict import Verdict
from prefect_tpu.options.tuning import Tuning

if TYPE_CHECKING:
    from prefect.client.schemas.objects import State, TaskRun

BACKOFF_CLAMPING = 0.3
"""Waits are up to this share shorter or longer than their average, by Prefect's own jitter."""


class RetryFields(Protocol):
    """What a task run changes of its copy of the task, between the attempts."""

    name: str
    body: Callable[..., Any]
    retries: int
    retry_delay_seconds: Any
    retry_jitter_factor: float | None
    retry_condition_fn: Any
    timeout_seconds: float | None
    log_prints: bool | None


class Retries:
    """The budgets of one task run, and the retry fields of its copy of the task, which the engine reads."""

    def __init__(self, task: RetryFields, limits: Callable[[], Limits], tuning: Callable[[], Tuning]) -> None:
        """`limits`, `tuning`: asked when an attempt has ended, not before."""
        self._task = task
        self._limits = limits
        self._tuning = tuning
        self._user_retries = task.retries
        self._user_delay = task.retry_delay_seconds
        self._user_jitter = task.retry_jitter_factor
        self._user_condition = task.retry_condition_fn
        self._spent = Spent()
        self._succeeded = False
        self._decision = Decision(None)
        self._best_step: int | None = None
        self._backoff_seconds = 0.0

    def condition(self, made: Any, answered: Callable[[bool], None]) -> Callable[..., Any]:
        """Prefect's `retry_condition_fn` for the copy of the task: our causes first, else the user's own.

        Args:
            made: the task as the user made it, which the user's own is given.
            answered: told what the user's own says, where it is asked.
        """
        user = self._user_condition

        def told(answer: Any) -> bool:
            answered(bool(answer))
            return bool(answer)

        async def told_later(answer: Awaitable[Any]) -> bool:
            return told(await answer)

        async def decide_async(_: Any, task_run: TaskRun, state: State[Any]) -> bool:
            if self._decision.retry is not None:
                return self._decision.retry
            return told(await user(made, task_run, state))

        def decide(_: Any, task_run: TaskRun, state: State[Any]) -> bool | Awaitable[bool]:
            if self._decision.retry is not None:
                return self._decision.retry
            answer = True if user is None else user(made, task_run, state)
            # Whatever it is that gives one: an object with an async __call__, a partial. Prefect's engines await it.
            return told_later(answer) if inspect.isawaitable(answer) else told(answer)

        return decide_async if inspect.iscoroutinefunction(user) else decide

    def begin(self) -> float:
        """An attempt begins; how long it waits before it looks for slices."""
        seconds, self._backoff_seconds = self._backoff_seconds, 0.0
        self._decide(Decision(None))
        return seconds

    def refuse(self) -> None:
        """No repetition mends what has happened."""
        self._decision = Decision(False)

    def leave_to_prefect(self) -> None:
        """Something was raised that is no attempt's end: by the task's own retries."""
        self._decide(Decision(None if self._limits().resumable else False))

    def judge(self, report: AttemptReport) -> None:
        """An attempt has ended: charge it, and decide what follows."""
        verdict = report.verdict
        self._spent = self._spent.charge(verdict, progressed=self._progressed(report))
        self._succeeded = verdict.kind is Kind.SUCCEEDED
        if not self._succeeded:
            self._decide(decide_retry(verdict, self._spent, self._limits()))
            self._backoff_seconds = self._backoff(verdict)

    def returned_failure(self) -> None:
        """The function has returned a failed state, which Prefect retries as it does an exception."""
        self._spent = replace(self._spent, failures=self._spent.failures + 1)
        self._succeeded = False
        self.leave_to_prefect()

    def another_follows(self) -> bool:
        """As far as it is known; the user's own retry condition is asked later."""
        if self._succeeded or self._decision.retry is False:
            return False
        return bool(self._decision.retry) or self._spent.failures <= self._user_retries

    @property
    def exhausted(self) -> str:
        """Which budget other than the task's own is spent, "" if none is."""
        return self._decision.reason if self._decision.retry is False else ""

    def budgets(self) -> str:
        """What is spent, in words."""
        return self._spent.describe(self._limits(), self._user_retries)

    @property
    def longest_delay_seconds(self) -> float:
        """That the engine may wait before the next attempt."""
        delay = self._task.retry_delay_seconds
        return max(delay) if isinstance(delay, Sequence) else delay or 0

    def _progressed(self, report: AttemptReport) -> bool:
        """Whether the function got further than in any attempt before, or the one before has left a checkpoint."""
        found = bool(report.found_checkpoint)
        if report.step is None:
            return found or report.run_seconds >= self._tuning().preemption_progress_seconds
        progressed = self._best_step is None or report.step > self._best_step
        self._best_step = report.step if progressed else self._best_step
        return found or progressed

    def _backoff(self, verdict: Verdict) -> float:
        """How long the next attempt waits before it looks for slices, with jitter."""
        tuning = self._tuning()
        cause = "preemption" if verdict.charge == "preemptions" else "infrastructure"
        average = backoff_seconds(
            self._spent,
            verdict,
            first_seconds=getattr(tuning, f"{cause}_backoff_seconds"),
            longest_seconds=getattr(tuning, f"{cause}_backoff_longest_seconds"),
        )
        return round(clamped_poisson_interval(average, BACKOFF_CLAMPING), 2) if average else 0.0

    def _decide(self, decision: Decision) -> None:
        """Set the copy's retry fields for this decision; the engine reads them after the exception."""
        self._decision = decision
        task = self._task
        if decision.retry:
            task.retries += 1
            task.retry_delay_seconds = 0
            task.retry_jitter_factor = None
        else:
            delay: Any = self._user_delay
            if isinstance(delay, Sequence) and delay:
                delay = delay[min(max(self._spent.failures, 1), len(delay)) - 1]
            task.retry_delay_seconds = delay
            task.retry_jitter_factor = self._user_jitter
