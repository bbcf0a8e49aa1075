"""What to create and delete next: a pure function of what is wanted, what there is, and what was seen before."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from prefect_tpu.provision.problems import FINAL, Cause, Problem

WAITING = frozenset({"STATE_UNSPECIFIED", "CREATING", "ACCEPTED", "WAITING_FOR_RESOURCES"})
COMING = WAITING | {"PROVISIONING"}
UP = "ACTIVE"
LIVE = COMING | {UP}
LEAVING = frozenset({"SUSPENDING", "DELETING"})
DEAD = frozenset({"SUSPENDED", "FAILED"})
"""They run nothing, and hold quota until they are deleted."""


@dataclass(frozen=True, slots=True)
class Resource:
    """One queued resource: one slice.

    Attributes:
        id: also the name of its node, and of the slice in Ray.
        state: the API's name for it.
        kind: what slice it is, "v4-2x2x1".
        owner: its owner label.
        created_unix_seconds: as the service says.
        problem: of a FAILED one.
    """

    zone: str
    id: str
    state: str
    kind: str
    owner: str = ""
    created_unix_seconds: float = 0.0
    problem: Problem | None = None


@dataclass(frozen=True, slots=True)
class Rules:
    """The limits that decisions keep to.

    Attributes:
        idle_release_seconds: slices that nobody wants are deleted after it.
        valid_until_seconds: a request that waits for longer has expired; None if it may wait for ever.
        overdue_seconds: how much later than that the service may say so itself.
        zone_pause_seconds: a zone without capacity is tried again after it; doubled each time in a row.
        zone_pause_longest_seconds: the longest such pause.
        quota_settle_seconds: how long the quota of what was deleted may take to be free again.
        join_seconds: from ACTIVE to a whole slice in Ray.
        max_failed_joins: slices in a row that never came up in Ray, before it is hopeless.
    """

    idle_release_seconds: float = 300.0
    valid_until_seconds: float | None = None
    overdue_seconds: float = 120.0
    zone_pause_seconds: float = 60.0
    zone_pause_longest_seconds: float = 900.0
    quota_settle_seconds: float = 120.0
    join_seconds: float = 900.0
    max_failed_joins: int = 2


@dataclass(frozen=True, slots=True)
class Pause:
    """A zone is not asked for slices until then.

    Attributes:
        until_seconds: of the clock; infinity if waiting does not help.
        length_seconds: of this pause, from which the next one is reckoned.
    """

    until_seconds: float
    length_seconds: float
    problem: Problem


@dataclass(frozen=True, slots=True)
class Memory:
    """What is kept between two decisions. Times of the clock.

    Attributes:
        first_seen: by id.
        was_up: ids that were ACTIVE once.
        absent_since: ids that are ACTIVE and not whole in Ray.
        joined: ids that were whole in Ray once.
        handled: ids whose end was drawn conclusions from.
        surplus_since: by kind.
        pauses: by zone and kind; kind "" for a zone that cannot be read.
        leaving: zones where something of ours is on its way out, and holds quota.
        last_leaving: by zone, when something of ours was last seen on its way out.
        failed_joins: in a row.
    """

    first_seen: Mapping[str, float] = field(default_factory=dict)
    was_up: frozenset[str] = frozenset()
    absent_since: Mapping[str, float] = field(default_factory=dict)
    joined: frozenset[str] = frozenset()
    handled: frozenset[str] = frozenset()
    surplus_since: Mapping[str, float] = field(default_factory=dict)
    pauses: Mapping[tuple[str, str], Pause] = field(default_factory=dict)
    leaving: frozenset[str] = frozenset()
    last_leaving: Mapping[str, float] = field(default_factory=dict)
    failed_joins: int = 0


@dataclass(frozen=True, slots=True)
class View:
    """What there is now.

    Attributes:
        now: of the clock, in seconds.
        resources: ours.
        wanted: slices by kind.
        zones: in order of preference.
        unread: zones whose resources could not be read now; nothing is created there.
        ray: slices that are whole in Ray, and whether each is in use; None if Ray could not be asked.
    """

    now: float
    resources: Sequence[Resource]
    wanted: Mapping[str, int]
    zones: Sequence[str]
    unread: Collection[str] = ()
    ray: Mapping[str, bool] | None = None


@dataclass(frozen=True, slots=True)
class Create:
    """One more slice of this kind there."""

    zone: str
    kind: str


@dataclass(frozen=True, slots=True)
class Delete:
    """Away with it.

    Attributes:
        in_ray: its hosts are in Ray and may be leased until they are gone.
    """

    resource: Resource
    why: str
    in_ray: bool = False


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do, deletions first, as what is dead holds quota."""

    deletes: tuple[Delete, ...]
    creates: tuple[Create, ...]
    memory: Memory


def decide(view: View, memory: Memory, rules: Rules) -> Decision:
    """The next things to do. Nothing that a gang uses is deleted, unless it is dead already."""
    memory = _look(view, memory)
    deletes: list[Delete] = []
    for one in view.resources:
        why, memory = _why_delete(one, view, memory, rules)
        if why:
            deletes.append(Delete(one, why))
    doomed = {one.resource.id for one in deletes}
    live = [one for one in view.resources if one.id not in doomed and one.state in LIVE]
    creates: list[Create] = []
    surplus_since: dict[str, float] = {}
    for kind in sorted({one.kind for one in live} | set(view.wanted)):
        mine = [one for one in live if one.kind == kind]
        more = view.wanted.get(kind, 0) - len(mine)
        zone = next(
            (zone for zone in view.zones if zone not in view.unread and is_open(zone, kind, view.now, memory)), None
        )
        if more > 0 and zone is not None:
            creates += [Create(zone, kind)] * more
        if more < 0:
            surplus_since[kind] = memory.surplus_since.get(kind, view.now)
            if view.now - surplus_since[kind] >= rules.idle_release_seconds:
                deletes += [_idle(one, view, rules) for one in _idlest(mine, view, memory)[:-more]]
    return Decision(tuple(deletes), tuple(creates), replace(memory, surplus_since=surplus_since))


