"""Slices are reserved whole, all or none, by one gang at a time."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import ray
from ray.util.placement_group import placement_group_table

from prefect_tpu import GangCancelledError, LocalFleet, SliceUnavailableError
from prefect_tpu.cluster import inventory, tpu
from prefect_tpu.core.gang import Host, Slice
from prefect_tpu.fleets import autoscaler
from prefect_tpu.leases import lease as lease_module
from prefect_tpu.leases.lease import GangLease
from prefect_tpu.leases.queue import LeaseQueue

SHAPE = tpu.resolve_shape("v4", "2x2x2")


def acquire(queue: LeaseQueue, num_slices: int, timeout_seconds: float = 20) -> GangLease:
    return queue.acquire(
        SHAPE, num_slices, timeout_seconds=timeout_seconds, fleet="the fleet", cancelled=lambda: False,
        say=lambda text: None, say_interval_seconds=1,
    )  # fmt: skip


def live_groups() -> int:
    return sum(one["state"] in ("CREATED", "PENDING") for one in placement_group_table().values())


def free() -> list[str]:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and len(inventory.free_slices(SHAPE)) < 2:
        time.sleep(0.1)
    return [one.name for one in inventory.free_slices(SHAPE)]


def test_a_lease_holds_every_chip_and_the_head(fleet: LocalFleet) -> None:
    """While it is held nothing of the slice is free; afterwards all of it is."""
    lease = acquire(LeaseQueue(), 1)
    assert [one.name for one in lease.gang.slices] == ["slice-0"]
    left = ray.available_resources()
    assert left["TPU"] == 8
    assert left["TPU-v4-16-head"] == 1
    assert [one.name for one in inventory.free_slices(SHAPE)] == ["slice-1"]
    lease.release()
    lease.release()
    assert free() == ["slice-0", "slice-1"]
    assert live_groups() == 0


def test_too_many_slices_end_in_a_message_and_hold_nothing(fleet: LocalFleet) -> None:
    """SliceUnavailableError after the deadline."""
    with pytest.raises(SliceUnavailableError, match=r"No 3 free v4 2x2x2 slices within 0\.5 s"):
        acquire(LeaseQueue(), 3, timeout_seconds=0.5)
    assert free() == ["slice-0", "slice-1"]


def test_a_size_that_can_never_be_there_is_not_waited_for(fleet: LocalFleet) -> None:
    """Four slices on a fleet of two: the largest that there can be is taken at once, and nothing is said of a wait."""
    said: list[str] = []
    lease = LeaseQueue().acquire(
        SHAPE, 4, fewer=(1, 2), timeout_seconds=60, fleet="the fleet", cancelled=lambda: False, say=said.append,
        say_interval_seconds=1, size_wait_seconds=60,
    )  # fmt: skip
    assert [one.name for one in lease.gang.slices] == ["slice-0", "slice-1"]
    assert not any("waiting" in one for one in said)
    lease.release()
    assert free() == ["slice-0", "slice-1"]


def test_fewer_slices_will_do_after_the_wait_for_the_largest(fleet: LocalFleet) -> None:
    """Of the acceptable numbers the largest that is free, long before the deadline; it says so before and after."""
    queue, said = LeaseQueue(), list[str]()
    other = acquire(LeaseQueue(), 1)
    lease = queue.acquire(
        SHAPE, 2, fewer=(1,), timeout_seconds=60, fleet="the fleet", cancelled=lambda: False, say=said.append,
        say_interval_seconds=1, size_wait_seconds=2,
    )  # fmt: skip
    assert [one.name for one in lease.gang.slices] == ["slice-1"]
    assert "for 2 s (size_wait_seconds), then 1 will do" in said[0]
    assert "2 slices were not free within 2 s (size_wait_seconds): it takes 1" in said[-1]
    lease.release()
    other.release()
    assert free() == ["slice-0", "slice-1"]


def test_who_waits_for_gangs_of_its_own_process_waits_as_long_as_they_take(fleet: LocalFleet) -> None:
    """Six gangs of one slice on two slices, each for longer than the lease's deadline: all of them run."""
    queue, done, said = LeaseQueue(), list[int](), list[str]()

    def run(number: int) -> None:
        lease = queue.acquire(
            SHAPE, 1, timeout_seconds=1, fleet="the fleet", cancelled=lambda: False, say=said.append,
            say_interval_seconds=0.5, who=f"train-{number}", behind_siblings_counts=False,
        )  # fmt: skip
        time.sleep(1.2)
        lease.release()
        done.append(number)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
        time.sleep(0.05)
    for thread in threads:
        thread.join()
    assert sorted(done) == list(range(6))
    assert any("held by train-0 for" in one and "train-1 for" in one for one in said)
    assert any("which does not count" in one for one in said)
    assert free() == ["slice-0", "slice-1"]


