"""What is created and deleted, decided in microseconds by a clock that tests set."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefect_tpu.provision.plan import (
    DEAD,
    LIVE,
    UP,
    Memory,
    Resource,
    Rules,
    View,
    asked_anew,
    decide,
    refused,
)
from prefect_tpu.provision.problems import Cause, Problem
from prefect_tpu.provision.prospects import describe, hopeless

A, B = "us-east5-a", "us-east5-b"
KIND = "v4-2x2x1"
RULES = Rules(idle_release_seconds=300, valid_until_seconds=1_800)


@dataclass
class Story:
    """A cloud on paper: what there is, and what was decided."""

    zones: tuple[str, ...] = (A, B)
    rules: Rules = RULES
    now: float = 1_000.0
    wanted: int = 0
    there: dict[str, Resource] = field(default_factory=dict)
    ray: dict[str, bool] | None = field(default_factory=dict)
    unread: tuple[str, ...] = ()
    memory: Memory = field(default_factory=Memory)
    made: int = 0

    def has(self, state: str, zone: str = A, *, busy: bool | None = None, problem: Problem | None = None) -> str:
        """One more; `busy` is None for one that is not whole in Ray."""
        self.made += 1
        name = f"slice-{self.made}"
        self.there[name] = Resource(zone, name, state, KIND, problem=problem)
        if busy is not None and self.ray is not None:
            self.ray[name] = busy
        return name

    def becomes(self, name: str, state: str, **changed: Any) -> None:
        self.there[name] = replace(self.there[name], state=state, **changed)

    @property
    def view(self) -> View:
        wanted = {KIND: self.wanted} if self.wanted else {}
        return View(self.now, tuple(self.there.values()), wanted, self.zones, self.unread, self.ray)

    def decide(self, after: float = 0.0) -> tuple[list[str], list[str]]:
        """Zones of what is created, ids of what is deleted. Nothing of it happens by itself."""
        self.now += after
        decision = decide(self.view, self.memory, self.rules)
        self.memory = decision.memory
        return [one.zone for one in decision.creates], [one.resource.id for one in decision.deletes]

    def refuse(self, zone: str, cause: Cause) -> None:
        self.memory = refused(self.memory, zone, KIND, Problem(cause, f"{zone}: {cause.value}"), self.now, self.rules)

    def hopeless(self, askers: int = 1) -> str:
        return hopeless(self.view, self.memory, self.rules, askers=askers)


def test_what_is_missing_is_asked_for_in_the_first_zone() -> None:
    """And nothing twice."""
    story = Story(wanted=3)
    story.has("ACCEPTED")
    assert story.decide() == ([A, A], [])
    story.has("CREATING")
    story.has("PROVISIONING")
    assert story.decide() == ([], [])


def test_nothing_is_wanted_and_nothing_is_there() -> None:
    """Nothing is done."""
    assert Story().decide() == ([], [])


@pytest.mark.parametrize("state", sorted(DEAD))
def test_a_preempted_one_is_deleted_and_replaced(state: str) -> None:
    """At once, in the same zone: it was up there before."""
    story = Story(wanted=2)
    first = story.has(UP, busy=True)
    story.has(UP, busy=True)
    assert story.decide() == ([], [])
    story.becomes(first, state)
    assert story.decide() == ([A], [first])


@pytest.mark.parametrize("state", ["SUSPENDING", "DELETING"])
def test_one_that_goes_is_replaced_already(state: str) -> None:
    """It need not be deleted by us, yet."""
    story = Story(wanted=1)
    name = story.has(UP, busy=True)
    story.decide()
    story.becomes(name, state)
    assert story.decide() == ([A], [])


def test_one_without_capacity_sends_to_the_next_zone() -> None:
    """FAILED or taken away before it was up: that zone is left alone for a while, then tried again."""
    story = Story(wanted=1)
    first = story.has("PROVISIONING")
    story.decide()
    story.becomes(first, "FAILED", problem=Problem(Cause.CAPACITY, "no more capacity"))
    assert story.decide() == ([B], [first])
    del story.there[first]
    second = story.has("PROVISIONING", B)
    story.becomes(second, "SUSPENDED")
    assert story.decide() == ([], [second]), "both zones have none"
    assert story.hopeless() == "", "there may be some later"
    del story.there[second]
    assert story.decide(RULES.zone_pause_seconds) == ([A], [])


def test_pauses_double_and_end_with_the_first_slice() -> None:
    """60 s, 120 s, ... up to 900 s."""
    story = Story(zones=(A,), wanted=1)
    lengths = []
    for _ in range(6):
        story.refuse(A, Cause.CAPACITY)
        lengths.append(story.memory.pauses[A, KIND].length_seconds)
        story.now += lengths[-1]
    assert lengths == [60, 120, 240, 480, 900, 900]
    story.has(UP, busy=False)
    story.decide()
    assert story.memory.pauses == {}


def test_four_refusals_at_the_same_time_are_one() -> None:
    """A gang of four does not wait eight times as long."""
    story = Story(zones=(A,), wanted=4)
    for _ in range(4):
        story.has("FAILED", problem=Problem(Cause.CAPACITY, "none"))
    assert len(story.decide()[1]) == 4
    assert story.memory.pauses[A, KIND].length_seconds == 60
    story.decide(1)
    assert story.memory.pauses[A, KIND].length_seconds == 60


def test_a_request_that_waits_too_long_goes_elsewhere() -> None:
    """The service need not say that it has expired."""
    story = Story(wanted=1)
    first = story.has("WAITING_FOR_RESOURCES")
    assert story.decide() == ([], [])
    assert story.decide(1_800) == ([], []), "the service has some time to say so itself"
    assert story.decide(RULES.overdue_seconds) == ([B], [first])


def test_one_that_is_provisioned_is_not_given_up() -> None:
    """Valid-until is about the queue."""
    story = Story(wanted=1)
    story.has("PROVISIONING")
    story.decide()
    assert story.decide(100_000) == ([], [])


def test_idle_ones_are_deleted_after_a_while() -> None:
    """Not before, and only as many as are too many."""
    story = Story(wanted=3)
    names = [story.has(UP, busy=False) for _ in range(3)]
    assert story.decide() == ([], [])
    story.wanted = 1
    assert story.decide() == ([], [])
    assert story.decide(299) == ([], [])
    creates, deletes = story.decide(1)
    assert creates == []
    assert len(deletes) == 2
    assert set(deletes) < set(names)


def test_who_comes_back_in_time_finds_them() -> None:
    """The time starts anew."""
    story = Story(wanted=1)
    story.has(UP, busy=False)
    story.decide()
    for _ in range(5):
        story.wanted = 0
        assert story.decide(200) == ([], [])
        story.wanted = 1
        assert story.decide(200) == ([], [])


def test_those_not_up_go_first_then_the_newest() -> None:
    """What has cost most time stays."""
    story = Story(wanted=5)
    old = story.has(UP, busy=False)
    story.decide()
    new = story.has(UP, busy=False)
    booting = story.has(UP)
    coming = story.has("ACCEPTED")
    story.decide(10)
    story.wanted = 1
    story.decide()
    story.wanted = 0
    order = []
    for left in (3, 2, 1):
        story.wanted = left
        story.decide()
        [gone] = story.decide(300)[1]
        order.append(gone)
        del story.there[gone]
    assert order == [coming, booting, new]
    assert list(story.there) == [old]


def test_what_a_gang_uses_is_never_deleted() -> None:
    """However long there are too many."""
    story = Story()
    used = [story.has(UP, busy=True) for _ in range(3)]
    free = story.has(UP, busy=False)
    story.decide()
    assert story.decide(10_000) == ([], [free])
    assert free not in used


def test_nothing_that_is_up_is_deleted_while_ray_cannot_be_asked() -> None:
    """It may be in use."""
    story = Story()
    story.has(UP)
    queued = story.has("ACCEPTED")
    story.ray = None
    story.decide()
    assert story.decide(10_000)[1] == [queued]


def test_a_zone_that_cannot_be_read_is_not_asked() -> None:
    """What is known of it counts on."""
    story = Story(wanted=2, unread=(A,))
    story.has(UP, A, busy=True)
    assert story.decide() == ([B], [])


def test_one_that_never_comes_up_in_ray_is_replaced_then_given_up() -> None:
    """A startup script that does not work costs two slices, not all of them."""
    story = Story(zones=(A,), wanted=1)
    for _ in range(RULES.max_failed_joins):
        assert story.hopeless() == ""
        name = story.has(UP)
        assert story.decide() == ([], [])
        assert story.decide(RULES.join_seconds) == ([A], [name])
        del story.there[name]
    assert "journalctl" in story.hopeless()
    story.memory = asked_anew(story.memory)
    assert story.hopeless() == "", "somebody may have mended it"


def test_one_that_has_left_ray_is_replaced() -> None:
    """Its VM is there, its host is not: that says nothing against the script."""
    story = Story(wanted=1)
    name = story.has(UP, busy=False)
    story.decide()
    story.ray = {}
    assert story.decide(1) == ([], [])
    assert story.decide(RULES.join_seconds) == ([A], [name])
    assert story.memory.failed_joins == 0


# -- when it is hopeless


@pytest.mark.parametrize("cause", [Cause.PERMISSION, Cause.DISABLED, Cause.INVALID])
def test_what_waiting_does_not_mend(cause: Cause) -> None:
    """Once every zone has said it; until somebody asks anew."""
    story = Story(wanted=1)
    story.refuse(A, cause)
    assert story.decide() == ([B], [])
    assert story.hopeless() == ""
    story.refuse(B, cause)
    assert story.decide(10_000) == ([], [])
    assert story.hopeless() == f"{A}: {cause.value}; {B}: {cause.value}"
    assert story.hopeless(askers=2), "for all"
    story.memory = asked_anew(story.memory)
    assert story.decide() == ([A], [])


def test_one_zone_without_capacity_keeps_hope() -> None:
    """The other may not be asked."""
    story = Story(wanted=1)
    story.refuse(A, Cause.PERMISSION)
    story.refuse(B, Cause.CAPACITY)
    assert story.hopeless() == ""


def test_quota() -> None:
    """Hopeless for a gang alone; not if another's end, or what is just being deleted, makes room."""
    story = Story(zones=(A,), wanted=2)
    story.has(UP, busy=True)
    story.refuse(A, Cause.QUOTA)
    assert story.hopeless() == f"{A}: quota"
    assert story.hopeless(askers=2) == ""
    dead = story.has(UP, busy=True)
    story.decide()
    story.refuse(A, Cause.QUOTA)
    story.becomes(dead, "SUSPENDED")
    story.decide()
    assert story.hopeless() == ""
    del story.there[dead]
    assert story.decide(1) == ([A], []), "asked again as soon as it has gone"
    story.refuse(A, Cause.QUOTA)
    assert story.hopeless() == "", "a quota takes a moment to be free again"
    story.now += RULES.quota_settle_seconds
    assert story.hopeless()


