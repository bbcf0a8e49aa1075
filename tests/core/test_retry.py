"""Budgets."""

from __future__ import annotations

import pytest

from prefect_tpu.core.kinds import Kind
from prefect_tpu.core.retry import Limits, Spent, backoff_seconds, decide_retry
from prefect_tpu.core.verdict import Verdict


def spend(*kinds: Kind, progressed: bool = False) -> Spent:
    spent = Spent()
    for kind in kinds:
        spent = spent.charge(Verdict(kind), progressed=progressed)
    return spent


def test_a_preemption_is_free_for_the_task() -> None:
    """Unlimited by default as long as the function gets further, and never the task's own retries."""
    spent = spend(*[Kind.PREEMPTED] * 500, progressed=True)
    assert decide_retry(Verdict(Kind.PREEMPTED), spent, Limits()).retry is True
    assert (spent.preemptions, spent.failures) == (500, 0)


def test_preemptions_without_progress_end_the_run() -> None:
    """A crash loop: the k-th in a row, and the reason says what would count as progress."""
    limits = Limits(max_preemptions_without_progress=3)
    spent = spend(*[Kind.PREEMPTED] * 2)
    assert decide_retry(Verdict(Kind.PREEMPTED), spent, limits).retry is True
    spent = spent.charge(Verdict(Kind.PREEMPTED), progressed=True)
    assert decide_retry(Verdict(Kind.PREEMPTED), spent, limits).retry is True
    for _ in range(2):
        spent = spent.charge(Verdict(Kind.PREEMPTED))
    decision = decide_retry(Verdict(Kind.PREEMPTED), spent, limits)
    assert decision.retry is False
    assert "3 times in a row without progress" in decision.reason
    assert "runtime.report" in decision.reason


def test_the_budgets_in_words() -> None:
    """What a person reads in Prefect's history."""
    spent = spend(Kind.PREEMPTED, Kind.PREEMPTED, Kind.INFRASTRUCTURE, Kind.USER_ERROR)
    assert spent.describe(Limits(), 3) == "preemptions 2, lost hosts 1 of 10, failures 1 of 3"
    assert spent.describe(Limits(max_preemptions=5), 0).startswith("preemptions 2 of 5, ")


@pytest.mark.parametrize(("limit", "happened", "retry"), [(2, 2, True), (2, 3, False), (0, 1, False)])
def test_preemptions_have_a_budget(limit: int, happened: int, retry: bool) -> None:
    """max_preemptions=2 survives two, and says why it stops at the third."""
    decision = decide_retry(Verdict(Kind.PREEMPTED), spend(*[Kind.PREEMPTED] * happened), Limits(max_preemptions=limit))
    assert decision.retry is retry
    assert retry or f"max_preemptions={limit}" in decision.reason


def test_infrastructure_has_a_budget() -> None:
    """Ten lost hosts by default."""
    kinds = [Kind.INFRASTRUCTURE] * 11
    assert decide_retry(Verdict(Kind.INFRASTRUCTURE), spend(*kinds[:10]), Limits()).retry is True
    assert decide_retry(Verdict(Kind.INFRASTRUCTURE), spend(*kinds), Limits()).retry is False


@pytest.mark.parametrize("kind", [Kind.USER_ERROR, Kind.CRASHED_PROCESS, Kind.TIMED_OUT])
def test_the_functions_own_failures_are_up_to_prefect(kind: Kind) -> None:
    """`retries` and `retry_condition_fn` of the task decide."""
    assert decide_retry(Verdict(kind), spend(kind), Limits()).retry is None


@pytest.mark.parametrize("kind", list(Kind))
def test_not_resumable_is_one_attempt(kind: Kind) -> None:
    """resumable=False retries nothing."""
    assert decide_retry(Verdict(kind), Spent(), Limits(resumable=False)).retry is False


@pytest.mark.parametrize("kind", [Kind.INFRASTRUCTURE, Kind.PREEMPTED])
def test_backoff_doubles_from_the_second_loss_in_a_row_up_to_a_limit(kind: Kind) -> None:
    """The first one costs no wait, and neither does one after progress."""

    def wait(count: int, *, progressed: bool = False) -> float:
        spent = spend(*[kind] * count, progressed=progressed)
        return backoff_seconds(spent, Verdict(kind), first_seconds=1, longest_seconds=10)

    assert [wait(one) for one in (1, 2, 3, 4, 5, 6, 60)] == [0, 1, 2, 4, 8, 10, 10]
    assert wait(9, progressed=True) == 0
    assert backoff_seconds(spend(*[kind] * 9), Verdict(Kind.USER_ERROR), first_seconds=1, longest_seconds=9) == 0