def test_slices_of_another_process_are_not_waited_for_without_end(fleet: LocalFleet) -> None:
    """What this process does not hold counts, whoever is ahead in its queue; the message says how long it waited."""
    queue = LeaseQueue()
    other = acquire(LeaseQueue(), 1)  # another queue is as another process
    with pytest.raises(SliceUnavailableError, match=r"within 0\.5 s \(lease_timeout_seconds\)"):
        queue.acquire(
            SHAPE, 2, timeout_seconds=0.5, fleet="the fleet", cancelled=lambda: False, say=lambda _: None,
            say_interval_seconds=1, behind_siblings_counts=False,
        )  # fmt: skip
    other.release()
    assert free() == ["slice-0", "slice-1"]


def test_too_few_slices_are_told_soon(fleet: LocalFleet) -> None:
    """A host may join, so it waits; but it says at once that there are not so many."""
    said: list[str] = []
    with pytest.raises(SliceUnavailableError, match="there are 2 of this kind"):
        LeaseQueue().acquire(
            SHAPE, 3, timeout_seconds=1.5, fleet="the fleet", cancelled=lambda: False, say=said.append,
            say_interval_seconds=60,
        )  # fmt: skip
    assert "there are 2 of this kind, free or not: it waits for more to join" in said[0]


def test_a_lease_goes_on_with_fewer_slices_and_gets_more_again(fleet: LocalFleet) -> None:
    """What is dropped is free for others; those that stay keep their order."""
    queue = LeaseQueue()
    lease = acquire(queue, 2)
    lease.drop(["slice-0"])
    lease.shrink(1)
    assert [one.name for one in lease.gang.slices] == ["slice-1"]
    assert lease.missing == 0
    lease.extend(acquire(queue, 1))
    assert [one.name for one in lease.gang.slices] == ["slice-1", "slice-0"]
    lease.release()
    assert free() == ["slice-0", "slice-1"]
    assert live_groups() == 0


