"""What a run came to: seconds, lost steps, goodput."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_tpu.core.evidence import HostEvidence
from prefect_tpu.core.gang import Gang, Host, Slice
from prefect_tpu.core.kinds import Kind
from prefect_tpu.core.ledger import make_ledger
from prefect_tpu.core.report import AttemptReport
from prefect_tpu.core.verdict import Verdict

CHIPS = 4
LEASE, LAUNCH = 1.0, 2.0


def gang(*names: str) -> Gang:
    """Slices of two hosts."""
    return Gang(
        tuple(
            Slice(name, tuple(Host(f"{name}-{index}", index, "127.0.0.1", CHIPS, index == 0) for index in range(2)))
            for name in names
        )
    )


def report(
    number: int,
    kind: Kind,
    *,
    began: float,
    run: float = 10.0,
    drain: float = 0.0,
    steps: tuple[int, int] | None = None,
    names: tuple[str, ...] = ("slice-0", "slice-1"),
    lost: int | None = None,
    clock_jumps: float = 0.0,
    restarts: bool = False,
    found: bool | None = None,
) -> AttemptReport:
    """An attempt; slice `lost` has gone, and the time of day has been set anew before it."""
    whole = gang(*names) if names else None
    evidence = [
        HostEvidence(
            member.process_id,
            member.slice_index,
            member.host_index,
            member.slice_name,
            returned=kind is Kind.SUCCEEDED,
            lost="its agent has ended" if member.slice_index == lost else None,
            first_step=steps[0] if steps else None,
            step=steps[1] if steps else None,
            restarts=restarts,
        )
        for member in (whole.members if whole is not None else ())
    ]
    culprits = tuple(one.process_id for one in evidence if one.slice_index == lost)
    return AttemptReport(
        number=number,
        gang=whole,
        evidence=tuple(evidence),
        verdict=Verdict(kind, "" if kind is Kind.SUCCEEDED else f"cause of {number}", "", culprits),
        lease_seconds=LEASE,
        launch_seconds=LAUNCH if names else 0.0,
        run_seconds=run if names else 0.0,
        drain_seconds=drain,
        began_seconds=500.0 + began,
        began_unix_seconds=1_000_000.0 + began + clock_jumps,
        found_checkpoint=found,
    )


def test_a_run_that_succeeds_at_once() -> None:
    """All running is useful; leasing and launching are not."""
    ledger = make_ledger([report(1, Kind.SUCCEEDED, began=0, steps=(0, 100))])
    (entry,) = ledger.entries
    assert (entry.leasing, entry.launching, entry.running, entry.draining, entry.lost) == (1, 2, 10, 0, 0)
    assert (entry.lost_steps, ledger.lost_steps) == (0, 0)
    assert ledger.seconds == 13
    assert ledger.goodput == pytest.approx(10 / 13)


def test_steps_that_are_done_again_are_lost() -> None:
    """100 steps in 10 s, the last 30 of them done again."""
    ledger = make_ledger(
        [
            report(1, Kind.PREEMPTED, began=0, steps=(0, 100), lost=1),
            report(2, Kind.SUCCEEDED, began=15, steps=(70, 200), names=("slice-0", "slice-2")),
        ]
    )
    first, second = ledger.entries
    assert first.lost_slices == (1,)
    assert first.culprits == ("slice 1 host 0", "slice 1 host 1")
    assert (first.lost_steps, second.lost_steps, ledger.lost_steps) == (30, 0, 30)
    assert first.lost == pytest.approx(3)
    assert ledger.goodput == pytest.approx((7 + 10) / 28)


def test_steps_that_begin_anew_do_not_say_what_is_lost() -> None:
    """In each epoch: what has left a checkpoint for a later attempt is useful, what has left none is lost."""
    ledger = make_ledger(
        [
            report(1, Kind.PREEMPTED, began=0, steps=(0, 39), lost=0, restarts=True, found=False),
            report(2, Kind.PREEMPTED, began=15, steps=(0, 39), lost=0, restarts=True, found=True),
            report(3, Kind.PREEMPTED, began=30, steps=(0, 12), lost=0, found=False),
            report(4, Kind.PREEMPTED, began=45, steps=None, lost=0),
            report(5, Kind.SUCCEEDED, began=60, steps=(0, 39), restarts=True, found=True),
        ]
    )
    assert [entry.lost for entry in ledger.entries] == [0, 10, 0, 0, 0]
    assert [entry.lost_steps for entry in ledger.entries] == [None, None, None, None, 0]


def test_a_later_attempt_that_goes_further_back() -> None:
    """What was saved first and lost later is of no use either."""
    ledger = make_ledger(
        [
            report(1, Kind.PREEMPTED, began=0, steps=(0, 100), lost=0),
            report(2, Kind.PREEMPTED, began=20, steps=(90, 100), lost=0),
            report(3, Kind.SUCCEEDED, began=40, steps=(0, 100)),
        ]
    )
    assert [entry.lost_steps for entry in ledger.entries] == [100, 10, 0]
    assert ledger.goodput == pytest.approx(10 / 53)


def test_while_the_run_goes_on_the_last_loss_is_not_known() -> None:
    """Until the next attempt reports its first step all of it counts as lost."""
    ledger = make_ledger([report(1, Kind.PREEMPTED, began=0, steps=(0, 100), lost=0)])
    assert ledger.entries[0].lost_steps is None
    assert ledger.entries[0].lost == 10
    assert ledger.goodput == 0


def test_an_attempt_that_could_not_start_between_two() -> None:
    """It reports no step; the one after it tells what the first has lost."""
    ledger = make_ledger(
        [
            report(1, Kind.PREEMPTED, began=0, steps=(0, 50), lost=0),
            report(2, Kind.INFRASTRUCTURE, began=20, run=0.0, lost=0),
            report(3, Kind.SUCCEEDED, began=30, steps=(40, 60)),
        ]
    )
    assert [entry.lost_steps for entry in ledger.entries] == [10, None, 0]


def test_a_drain_is_the_end_of_running() -> None:
    """Its steps count like others."""
    ledger = make_ledger(
        [
            report(1, Kind.PREEMPTED, began=0, drain=4, steps=(0, 10), lost=0),
            report(2, Kind.SUCCEEDED, began=13, steps=(10, 20)),
        ]
    )
    assert (ledger.entries[0].running, ledger.entries[0].draining, ledger.entries[0].lost) == (6, 4, 0)
    assert ledger.goodput == pytest.approx(20 / 26)


def test_no_slices_at_all() -> None:
    """Nothing has run."""
    ledger = make_ledger([report(1, Kind.UNPROVISIONED, began=0, names=())])
    assert ledger.goodput is None
    assert make_ledger([]).goodput is None


@given(
    st.lists(
        st.tuples(
            st.sampled_from([Kind.PREEMPTED, Kind.INFRASTRUCTURE, Kind.USER_ERROR]),
            st.floats(0, 1e5),
            st.one_of(st.none(), st.tuples(st.integers(0, 1000), st.integers(0, 1000))),
            st.floats(0, 1e5),
        ),
        min_size=1,
        max_size=20,
    ),
    st.booleans(),
)
def test_goodput_is_a_share(attempts: list[tuple[Kind, float, tuple[int, int] | None, float]], succeeded: bool) -> None:
    """Whatever is reported: between nothing and everything; nobody loses more than they ran."""
    reports, began = [], 0.0
    for number, (kind, run, span, drain) in enumerate(attempts, 1):
        last = succeeded and number == len(attempts)
        steps = None if span is None else (min(span), max(span))
        kind = Kind.SUCCEEDED if last else kind
        reports.append(report(number, kind, began=began, run=run, steps=steps, drain=drain, lost=None if last else 0))
        began += run + LEASE + LAUNCH
    ledger = make_ledger(reports)
    assert ledger.goodput is not None
    assert 0 <= ledger.goodput <= 1
    for entry in ledger.entries:
        assert -1e-6 <= entry.lost <= entry.running + entry.draining + 1e-6


def test_other_sizes_show_and_count_for_themselves() -> None:
    """Four slices, then two, then four again: the ledger says so, and goodput is that of the slices that there were."""
    four, two = tuple(f"slice-{n}" for n in range(4)), ("slice-0", "slice-1")
    ledger = make_ledger(
        (
            report(1, Kind.PREEMPTED, began=0, run=7, steps=(0, 10), names=four, lost=3),
            report(2, Kind.RESIZED, began=10, run=7, steps=(10, 20), names=two),
            report(3, Kind.SUCCEEDED, began=20, run=7, steps=(20, 30), names=four),
        )
    )
    assert [entry.slices_before for entry in ledger.entries] == [None, 4, 2]
    assert [entry.lost_steps for entry in ledger.entries] == [0, 0, 0]
    assert ledger.goodput == pytest.approx(0.7)


@pytest.mark.parametrize("jump", [0.0, -3_600.0, 365 * 86_400.0])
def test_a_clock_that_is_set_anew_changes_no_length(jump: float) -> None:
    """An hour back, or a year on (a machine without a clock, at its first NTP answer), between two attempts."""
    ledger = make_ledger(
        [
            report(1, Kind.PREEMPTED, began=0, steps=(0, 100), lost=0),
            report(2, Kind.PREEMPTED, began=20, steps=(100, 200), lost=0, clock_jumps=jump),
            report(3, Kind.SUCCEEDED, began=40, steps=(200, 300), clock_jumps=jump),
        ]
    )
    assert [entry.began for entry in ledger.entries] == [0, 20, 40]
    assert ledger.seconds == 53
    assert ledger.goodput == pytest.approx(30 / 53)
    assert ledger.began_unix_seconds == 1_000_000.0


def test_an_attempt_without_slices_is_as_long_as_it_was() -> None:
    """By the clock that does not jump."""
    one = AttemptReport.without_slices(1, "none", began_seconds=50.0, began_unix_seconds=9e9, now_seconds=57.5)
    assert (one.lease_seconds, make_ledger([one]).seconds) == (7.5, 7.5)
