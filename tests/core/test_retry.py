"""Budgets."""

from __future__ import annotations

import pytest

from prefect_tpu.core.retry import Limits, Spent, backoff_seconds, decide_retry
from prefect_tpu.core.verdict import Kind, Verdict


def spend(*kinds: Kind) -> Spent:
    spent = Spent()
    for kind in kinds:
        spent = spent.charge(Verdict(kind))
    return spent


def test_a_preemption_is_free_for_the_task() -> None:
    """Unlimited by default, and never the task's own retries."""
    spent = spend(*[Kind.PREEMPTED] * 500)
    assert decide_retry(Verdict(Kind.PREEMPTED), spent, Limits()).retry is True
    assert (spent.failures, spent.free_retries) == (0, 500)


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


def test_backoff_after_lost_hosts_doubles_up_to_a_limit() -> None:
    """And a preemption waits for nothing but slices."""

    def wait(count: int, kind: Kind = Kind.INFRASTRUCTURE) -> float:
        return backoff_seconds(spend(*[kind] * count), Verdict(kind), first_seconds=1, longest_seconds=10)

    assert [wait(one) for one in (1, 2, 3, 4, 5, 60)] == [1, 2, 4, 8, 10, 10]
    assert wait(3, Kind.PREEMPTED) == 0
