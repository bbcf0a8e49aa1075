"""Budgets: which causes may be retried, how often, and what has been spent."""

from __future__ import annotations

from dataclasses import dataclass, replace

from prefect_tpu.core.kinds import KINDS
from prefect_tpu.core.verdict import Verdict


@dataclass(frozen=True, slots=True)
class Limits:
    """How many attempts may be lost to each cause that is not the function's own.

    Attributes:
        max_preemptions: None is unlimited.
        max_infrastructure_failures: hosts lost without a preemption.
        max_preemptions_without_progress: preemptions in a row in which the function got no further.
        resumable: False means one attempt only, whatever it ends with.
    """

    max_preemptions: int | None = None
    max_infrastructure_failures: int = 10
    max_preemptions_without_progress: int = 20
    resumable: bool = True


@dataclass(frozen=True, slots=True)
class Spent:
    """What a task run has spent so far.

    Attributes:
        preemptions, infrastructure, failures: attempts lost to each.
        preemptions_in_a_row, infrastructure_in_a_row: the same since the function last got further.
    """

    preemptions: int = 0
    infrastructure: int = 0
    failures: int = 0
    preemptions_in_a_row: int = 0
    infrastructure_in_a_row: int = 0

    def charge(self, verdict: Verdict, *, progressed: bool = False) -> Spent:
        """The ledger after one more attempt; exactly one unit of one budget, or nothing."""
        spent = replace(self, preemptions_in_a_row=0, infrastructure_in_a_row=0) if progressed else self
        match verdict.charge:
            case "preemptions":
                return replace(
                    spent, preemptions=spent.preemptions + 1, preemptions_in_a_row=spent.preemptions_in_a_row + 1
                )
            case "infrastructure":
                return replace(
                    spent,
                    infrastructure=spent.infrastructure + 1,
                    infrastructure_in_a_row=spent.infrastructure_in_a_row + 1,
                )
            case "failures":
                return replace(spent, failures=spent.failures + 1)
        return spent

    def describe(self, limits: Limits, retries: int) -> str:
        """One phrase: "preemptions 2, lost hosts 1 of 10, failures 0 of 3"."""
        preemptions = "" if limits.max_preemptions is None else f" of {limits.max_preemptions}"
        return (
            f"preemptions {self.preemptions}{preemptions}, "
            f"lost hosts {self.infrastructure} of {limits.max_infrastructure_failures}, "
            f"failures {self.failures} of {retries}"
        )


def backoff_seconds(spent: Spent, verdict: Verdict, *, first_seconds: float, longest_seconds: float) -> float:
    """How long to wait on average before slices are looked for again: nothing after the first loss in a row, then
    doubled each time, up to a limit. Whoever waits adds the jitter.
    """
    match verdict.charge:
        case "preemptions":
            in_a_row = spent.preemptions_in_a_row
        case "infrastructure":
            in_a_row = spent.infrastructure_in_a_row
        case _:
            return 0.0
    return 0.0 if in_a_row < 2 else min(longest_seconds, first_seconds * 2.0 ** min(in_a_row - 2, 60))


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
    if verdict.charge == "preemptions":
        if limits.max_preemptions is not None and spent.preemptions > limits.max_preemptions:
            return Decision(False, f"preempted {spent.preemptions} times, max_preemptions={limits.max_preemptions}")
        if spent.preemptions_in_a_row >= limits.max_preemptions_without_progress:
            return Decision(
                False,
                f"preempted {spent.preemptions_in_a_row} times in a row without progress, "
                f"max_preemptions_without_progress={limits.max_preemptions_without_progress}; call "
                "runtime.report(step=...) as training goes on, and save checkpoints more often",
            )
    if verdict.charge == "infrastructure" and spent.infrastructure > limits.max_infrastructure_failures:
        return Decision(
            False,
            f"hosts lost {spent.infrastructure} times, "
            f"max_infrastructure_failures={limits.max_infrastructure_failures}",
        )
    return Decision(KINDS[verdict.kind].retry)
