"""Budgets: which causes may be retried, how often, and what has been spent."""

from __future__ import annotations

from dataclasses import dataclass, replace

from prefect_tpu.core.verdict import Kind, Verdict


@dataclass(frozen=True, slots=True)
class Limits:
    """How many attempts may be lost to each cause that is not the function's own.

    Attributes:
        max_preemptions: None is unlimited.
        max_infrastructure_failures: hosts lost without a preemption.
        resumable: False means one attempt only, whatever it ends with.
    """

    max_preemptions: int | None = None
    max_infrastructure_failures: int = 10
    resumable: bool = True


@dataclass(frozen=True, slots=True)
class Spent:
    """What a task run has spent so far."""

    preemptions: int = 0
    infrastructure: int = 0
    failures: int = 0

    def charge(self, verdict: Verdict) -> Spent:
        """The ledger after one more attempt; exactly one unit of one budget, or nothing."""
        if verdict.charge == "nothing":
            return self
        return replace(self, **{verdict.charge: getattr(self, verdict.charge) + 1})

    @property
    def free_retries(self) -> int:
        """Retries that must not count against the task's own `retries`."""
        return self.preemptions + self.infrastructure


def backoff_seconds(spent: Spent, verdict: Verdict, *, first_seconds: float, longest_seconds: float) -> float:
    """How long to wait after a lost host before slices are looked for again: doubled each time, up to a limit.

    A preempted slice needs no such wait: its place is taken by another one, or the wait for one begins.
    """
    if verdict.kind is not Kind.INFRASTRUCTURE:
        return 0.0
    return min(longest_seconds, first_seconds * 2.0 ** (spent.infrastructure - 1))


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do after an attempt that did not succeed.

    Attributes:
        retry: True: go on, not charged to the task's `retries`; False: never again; None: up to Prefect,
            by the task's own `retries` and `retry_condition_fn`.
        reason: why not, when a budget is spent.
    """

    retry: bool | None
    reason: str = ""


def decide_retry(verdict: Verdict, spent: Spent, limits: Limits) -> Decision:
    """Whether to go on after `verdict`; `spent` already holds its charge."""
    if not limits.resumable:
        return Decision(False, "")
    if verdict.kind is Kind.PREEMPTED:
        if limits.max_preemptions is not None and spent.preemptions > limits.max_preemptions:
            return Decision(False, f"preempted {spent.preemptions} times, max_preemptions={limits.max_preemptions}")
        return Decision(True)
    if verdict.kind is Kind.INFRASTRUCTURE:
        if spent.infrastructure > limits.max_infrastructure_failures:
            return Decision(
                False,
                f"hosts lost {spent.infrastructure} times, "
                f"max_infrastructure_failures={limits.max_infrastructure_failures}",
            )
        return Decision(True)
    if verdict.kind in (Kind.USER_ERROR, Kind.CRASHED_PROCESS, Kind.TIMED_OUT):
        return Decision(None)
    return Decision(False)