def refused(memory: Memory, zone: str, kind: str, problem: Problem, now: float, rules: Rules) -> Memory:
    """The memory after a zone did not give a slice of this kind, or ("") could not be read."""
    before = memory.pauses.get((zone, kind))
    length = rules.zone_pause_seconds
    if before is not None and before.problem.cause is problem.cause:
        if before.until_seconds > now:
            return memory  # several slices were refused at the same time
        length = min(2 * before.length_seconds, max(length, rules.zone_pause_longest_seconds))
    until = float("inf") if problem.cause in FINAL else now + length
    return replace(memory, pauses={**memory.pauses, (zone, kind): Pause(until, length, problem)})


def is_open(zone: str, kind: str, now: float, memory: Memory) -> bool:
    """Whether slices of this kind may be asked for there."""
    pause = memory.pauses.get((zone, kind))
    return pause is None or pause.until_seconds <= now


def asked_anew(memory: Memory) -> Memory:
    """The memory when somebody new asks: a person may have mended what was final."""
    kept = {key: pause for key, pause in memory.pauses.items() if pause.problem.cause is Cause.CAPACITY}
    return replace(memory, pauses=kept, failed_joins=0)


def _look(view: View, memory: Memory) -> Memory:
    ids = {one.id for one in view.resources}
    up = {one.id for one in view.resources if one.state == UP}
    ray = view.ray
    joined = memory.joined & ids
    absent = {id_: since for id_, since in memory.absent_since.items() if id_ in up}
    if ray is not None:
        joined |= up & set(ray)
        absent = {id_: absent.get(id_, view.now) for id_ in up - set(ray)}
    leaving = {one.zone: view.now for one in view.resources if one.state in LEAVING or one.state in DEAD}
    left = memory.leaving - set(leaving)
    gave = {(one.zone, one.kind) for one in view.resources if one.id in up - memory.was_up}
    readable = {(zone, "") for zone in view.zones if zone not in view.unread}
    pauses = {
        key: pause
        for key, pause in memory.pauses.items()
        if key not in gave | readable and not (key[0] in left and pause.problem.cause is Cause.QUOTA)
    }
    return replace(
        memory,
        first_seen={one.id: memory.first_seen.get(one.id, view.now) for one in view.resources},
        was_up=(memory.was_up & ids) | up,
        absent_since=absent,
        joined=frozenset(joined),
        handled=memory.handled & ids,
        pauses=pauses,
        leaving=frozenset(leaving),
        last_leaving={**memory.last_leaving, **leaving},
        failed_joins=0 if joined - memory.joined else memory.failed_joins,
    )


def _why_delete(one: Resource, view: View, memory: Memory, rules: Rules) -> tuple[str, Memory]:
    """Why it has to go whether it is wanted or not, "" if it may stay; and what follows for its zone."""
    fresh = one.id not in memory.handled
    handled = replace(memory, handled=memory.handled | {one.id})
    if one.state in DEAD or one.state == "SUSPENDING":
        if fresh and one.id not in memory.was_up:
            problem = one.problem or Problem(Cause.CAPACITY, f"{one.id} was taken away before it was up in {one.zone}")
            handled = refused(handled, one.zone, one.kind, problem, view.now, rules)
        if one.state not in DEAD:
            return "", handled
        said = f": {one.problem.text}" if one.problem else ""
        return f"it is {one.state}, and holds quota until it is deleted{said}", handled
    waited = view.now - memory.first_seen[one.id]
    limit = rules.valid_until_seconds
    if one.state in WAITING and limit is not None and waited >= limit + rules.overdue_seconds:
        problem = Problem(Cause.CAPACITY, f"{one.zone} had no capacity within {limit:g} s (valid_until_seconds)")
        return f"it has waited for {waited:.0f} s", refused(handled, one.zone, one.kind, problem, view.now, rules)
    absent = memory.absent_since.get(one.id)
    if absent is not None and view.now - absent >= rules.join_seconds:
        if fresh and one.id not in memory.joined:
            handled = replace(handled, failed_joins=memory.failed_joins + 1)
        return f"it is ACTIVE, and its slice has not been whole in Ray for {view.now - absent:.0f} s", handled
    return "", memory


def _idlest(mine: list[Resource], view: View, memory: Memory) -> list[Resource]:
    """Those that may go, first those that are not up, then the newest."""
    ray = view.ray
    free = [one for one in mine if one.state != UP or (ray is not None and not ray.get(one.id, False))]
    return sorted(
        free, key=lambda one: (one.state == UP, ray is not None and one.id in ray, -memory.first_seen[one.id], one.id)
    )


def _idle(one: Resource, view: View, rules: Rules) -> Delete:
    why = f"nobody has wanted it for {rules.idle_release_seconds:g} s (idle_release_seconds)"
    return Delete(one, why, in_ray=view.ray is not None and one.id in view.ray)
