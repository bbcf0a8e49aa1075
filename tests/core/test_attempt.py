"""When an attempt is over: tables of rounds, with the clock in the hand of the test."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_tpu.core.attempt import HostFacts, OutsideFacts, Watch
from prefect_tpu.core.kinds import Kind

LAUNCH, LEAVE, WINDOW, CLEAR = 300.0, 60.0, 1.0, 0.2
STARTS, RUNS, RETURNED = HostFacts(), HostFacts(entered=True), HostFacts(entered=True, returned=True)
FAILED = HostFacts(entered=True, failed=True)
CLEARLY = HostFacts(entered=True, failed=True, failed_clearly=True)
LEFT = HostFacts(entered=True, failed=True, failed_clearly=True, left=True)
RESIZES = HostFacts(entered=True, failed=True, failed_clearly=True, left=True, left_to_resize=True)
QUIET, CANCELLED = OutsideFacts(), OutsideFacts(cancelled=True)
GONE = HostFacts(entered=True, gone=True)
GONE_LOST = HostFacts(entered=True, failed=True, failed_clearly=True, gone=True)
DRAINING, HUNG = OutsideFacts(draining=True), OutsideFacts(hung=True)
Round = tuple[float, list[HostFacts], OutsideFacts, str | None]


def watch(timeout_seconds: float | None = None) -> Watch:
    return Watch(0.0, timeout_seconds, LAUNCH, LEAVE, WINDOW, CLEAR)


TABLE: dict[str, list[Round]] = {
    "all return": [
        (1, [STARTS, STARTS], QUIET, None),
        (2, [RUNS, STARTS], QUIET, None),
        (3, [RUNS, RUNS], QUIET, None),
        (9e9, [RETURNED, RUNS], QUIET, None),
        (9e9, [RETURNED, RETURNED], QUIET, "SUCCEEDED"),
    ],
    "success beats cancel, deadline and hang": [
        (1, [RETURNED, RETURNED], OutsideFacts(cancelled=True, hung=True), "SUCCEEDED"),
    ],
    "a cancel beats the deadline of a notice, and failures": [
        (1, [GONE, CLEARLY], OutsideFacts(cancelled=True), "CANCELLED"),
    ],
    "cancelled while it starts": [(1, [STARTS, RUNS], QUIET, None), (2, [STARTS, RUNS], CANCELLED, "CANCELLED")],
    "a notice alone ends nothing, its deadline does": [
        (1, [RUNS, RUNS], DRAINING, None),
        (30, [RUNS, RUNS], DRAINING, None),
        (31, [GONE, GONE], DRAINING, "judge"),
    ],
    "at the deadline hosts of slices that stay may finish": [
        (30, [RUNS, RUNS, RUNS], DRAINING, None),
        (31, [RUNS, RUNS, GONE], DRAINING, None),
        (31.2, [RUNS, RUNS, GONE_LOST], DRAINING, None),
        (45, [RUNS, FAILED, GONE_LOST], DRAINING, None),
        (60, [RETURNED, FAILED, GONE_LOST], DRAINING, "judge"),
    ],
    "but no longer than those that leave are waited for": [
        (31, [RUNS, GONE], DRAINING, None),
        (90.9, [RUNS, GONE_LOST], DRAINING, None),
        (91, [RUNS, GONE_LOST], DRAINING, "judge"),
    ],
    "a leave before the deadline: its time counts": [
        (10, [LEFT, RUNS, RUNS], DRAINING, None),
        (31, [LEFT, RUNS, GONE], DRAINING, None),
        (69.9, [LEFT, RUNS, GONE_LOST], DRAINING, None),
        (70, [LEFT, RUNS, GONE_LOST], DRAINING, "judge"),
    ],
    "a host that has not entered has nothing to finish": [
        (1, [STARTS, RUNS], DRAINING, None),
        (31, [STARTS, GONE], DRAINING, "judge"),
    ],
    "a notice that is taken back too late": [
        (31, [RUNS, GONE_LOST], DRAINING, None),
        (40, [RUNS, GONE_LOST], QUIET, None),
        (91, [RUNS, GONE_LOST], QUIET, "judge"),
    ],
    "a hang": [(1, [RUNS, RUNS], QUIET, None), (2, [RUNS, RETURNED], HUNG, "judge")],
    "one failure: the others are heard for a second": [
        (1, [RUNS, RUNS, RUNS], QUIET, None),
        (10.0, [FAILED, RUNS, RUNS], QUIET, None),
        (10.9, [FAILED, FAILED, RUNS], QUIET, None),
        (11.0, [FAILED, FAILED, RUNS], QUIET, "judge"),
    ],
    "a clear failure: less": [(10.0, [CLEARLY, RUNS], QUIET, None), (10.2, [CLEARLY, RUNS], QUIET, "judge")],
    "clear after one that was not": [
        (10.0, [FAILED, RUNS, RUNS], QUIET, None),
        (10.5, [FAILED, CLEARLY, RUNS], QUIET, None),
        (10.6, [FAILED, CLEARLY, RUNS], QUIET, None),
        (10.7, [FAILED, CLEARLY, RUNS], QUIET, "judge"),
    ],
    "clear late in the window does not make it longer": [
        (10.0, [FAILED, RUNS, RUNS], QUIET, None),
        (10.9, [FAILED, CLEARLY, RUNS], QUIET, None),
        (11.0, [FAILED, CLEARLY, RUNS], QUIET, "judge"),
    ],
    "nobody is left to be heard": [(10.0, [FAILED, RETURNED, CLEARLY], QUIET, "judge")],
    "leaving under a notice: slower hosts can save": [
        (10.0, [LEFT, RUNS], DRAINING, None),
        (69.9, [LEFT, RUNS], DRAINING, None),
        (70.0, [LEFT, RUNS], DRAINING, "judge"),
    ],
    "all have left": [(10.0, [LEFT, RUNS], DRAINING, None), (20.0, [LEFT, LEFT], DRAINING, "judge")],
    "leaving without a notice is a failure": [(10.0, [LEFT, RUNS], QUIET, None), (10.2, [LEFT, RUNS], QUIET, "judge")],
    "at a resize point": [
        (10.0, [RESIZES, RUNS], QUIET, None),
        (40.0, [RESIZES, RUNS], QUIET, None),
        (41.0, [RESIZES, RESIZES], QUIET, "judge"),
    ],
    "a loss among those that leave": [
        (10.0, [LEFT, RUNS, RUNS], DRAINING, None),
        (20.0, [LEFT, CLEARLY, RUNS], DRAINING, None),
        (20.2, [LEFT, CLEARLY, RUNS], DRAINING, "judge"),
    ],
}


@pytest.mark.parametrize("rounds", TABLE.values(), ids=TABLE)
def test_rounds(rounds: list[Round]) -> None:
    """Second, hosts, outside: the answer."""
    one = watch()
    for now, hosts, outside, answer in rounds:
        assert one.next(hosts, outside, now) == answer, now


def test_the_timeout_counts_from_the_launch() -> None:
    """Also while hosts start, and before what has failed meanwhile."""
    one = watch(timeout_seconds=5)
    assert one.next([STARTS, RUNS], QUIET, 4.9) is None
    assert one.next([STARTS, CLEARLY], QUIET, 5.0) is Kind.TIMED_OUT
    assert watch(timeout_seconds=5).next([RETURNED], QUIET, 6.0) is Kind.SUCCEEDED
    assert watch(timeout_seconds=5).next([GONE], DRAINING, 6.0) == "judge"


def test_hosts_that_are_late_have_failed() -> None:
    """They are named once; the others have their window."""
    one = watch()
    assert one.next([RUNS, STARTS, STARTS], QUIET, LAUNCH - 0.1) is None
    assert (one.late, one.entered_at) == ((), None)
    assert one.next([RUNS, STARTS, STARTS], QUIET, LAUNCH) is None
    assert one.late == (1, 2)
    lost = HostFacts(failed=True, failed_clearly=True)
    assert one.next([RUNS, lost, lost], QUIET, LAUNCH + CLEAR) == "judge"
    everybody = watch()
    assert everybody.next([STARTS, STARTS], QUIET, LAUNCH) == "judge"
    assert everybody.late == (0, 1)


def test_when_all_have_entered() -> None:
    """The first round that sees it; nobody is late any more."""
    one = watch()
    one.next([RUNS, STARTS], QUIET, 1.0)
    assert one.entered_at is None
    one.next([RUNS, RUNS], QUIET, 2.0)
    one.next([RUNS, RUNS], QUIET, LAUNCH + 1)
    assert (one.entered_at, one.late) == (2.0, ())


some_host = st.sampled_from([STARTS, RUNS, RETURNED, FAILED, CLEARLY, LEFT, RESIZES, GONE, GONE_LOST])
outsides = st.builds(OutsideFacts, st.booleans(), st.booleans(), st.booleans())


@given(st.lists(st.tuples(st.lists(some_host, min_size=3, max_size=3), outsides, st.floats(0, 100)), max_size=12))
def test_in_whatever_order_rounds_come(rounds: list[tuple[list[HostFacts], OutsideFacts, float]]) -> None:
    """Success is everybody and nothing else; a failure, or a slice that goes, is judged within the longest window."""
    one, now, failing_since = watch(), 0.0, None
    for hosts, outside, seconds in rounds:
        now += seconds
        answer = one.next(hosts, outside, now)
        assert (answer is Kind.SUCCEEDED) == all(host.returned for host in hosts)
        if answer is not None:
            return
        assert not outside.cancelled
        if any(host.failed or host.gone for host in hosts):
            failing_since = now if failing_since is None else failing_since
            assert now - failing_since < LEAVE + 0.001  # sums of floats
