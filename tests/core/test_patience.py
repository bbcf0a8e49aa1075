"""How long a gang waits for slices: time behind gangs of its own process does not count."""

from __future__ import annotations

import pytest

from prefect_tpu.core.patience import Patience, Waiter


def test_only_time_that_nobody_of_this_process_stands_in_the_way_counts() -> None:
    """Four seconds of its own and an hour behind others leave it two of six."""
    patience = Patience(6, 100.0)
    patience.look(104.0, behind=False)
    patience.look(3_704.0, behind=True)
    assert (patience.left_seconds, patience.behind_seconds, patience.over) == (2, 3_600, False)
    patience.look(3_706.0, behind=False)
    assert patience.over


def test_who_waits_no_time_at_all_does_not_wait_behind_others_either() -> None:
    """lease_timeout_seconds=0: now or never."""
    patience = Patience(0, 100.0)
    patience.look(100.0, behind=True)
    assert patience.over


def test_a_clock_that_always_runs() -> None:
    """For a gang that holds some slices while it waits for others: two of them could wait for each other."""
    patience = Patience(6, 100.0, stops=False)
    patience.look(107.0, behind=True)
    assert patience.over


@pytest.mark.parametrize(
    ("waiter", "there", "wants"),
    [
        (Waiter((2,)), 3, [2]),
        (Waiter((5,)), 3, [5]),
        (Waiter((1, 2, 4)), 3, [4]),
        (Waiter((1, 2, 4), only_there=True), 3, [2]),
        (Waiter((4, 8), only_there=True), 3, [4]),
        (Waiter((1, 2, 4), only_there=True), 0, [1]),
        (Waiter((1, 2, 4), only_there=True, any_size=True), 3, [4, 2, 1]),
    ],
)
def test_which_numbers_it_takes(waiter: Waiter, there: int, wants: list[int]) -> None:
    """The largest that there can be, at first; then any of them, the largest first."""
    assert waiter.takes(there) == wants


@pytest.mark.parametrize(
    ("position", "free", "own", "behind"),
    [(0, 0, 2, True), (3, 0, 2, True), (1, 2, 0, True), (0, 1, 0, False), (0, 2, 2, False), (2, 0, 0, False)],
)
def test_behind_whom(position: int, free: int, own: int, behind: bool) -> None:
    """Behind its siblings is who could have two slices if they had none of them."""
    assert Waiter((2,)).behind_siblings(position=position, free=free, own=own, there=4) is behind
