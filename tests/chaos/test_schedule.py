"""Thousands of attempts with faults at random on a fleet that is only numbers: leases, verdicts and budgets hold.

What a fault leaves on each host is what the suite over real slices sees; nothing here needs Ray.
"""

from __future__ import annotations

import os
import random
from dataclasses import dataclass, field, replace

import pytest

from prefect_tpu.core.attempt import HostFacts, OutsideFacts, Watch
from prefect_tpu.core.evidence import HostEvidence
from prefect_tpu.core.kinds import Kind
from prefect_tpu.core.messages import Raised
from prefect_tpu.core.retry import Limits, Spent, decide_retry
from prefect_tpu.core.verdict import judge

SLICES, HOSTS_PER_SLICE, GANG_SLICES = 5, 2, 3
RUNS, LONGEST_RUN = 200, 60
RETRIES = 4
LIMITS = Limits(max_infrastructure_failures=6, max_preemptions_without_progress=8)
PEER_GONE = Raised("function", "jaxlib._jax.XlaRuntimeError", "Socket closed", "")
FAULTS: dict[str, Kind] = {
    "nothing": Kind.SUCCEEDED,
    "slice gone": Kind.PREEMPTED,
    "slice drained": Kind.PREEMPTED,
    "host gone": Kind.INFRASTRUCTURE,
    "agent gone": Kind.INFRASTRUCTURE,
    "hang": Kind.INFRASTRUCTURE,
    "raises": Kind.USER_ERROR,
    "crashes": Kind.CRASHED_PROCESS,
    "cannot import": Kind.FATAL,
}
WEIGHTS = (2, 8, 5, 4, 3, 2, 3, 2, 0.2)


@dataclass
class NumbersFleet:
    """Slices that are free, leased or gone; a slice that is gone comes back some attempts later."""

    dice: random.Random
    free: set[int] = field(default_factory=lambda: set(range(SLICES)))
    leased: list[int | None] = field(default_factory=list)
    gone: set[int] = field(default_factory=set)

    def complete(self) -> list[int]:
        """Keep what is held, in its place, and lease what is missing; wait until something comes back."""
        self.leased = self.leased or [None] * GANG_SLICES
        while len(self.free) < self.leased.count(None):
            back = self.dice.choice(sorted(self.gone))
            self.gone.remove(back)
            self.free.add(back)
        for place, held in enumerate(self.leased):
            if held is None:
                self.leased[place] = chosen = self.dice.choice(sorted(self.free))
                self.free.remove(chosen)
        assert None not in self.leased
        return [one for one in self.leased if one is not None]

    def lose(self, one: int) -> None:
        """A leased slice goes."""
        self.leased[self.leased.index(one)] = None
        self.gone.add(one)

    def release(self) -> None:
        """All that is held."""
        self.free |= {one for one in self.leased if one is not None}
        self.leased = []

    def check(self) -> None:
        """Every slice is in one place."""
        held = [one for one in self.leased if one is not None]
        assert len(held) == len(set(held))
        assert sorted([*held, *self.free, *self.gone]) == list(range(SLICES))


def evidence(dice: random.Random, fault: str, leased: list[int], step: int) -> tuple[list[HostEvidence], set[int]]:
    """What is seen of each host after this fault, in the order that it arrives in; the slices that are lost."""
    victim = dice.randrange(GANG_SLICES * HOSTS_PER_SLICE)
    bad_slice = victim // HOSTS_PER_SLICE
    found = []
    lost = {leased[bad_slice]} if fault in ("slice gone", "slice drained", "host gone", "agent gone") else set()
    for process_id in range(GANG_SLICES * HOSTS_PER_SLICE):
        slice_index, host_index = divmod(process_id, HOSTS_PER_SLICE)
        one = HostEvidence(process_id, slice_index, host_index, f"slice-{leased[slice_index]}", step=step)
        mine, me = slice_index == bad_slice, process_id == victim
        match fault:
            case "nothing":
                one = replace(one, returned=True)
            case "slice gone" if mine:
                one = replace(one, lost="its agent has ended", gone=True)
            case "slice drained" if mine:
                one = replace(one, notice="Ray drains it", stopped_by_us=True)
            case "host gone" if me:
                one = replace(one, lost="its agent has ended", gone=True)
            case "agent gone" if me:
                one = replace(one, lost="its agent has ended")
            case "hang" if me:
                one = replace(one, hung=True, stopped_by_us=True)
            case "raises" if me:
                one = replace(one, raised=Raised("function", "ValueError", dice.choice(["x", "preempted"]), ""))
            case "crashes" if me:
                one = replace(one, signal=dice.choice([9, 11]))
            case "cannot import" if me:
                one = replace(one, raised=Raised("preload", "ModuleNotFoundError", "no such module", ""))
            case _:  # a bystander: waits, has returned, or fails because its peer has gone
                bystanders = [{"stopped_by_us": True}, {"returned": True}]
                if fault != "hang":
                    bystanders += [{"raised": PEER_GONE}, {"signal": 6}]
                one = replace(one, **dice.choice(bystanders))  # type: ignore[arg-type]
        found.append(one)
    dice.shuffle(found)
    return found, lost