def test_who_has_all_is_not_hopeless() -> None:
    """Whatever zones say."""
    story = Story(zones=(A,), wanted=1)
    story.has(UP, busy=True)
    story.refuse(A, Cause.PERMISSION)
    assert story.hopeless() == ""


def test_kinds_do_not_stand_in_each_others_way() -> None:
    """A zone that has no v5e may have v4."""
    memory = refused(Memory(), A, "v5litepod-4x4", Problem(Cause.INVALID, "no such type"), 0, RULES)
    view = View(0, (), {KIND: 1, "v5litepod-4x4": 1}, (A, B))
    assert [(one.zone, one.kind) for one in decide(view, memory, RULES).creates] == [(A, KIND), (B, "v5litepod-4x4")]


# -- what people read


def test_how_far_it_is() -> None:
    """Counts by state and zone, and why a zone gives none."""
    story = Story(wanted=5)
    story.has(UP, busy=True)
    story.has(UP, busy=False)
    story.has(UP)
    story.has("PROVISIONING", B)
    story.refuse(A, Cause.CAPACITY)
    assert describe(story.view, story.memory) == (
        "2 of 5 slices up, 1 ACTIVE and not in Ray yet, 1 PROVISIONING (us-east5-b); "
        "us-east5-a tried again in 60 s: no capacity"
    )