def test_half_a_reservation_is_given_back(fleet: LocalFleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """If one of two slices cannot be had after all, the other is not kept while it waits."""
    real = inventory.fitting(SHAPE)
    ghost = Slice("slice-9", (Host("f" * 56, 0, "127.0.0.1", 4), Host("e" * 56, 1, "127.0.0.1", 4)))
    monkeypatch.setattr(inventory, "fitting", lambda shape: [real[0], replace(real[0], name="slice-9", slice=ghost)])
    with pytest.raises(SliceUnavailableError):
        acquire(LeaseQueue(), 2, timeout_seconds=0.5)
    monkeypatch.undo()
    assert live_groups() == 0
    assert free() == ["slice-0", "slice-1"]


def test_a_demand_that_is_met_makes_room_for_the_lease(fleet: LocalFleet) -> None:
    """It is put a second after the gang began to wait, goes when it is placed, and does not come back at once."""
    other, demand = acquire(LeaseQueue(), 1), autoscaler.AutoscalerDemand(SHAPE, "run")
    try:
        demand.waiting(1)
        demand.check()
        assert live_groups() == 1
        time.sleep(autoscaler.SETTLE_SECONDS)
        demand.check()
        deadline = time.monotonic() + 10
        while inventory.free_slices(SHAPE) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert inventory.free_slices(SHAPE) == []
        demand.check()
        demand.check()
        assert live_groups() == 1
        lease = acquire(LeaseQueue(), 1)
        lease.release()
    finally:
        demand.withdraw()
        demand.withdraw()
        other.release()
    assert free() == ["slice-0", "slice-1"]


def test_a_slice_that_lost_a_host_is_refused(fleet: LocalFleet) -> None:
    """A partial slice is never leased."""
    fleet.preempt("slice-0/1")
    lease = acquire(LeaseQueue(), 1)
    assert [one.name for one in lease.gang.slices] == ["slice-1"]
    lease.release()
    with pytest.raises(SliceUnavailableError, match="1 of 2 hosts alive"):
        acquire(LeaseQueue(), 2, timeout_seconds=0.5)
    fleet.restore("slice-0")
    lease = acquire(LeaseQueue(), 2)
    lease.release()


def groups_of(lease: GangLease) -> list[str]:
    return [one.group.id.hex() for one in lease.leases]


def test_the_next_gang_takes_over_what_an_ended_one_leaves(fleet: LocalFleet) -> None:
    """The very same reservations, for as many slices as it wants; the others are given back a little later."""
    queue = LeaseQueue()
    first = acquire(queue, 2)
    groups = groups_of(first)
    first.hand_over(5)
    assert inventory.free_slices(SHAPE) == []
    second = acquire(queue, 1)
    assert groups_of(second) == groups[:1]
    second.hand_over(0.1)
    deadline = time.monotonic() + 10
    while live_groups() == 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert live_groups() == 1
    third = acquire(queue, 1)
    assert groups_of(third) == groups[1:]
    third.release()
    assert free() == ["slice-0", "slice-1"]
    assert live_groups() == 0


def test_what_is_left_for_the_next_gang_is_given_back_at_the_end(fleet: LocalFleet) -> None:
    """A queue that closes keeps nothing, now or later."""
    queue = LeaseQueue()
    kept, later = acquire(queue, 1), acquire(queue, 1)
    kept.hand_over(60)
    queue.close()
    assert live_groups() == 1
    later.hand_over(60)
    assert live_groups() == 0
    assert free() == ["slice-0", "slice-1"]


def test_slices_are_not_handed_on_for_ever(fleet: LocalFleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other processes get their turn: an old lease is given back at once."""
    monkeypatch.setattr(lease_module, "LONGEST_HAND_OVER_SECONDS", 0.0)
    lease = acquire(LeaseQueue(), 1)
    lease.hand_over(60)
    assert live_groups() == 0


def test_a_slice_that_lost_a_host_is_not_handed_over(fleet: LocalFleet) -> None:
    """The next gang gets another one."""
    queue = LeaseQueue()
    acquire(queue, 1).hand_over(60)
    fleet.preempt("slice-0/1")
    lease = acquire(queue, 1)
    assert [one.name for one in lease.gang.slices] == ["slice-1"]
    lease.release()
    queue.close()
    fleet.restore("slice-0")
    assert free() == ["slice-0", "slice-1"]


def test_first_come_first_served(fleet: LocalFleet) -> None:
    """A gang that wants both slices is not overtaken by one that came later and wants one."""
    queue = LeaseQueue()
    held = acquire(queue, 1)
    order: list[str] = []

    def wait(name: str, num_slices: int) -> None:
        lease = acquire(queue, num_slices)
        order.append(name)
        time.sleep(0.3)
        lease.release()

    threads = [threading.Thread(target=wait, args=one) for one in (("both", 2), ("one", 1))]
    for thread in threads:
        thread.start()
        time.sleep(0.3)
    assert order == []
    held.release()
    for thread in threads:
        thread.join()
    assert order == ["both", "one"]


def test_who_wants_more_than_there_is_holds_nobody_up(fleet: LocalFleet) -> None:
    """A gang of three slices on a fleet of two waits; one of one slice that came later runs meanwhile."""
    queue = LeaseQueue()
    failed: list[str] = []

    def wait_for_three() -> None:
        try:
            acquire(queue, 3, timeout_seconds=4)
        except SliceUnavailableError as error:
            failed.append(str(error))

    thread = threading.Thread(target=wait_for_three)
    thread.start()
    time.sleep(0.5)
    acquire(queue, 1, timeout_seconds=3).release()
    assert not failed
    thread.join()
    assert failed


def test_a_wait_can_be_cancelled(fleet: LocalFleet) -> None:
    """The wait ends at once, and the next in line moves up."""
    queue = LeaseQueue()
    with pytest.raises(GangCancelledError):
        queue.acquire(
            SHAPE, 5, timeout_seconds=60, fleet="the fleet", cancelled=lambda: True, say=lambda text: None,
            say_interval_seconds=1,
        )  # fmt: skip
    acquire(queue, 2, timeout_seconds=5).release()


RACER = """
import sys, time
from prefect_tpu import RayFleet
from prefect_tpu.cluster import tpu
from prefect_tpu.leases.queue import LeaseQueue

RayFleet(sys.argv[1]).connect()
queue, shape = LeaseQueue(), tpu.resolve_shape("v4", "2x2x2")
for _ in range(4):
    lease = queue.acquire(shape, 2, timeout_seconds=60, fleet="", cancelled=lambda: False, say=lambda text: None,
                          say_interval_seconds=60)
    with open(sys.argv[2], "a") as file:
        began = time.time()
        time.sleep(0.3)
        print(began, time.time(), file=file)
    lease.release()
"""


@pytest.mark.slow
def test_two_processes_race_for_both_slices(fleet: LocalFleet, tmp_path: Path) -> None:
    """Each gets both slices four times, never at the same time, and neither starves holding half."""
    command = [sys.executable, "-c", RACER, fleet.address, str(tmp_path / "held")]
    racers = [subprocess.Popen(command, env=os.environ | fleet.access()) for _ in range(2)]
    assert [racer.wait(90) for racer in racers] == [0, 0]
    held = sorted(tuple(map(float, line.split())) for line in (tmp_path / "held").read_text().splitlines())
    assert len(held) == 8
    assert all(earlier[1] <= later[0] for earlier, later in pairwise(held))
    assert free() == ["slice-0", "slice-1"]