def ended(fault: str, found: list[HostEvidence]) -> Kind | None:
    """What the attempt was ended with; None: the evidence decides. It runs before, and ends within a window."""
    watch = Watch(0.0, None, 300.0, 60.0, 1.0, 0.2)
    running = [HostFacts(entered=True)] * len(found)
    outside = OutsideFacts(draining=fault == "slice drained")
    assert watch.next(running, outside, 1.0) is None
    hosts = [
        HostFacts(
            returned=one.returned,
            entered=True,
            failed=one.raised is not None or one.lost is not None or one.crashed,
            failed_clearly=one.lost is not None or (one.raised is not None and not one.raised_by_peer_loss),
            gone=bool(one.notice),
        )
        for one in found
    ]
    outside = replace(outside, hung=fault == "hang")
    answer = watch.next(hosts, outside, 2.0) or watch.next(hosts, outside, 3.0) or watch.next(hosts, outside, 62.0)
    assert answer in ("judge", Kind.SUCCEEDED)
    return None if answer == "judge" else Kind(answer)


def play(dice: random.Random) -> int:
    """One run to its end; how many attempts it had."""
    fleet, spent, step, best = NumbersFleet(dice), Spent(), 0, -1
    for number in range(1, LONGEST_RUN + 1):
        leased = fleet.complete()
        fleet.check()
        fault = dice.choices(list(FAULTS), WEIGHTS)[0]
        step += dice.choice([0, 0, 10])
        found, lost = evidence(dice, fault, leased, step)
        verdict = judge(ended(fault, found), found)
        assert verdict.kind is FAULTS[fault], (fault, verdict)
        assert not set(verdict.culprits) & set(verdict.collateral)
        before, progressed = spent, step > best
        best = max(best, step)
        spent = spent.charge(verdict, progressed=progressed)
        charged = [
            spent.preemptions - before.preemptions,
            spent.infrastructure - before.infrastructure,
            spent.failures - before.failures,
        ]
        assert sorted(charged) == ([0, 0, 0] if verdict.charge == "nothing" else [0, 0, 1])
        for one in lost:
            fleet.lose(one)
        fleet.check()
        decision = decide_retry(verdict, spent, LIMITS)
        again = decision.retry if decision.retry is not None else spent.failures <= RETRIES
        if not again:
            fleet.release()
            fleet.check()
            _ended_for_a_reason(verdict.kind, spent)
            return number
    return LONGEST_RUN


def _ended_for_a_reason(kind: Kind, spent: Spent) -> None:
    if kind is Kind.PREEMPTED:
        assert spent.preemptions_in_a_row == LIMITS.max_preemptions_without_progress
    elif kind is Kind.INFRASTRUCTURE:
        assert spent.infrastructure == LIMITS.max_infrastructure_failures + 1
    elif kind in (Kind.USER_ERROR, Kind.CRASHED_PROCESS):
        assert spent.failures == RETRIES + 1
    else:
        assert kind in (Kind.SUCCEEDED, Kind.FATAL)


@pytest.mark.parametrize("part", range(4))
def test_thousands_of_attempts(part: int) -> None:
    """The seed is printed."""
    seed = int(os.environ.get("CHAOS_SEED", random.SystemRandom().randrange(10**6)))
    print(f"CHAOS_SEED={seed}")
    dice = random.Random(seed + part)
    attempts = sum(play(dice) for _ in range(RUNS))
    assert attempts > RUNS
