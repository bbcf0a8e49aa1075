"""Which notices stand, and what follows from them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from prefect_tpu.core.notices import Notices, Source, Standing


def notice(process_id: int, source: Source = "preemption", deadline: float | None = None) -> Standing:
    return Standing(process_id, f"slice-{process_id // 2}", source, f"{source} {process_id}", deadline)


def standing(*notices: Standing) -> Notices:
    state = Notices()
    for one in notices:
        state = state.add(one)
    return state


def test_nothing_drains_without_a_notice() -> None:
    assert (Notices().draining, Notices().deadline_seconds, Notices().text("slice-0")) == (frozenset(), None, "")


def test_the_earliest_deadline_of_all_wins() -> None:
    """Of several on one host as of several hosts; one without a deadline takes none away."""
    state = standing(notice(0), notice(0, "maintenance", 60), notice(0, "drain", 30), notice(3, deadline=45), notice(2))
    assert state.deadline_seconds == 30
    assert state.draining == {"slice-0", "slice-1"}


def test_one_that_is_taken_back_leaves_the_others() -> None:
    """The next earliest deadline is the gang's then, and a slice drains as long as one of its hosts does."""
    state = standing(notice(0, deadline=30), notice(0, "maintenance", 60), notice(1, deadline=40))
    state = state.take_back(0, "preemption")
    assert (state.deadline_seconds, state.draining) == (40, {"slice-0"})
    assert state.text("slice-0") == "maintenance 0"
    state = state.take_back(1, "preemption")
    assert (state.deadline_seconds, state.draining) == (60, {"slice-0"})


def test_when_the_only_one_is_taken_back_nothing_drains() -> None:
    assert standing(notice(0, deadline=30)).take_back(0, "preemption") == Notices()


def test_one_that_does_not_stand_cannot_be_taken_back() -> None:
    """Of another host or source, or twice."""
    state = standing(notice(0, deadline=30))
    assert state.take_back(1, "preemption").take_back(0, "maintenance") == state


def test_the_same_one_again_stands_once() -> None:
    """With the earlier of both deadlines, and taken back at once."""
    state = standing(notice(0, "drain"), notice(0, "drain", 50), notice(0, "drain", 70), notice(0, "drain"))
    assert state.deadline_seconds == 50
    assert state.take_back(0, "drain") == Notices()


some = st.builds(
    notice, st.integers(0, 3), st.sampled_from(["preemption", "maintenance", "drain"]), st.none() | st.floats(1, 100)
)


@given(st.lists(some), st.lists(some))
def test_what_came_and_went_leaves_nothing(first: list[Standing], second: list[Standing]) -> None:
    """The deadline is that of one that stands, and all taken back is as if none had come."""
    state = standing(*first, *second)
    deadlines = [one.deadline_seconds for one in (*first, *second) if one.deadline_seconds is not None]
    assert state.deadline_seconds == min(deadlines, default=None)
    for one in (*first, *second):
        state = state.take_back(one.process_id, one.source)
    assert state == Notices()


def test_each_slice_is_due_at_its_own_deadline() -> None:
    """The earliest of its hosts'; one without a deadline never is."""
    state = standing(notice(0, deadline=30), notice(1, deadline=20), notice(2, deadline=60), notice(4))
    assert [state.due(now) for now in (19, 20, 59)] == [frozenset(), {"slice-0"}, {"slice-0"}]
    assert state.due(1e9) == {"slice-0", "slice-1"}