# -- whatever happens

STATES = sorted(LIVE | DEAD | {"SUSPENDING", "DELETING"})
RESOURCES = st.lists(st.tuples(st.sampled_from(STATES), st.sampled_from((A, B)), st.sampled_from((None, True, False))))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(RESOURCES, st.integers(0, 4), st.floats(0, 2_000), st.booleans()), min_size=1, max_size=5))
def test_no_history_breaks_the_rules(
    history: list[tuple[list[tuple[str, str, bool | None]], int, float, bool]],
) -> None:
    """Never more live ones than wanted by creating; dead ones always go; what is in use never does."""
    story = Story()
    for resources, wanted, seconds, ray_answers in history:
        story.there, story.ray, story.made, story.wanted = {}, {}, 0, wanted
        for state, zone, busy in resources:
            story.has(state, zone, busy=busy if state == UP else None)
        used = {name for name, busy in story.ray.items() if busy}
        story.ray = story.ray if ray_answers else None
        creates, deletes = story.decide(seconds)
        kept = [one for one in story.there.values() if one.state in LIVE and one.id not in deletes]
        assert len(kept) + len(creates) <= max(wanted, len(kept))
        assert {one.id for one in story.there.values() if one.state in DEAD} <= set(deletes)
        assert len(deletes) == len(set(deletes))
        if ray_answers:
            assert not used & set(deletes)
