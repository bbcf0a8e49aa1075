"""What a task run holds from attempt to attempt when several numbers of slices will do."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest

from prefect_tpu import LocalFleet, TpuMultisliceRunner
from prefect_tpu.cluster import inventory, session, tpu
from prefect_tpu.leases.slices import QUEUE, GangSlices
from tests.waiting import eventually

SHAPE = tpu.resolve_shape("v4", "2x2x1")
NAMES = ("slice-0", "slice-1", "slice-2")


@pytest.fixture(scope="module")
def fleet() -> Iterator[LocalFleet]:
    """Three slices of one host."""
    with LocalFleet(slices=3, topology="2x2x1") as running:
        yield running


class Held:
    """The slices of one task run, and what was said about them."""

    def __init__(self, fleet: LocalFleet) -> None:
        options: dict[str, Any] = {"num_slices": [1, 2, 3], "resize_after_seconds": 1.5, "lease_timeout_seconds": 4}
        runner: TpuMultisliceRunner[Any] = TpuMultisliceRunner(pool=fleet, **options)
        say: Any = logging.getLogger(__name__)
        plan = runner.resolve().plan(timeout_seconds=None, checkpoint_name="x", say=say)
        self.slices = GangSlices(fleet, plan.options, plan.tuning, (), "run", lambda: False)
        self.said: list[str] = []

    def complete(self) -> list[str]:
        """Names of the slices for the next attempt, in gang order."""
        return [one.name for one in self.slices.complete(SHAPE, self.said.append).gang.slices]


@pytest.fixture
def held(fleet: LocalFleet) -> Iterator[Held]:
    """Of all three slices, with a connection that is in use; afterwards all are up and free."""
    all_free(fleet)
    session.hold()
    one = Held(fleet)
    yield one
    one.slices.release()
    session.release()
    all_free(fleet)


def all_free(fleet: LocalFleet) -> None:
    for name in NAMES:
        fleet.restore(name)
    eventually(lambda: len(inventory.free_slices(SHAPE)) == len(NAMES), "all slices are free", 30)


def test_fewer_slices_after_a_loss_and_more_again(held: Held, fleet: LocalFleet) -> None:
    """The others keep their places; what comes back is only taken when the attempt has left for it."""
    assert held.complete() == list(NAMES)
    fleet.preempt("slice-1")
    held.slices.drop({"slice-1"})
    assert held.complete() == ["slice-0", "slice-2"]
    assert "no replacement within 1.5 s (resize_after_seconds): it goes on with 2 slices" in held.said[-1]
    assert held.slices.room(SHAPE) == 0
    fleet.restore("slice-1")
    eventually(lambda: held.slices.room(SHAPE) == 3, "the slice that is back is seen", 30)
    assert held.complete() == ["slice-0", "slice-2"]
    held.slices.grow()
    assert held.complete() == ["slice-0", "slice-2", "slice-1"]


def test_some_of_the_lost_slices_are_replaced(held: Held, fleet: LocalFleet) -> None:
    """Two are lost, one comes back in time: it goes on with two."""
    assert held.complete() == list(NAMES)
    for name in ("slice-0", "slice-1"):
        fleet.preempt(name)
    held.slices.drop({"slice-0", "slice-1"})
    fleet.restore("slice-1")
    eventually(lambda: inventory.free_slices(SHAPE), "one is back", 30)
    assert held.complete() == ["slice-1", "slice-2"]
    assert "not every slice was replaced" in held.said[-1]


def test_somebody_else_has_taken_what_was_free(held: Held, fleet: LocalFleet) -> None:
    """The run goes on with what it has, and says why; while another gang waits nothing is offered to it."""
    fleet.preempt("slice-2")
    assert len(held.complete()) == 2
    fleet.restore("slice-2")
    eventually(lambda: held.slices.room(SHAPE) == 3, "the slice that is back is seen", 30)
    other = QUEUE.acquire(
        SHAPE, 1, timeout_seconds=20, fleet="the fleet", cancelled=lambda: False, say=lambda _: None,
        say_interval_seconds=1,
    )  # fmt: skip
    held.slices.grow()
    assert len(held.complete()) == 2
    assert "taken by somebody else: it goes on with 2" in held.said[-1]
    other.release()
