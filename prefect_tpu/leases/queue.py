"""The queue for slices: who gets which, and when."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import ray

from prefect_tpu.cluster import exit_hooks, inventory, session
from prefect_tpu.core.errors import GangCancelledError, SliceUnavailableError
from prefect_tpu.core.gang import numeric_key
from prefect_tpu.core.topology import SliceShape
from prefect_tpu.fleets.fleet import Demand
from prefect_tpu.leases.lease import Extra, GangLease, Lease, release_all, reserve

log = logging.getLogger("prefect_tpu.leases")

RESERVE_TIMEOUT_SECONDS = 2.0
"""How long placement groups may stay pending before all of them are given up and tried again."""
RETRY_MIN_SECONDS = 0.1
RETRY_MAX_SECONDS = 0.6
SETTLE_SECONDS = 1.0
"""Nothing is said about a wait shorter than this: chips just given back take a moment to show as free."""
SUSPECT_SECONDS = 15.0
"""A slice that could not be reserved, or lost a host, is tried last for this long: the cluster's own
view of it is stale for some seconds."""


@dataclass(frozen=True, slots=True, eq=False)
class _Ticket:
    """A place in the queue."""

    shape: SliceShape
    num_slices: int
    extra: Extra


class LeaseQueue:
    """Hands out slices, first come first served among the gangs of this process.

    Between processes there is no queue: each reserves all its slices at the same time, holds them only if
    it got all, and otherwise gives all back and tries again after a random pause. So nobody holds half, and
    a gang of few slices can overtake one of many in another process for as long as slices are scarce.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._waiting: list[_Ticket] = []
        self._suspects: dict[str, float] = {}
        self._kept: dict[str, tuple[Lease, float]] = {}
        self._keeper: threading.Thread | None = None
        self._closed = False

    def look_again(self) -> None:
        """Something may be free now."""
        with self._changed:
            self._changed.notify_all()

    def keep(self, leases: list[Lease], until: float) -> None:
        """Leases for the next gang that wants them; given back at `until` (of the monotonic clock)."""
        with self._changed:
            if self._keeper is None:
                exit_hooks.at_exit("leases", self.close)
                self._keeper = threading.Thread(target=self._give_back_when_due, name="prefect-tpu-leases", daemon=True)
                self._keeper.start()
            if not self._closed:
                self._kept |= {one.slice.name: (one, until) for one in leases}
                leases = []
            self._changed.notify_all()
        release_all(leases)

    def close(self) -> None:
        """Give back what is kept, and keep nothing from now on."""
        with self._changed:
            self._closed = True
            kept, self._kept = [lease for lease, _ in self._kept.values()], {}
            self._changed.notify_all()
        release_all(kept)

    def _give_back_when_due(self) -> None:
        while True:
            with self._changed:
                if self._closed:
                    return
                now = time.monotonic()
                due = [name for name, (_, until) in self._kept.items() if until <= now]
                leases = [self._kept.pop(name)[0] for name in due]
                if not leases:
                    soonest = min((until for _, until in self._kept.values()), default=None)
                    self._changed.wait(None if soonest is None else soonest - now)
                    continue
            release_all(leases)
            self.look_again()

    def somebody_waits(self, shape: SliceShape) -> bool:
        """Whether a gang of this process waits for slices of this shape."""
        with self._lock:
            return any(one.shape == shape for one in self._waiting)

    def suspect(self, slice_name: str) -> None:
        """Try this slice last for a while."""
        with self._lock:
            self._suspects[slice_name] = time.monotonic() + SUSPECT_SECONDS

    def acquire(
        self,
        shape: SliceShape,
        num_slices: int,
        *,
        timeout_seconds: float,
        fleet: str,
        cancelled: Callable[[], bool],
        say: Callable[[str], None],
        say_interval_seconds: float,
        extra: Extra = (),
        demand: Demand | None = None,
        fewer: Sequence[int] = (),
    ) -> GangLease:
        """Reserve `num_slices` intact, free slices of `shape`, all or none.

        Args:
            shape: what every slice must be.
            num_slices: how many.
            timeout_seconds: from now until SliceUnavailableError.
            fleet: how the fleet is called in messages.
            cancelled: asked often; True ends the wait.
            say: told why it waits.
            say_interval_seconds: pause between two such words.
            extra: reserved on each host beside its chips.
            demand: what the fleet was asked for on the gang's behalf.
            fewer: smaller numbers that will do when the deadline has come, ascending.

        Raises:
            ProvisioningError: the fleet says that they will not come.
            SliceUnavailableError: the deadline passed; the message has what was asked and what there is.
            GangCancelledError: `cancelled` said so.
        """
        ticket = _Ticket(shape, num_slices, extra)
        with self._lock:
            self._waiting.append(ticket)
        session.hold()
        if demand is not None:
            demand.waiting(num_slices)
        try:
            leases = self._wait(ticket, timeout_seconds, fleet, cancelled, say, say_interval_seconds, demand, fewer)
            return GangLease(leases, session.generation(), self.look_again, self.keep)
        except BaseException:
            session.release()
            raise
        finally:
            if demand is not None:
                demand.waiting(0)
            with self._changed:
                self._waiting.remove(ticket)
                self._changed.notify_all()

    def _wait(
        self,
        ticket: _Ticket,
        timeout_seconds: float,
        fleet: str,
        cancelled: Callable[[], bool],
        say: Callable[[str], None],
        say_interval_seconds: float,
        demand: Demand | None,
        fewer: Sequence[int],
    ) -> list[Lease]:
        shape, num_slices = ticket.shape, ticket.num_slices
        deadline = time.monotonic() + timeout_seconds
        next_word = time.monotonic() + SETTLE_SECONDS
        while True:
            with self._lock:
                kept_before = dict(self._kept)
            if cancelled():
                raise GangCancelledError("cancelled while it waited for slices")
            position = self._position(ticket)
            leases = self._try(ticket) if position == 0 else None
            if leases is not None:
                return leases
            if demand is not None:
                demand.check()
            now = time.monotonic()
            if now >= deadline:
                for size in reversed(fewer):
                    leases = self._try(replace(ticket, num_slices=size)) if position == 0 else None
                    if leases is not None:
                        say(f"{num_slices} slices were not free within {timeout_seconds:g} s: it takes {size}")
                        return leases
                least = replace(ticket, num_slices=fewer[0]) if fewer else ticket
                text = _unavailable(least, fleet, timeout_seconds, position)
                raise SliceUnavailableError(text + (f" {demand.describe()}" if demand is not None else ""))
            if now >= next_word:
                next_word = now + say_interval_seconds
                ahead = f", {position} gangs ahead of this one" if position else ""
                coming = f"; {told}" if demand is not None and (told := demand.describe()) else ""
                then = f", then {' or '.join(str(one) for one in reversed(fewer))} will do" if fewer else ""
                say(
                    f"waiting for {num_slices} free {shape.accelerator_type} {shape.topology} slices of {fleet}"
                    f"{ahead} (at most {deadline - now:.0f} s more{then}){coming}"
                )
            with self._changed:
                if self._kept == kept_before:
                    self._changed.wait(min(random.uniform(RETRY_MIN_SECONDS, RETRY_MAX_SECONDS), deadline - now))

    def _position(self, ticket: _Ticket) -> int:
        """How many came earlier and want the same slices. Who wants more than there are holds nobody up."""
        with self._lock:
            earlier = [one for one in self._waiting[: self._waiting.index(ticket)] if one.shape == ticket.shape]
        if not earlier:
            return 0
        there_are = len(inventory.read_slices(ticket.shape))
        return sum(one.num_slices <= there_are for one in earlier)

    def _try(self, ticket: _Ticket) -> list[Lease] | None:
        shape, num_slices = ticket.shape, ticket.num_slices
        now = time.monotonic()
        with self._lock:
            self._suspects = suspects = {name: until for name, until in self._suspects.items() if until > now}
        leases = self._take_kept(ticket)
        if len(leases) == num_slices:
            return leases
        try:
            free = inventory.free_slices(shape)
            missing = num_slices - len(leases)
            if len(free) < missing:
                release_all(leases)
                return None
            chosen = sorted(free, key=lambda one: (one.name in suspects, numeric_key(one.name)))[:missing]
            leases.extend(reserve(one, shape, ticket.extra) for one in chosen)
            give_up = time.monotonic() + RESERVE_TIMEOUT_SECONDS
            for lease in leases:
                if not lease.group.wait(max(0.01, give_up - time.monotonic())):
                    self.suspect(lease.slice.name)
                    break
            else:
                return leases
        except BaseException:
            release_all(leases)
            raise
        release_all(leases)
        return None

    def _take_kept(self, ticket: _Ticket) -> list[Lease]:
        """Leases that an earlier gang of this process has left, as far as their slices are whole."""
        with self._lock:
            if not self._kept:
                return []
        whole = {
            one.name: one
            for one in inventory.summary().slices
            if inventory.fits(one, ticket.shape) and not one.draining
        }
        generation = session.generation()
        with self._lock:
            names = [
                name
                for name, (lease, _) in self._kept.items()
                if name in whole
                and whole[name].slice == lease.slice
                and lease.generation == generation
                and lease.extra == ticket.extra
            ]
            return [self._kept.pop(name)[0] for name in sorted(names, key=numeric_key)[: ticket.num_slices]]


def _unavailable(ticket: _Ticket, fleet: str, timeout_seconds: float, position: int) -> str:
    shape, num_slices = ticket.shape, ticket.num_slices
    beside = "".join(f" and {amount:g} {name} on each" for name, amount in ticket.extra)
    try:
        has = inventory.summary().describe()
    except (ray.exceptions.RayError, ConnectionError) as error:
        has = f"unknown, the cluster does not answer ({error})"
    return (
        f"No {num_slices} free {shape.accelerator_type} {shape.topology} slices within {timeout_seconds:g} s "
        f"(lease_timeout_seconds). Asked: {num_slices} x {shape.hosts} hosts x {shape.chips_per_host} chips{beside}. "
        f"{fleet} has: {has}. Ahead in this process's queue: {position}. "
        "Ask for fewer slices or another topology, add slices to the fleet, wait for other gangs to end, "
        "or raise lease_timeout_seconds on the runner."
    )
