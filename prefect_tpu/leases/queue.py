"""The queue for slices: who gets which, and when."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from prefect_tpu.cluster import exit_hooks, inventory, session
from prefect_tpu.cluster.inventory import SliceStatus
from prefect_tpu.core.errors import GangCancelledError, SliceUnavailableError
from prefect_tpu.core.gang import Slice, numeric_key
from prefect_tpu.core.patience import Patience, Waiter
from prefect_tpu.core.topology import SliceShape
from prefect_tpu.fleets.fleet import Demand
from prefect_tpu.leases import words
from prefect_tpu.leases.holders import Holders
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
    waiter: Waiter
    extra: Extra
    who: str


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
        self._holders = Holders()
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
        size_wait_seconds: float | None = None,
        who: str = "",
        behind_siblings_counts: bool = True,
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
            demand: what the fleet was asked for on the gang's behalf; None: there are just those that there are.
            fewer: smaller numbers that will do when the deadline has come, ascending.
            size_wait_seconds: they will do sooner: the largest number that there can be is waited for so long, and
                larger ones not at all.
            who: how the gang is called in messages of others.
            behind_siblings_counts: False: time in which only gangs of this process hold it up is not part of
                `timeout_seconds`. Only for a gang that holds nothing meanwhile.

        Raises:
            ProvisioningError: the fleet says that they will not come.
            SliceUnavailableError: the deadline passed; the message has what was asked and what there is.
            GangCancelledError: `cancelled` said so.
        """
        waiter = Waiter((*fewer, num_slices), only_there=demand is None and size_wait_seconds is not None)
        ticket = _Ticket(shape, waiter, extra, who)
        patience = Patience(timeout_seconds, time.monotonic(), stops=not behind_siblings_counts)
        with self._lock:
            self._waiting.append(ticket)
        session.hold()
        if demand is not None:
            demand.waiting(num_slices)
        try:
            told = fleet, say, say_interval_seconds
            leases = self._wait(ticket, patience, told, cancelled, demand, size_wait_seconds)
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
        patience: Patience,
        told: tuple[str, Callable[[str], None], float],
        cancelled: Callable[[], bool],
        demand: Demand | None,
        size_wait_seconds: float | None,
    ) -> list[Lease]:
        fleet, say, say_interval_seconds = told
        shape, waiter, began = ticket.shape, ticket.waiter, time.monotonic()
        next_word = began + SETTLE_SECONDS
        while True:
            with self._lock:
                kept_before = dict(self._kept)
            if cancelled():
                raise GangCancelledError("cancelled while it waited for slices")
            seen = inventory.fitting(shape)
            there, free = len(seen), sum(one.usable for one in seen)
            position = self._position(ticket, there)
            leases = self._try_sizes(ticket, seen) if position == 0 else None
            if leases is not None:
                if smaller := words.smaller(waiter, patience, len(leases), there, size_wait_seconds):
                    say(smaller)
                self._holders.add(ticket.who, leases)
                return leases
            if demand is not None:
                demand.check()
            now = time.monotonic()
            holders = self._holders.now({one.name for one in seen})
            own = sum(number for _, _, number in holders)
            behind = patience.stops and waiter.behind_siblings(position=position, free=free, own=own, there=there)
            patience.look(now, behind=behind)
            size_is_over = size_wait_seconds is not None and now - began >= size_wait_seconds
            if (patience.over or size_is_over) and not waiter.any_size:
                waiter.any_size = True
                if len(waiter.sizes) > 1:
                    continue
            if patience.over:
                text = words.unavailable(
                    shape, waiter, patience, fleet=fleet, there=there, position=position, extra=ticket.extra
                )
                raise SliceUnavailableError(text + (f" {demand.describe()}" if demand is not None else ""))
            if now >= next_word:
                next_word = now + say_interval_seconds
                coming = demand.describe() if demand is not None else ""
                say(
                    words.waiting(
                        shape,
                        waiter,
                        patience,
                        fleet=fleet,
                        there=there,
                        position=position,
                        holders=[(name, now - since) for name, since, _ in holders],
                        behind=behind,
                        size_wait_seconds=size_wait_seconds,
                        coming=coming,
                    )
                )
            with self._changed:
                if self._kept == kept_before:
                    longest = random.uniform(RETRY_MIN_SECONDS, RETRY_MAX_SECONDS)
                    self._changed.wait(longest if behind else min(longest, patience.left_seconds))

    def _position(self, ticket: _Ticket, there: int) -> int:
        """How many came earlier and want the same slices. Who wants more than there are holds nobody up."""
        with self._lock:
            earlier = [one for one in self._waiting[: self._waiting.index(ticket)] if one.shape == ticket.shape]
        return sum(min(one.waiter.takes(there)) <= there for one in earlier)

    def _try_sizes(self, ticket: _Ticket, seen: Sequence[SliceStatus]) -> list[Lease] | None:
        usable = {one.name: one.slice for one in seen if one.usable}
        kept = {one.name: one.slice for one in seen if not one.draining}
        for size in ticket.waiter.takes(len(seen)):
            leases = self._try(ticket, size, list(usable.values()), kept)
            if leases is not None:
                return leases
        return None

    def _try(
        self, ticket: _Ticket, num_slices: int, free: Sequence[Slice], whole: Mapping[str, Slice]
    ) -> list[Lease] | None:
        now = time.monotonic()
        with self._lock:
            self._suspects = suspects = {name: until for name, until in self._suspects.items() if until > now}
        leases = self._take_kept(ticket, num_slices, num_slices - len(free), whole)
        if len(leases) == num_slices:
            return leases
        missing = num_slices - len(leases)
        if len(free) < missing:
            return None
        chosen = sorted(free, key=lambda one: (one.name in suspects, numeric_key(one.name)))[:missing]
        try:
            leases.extend(reserve(one, ticket.shape, ticket.extra) for one in chosen)
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

    def _take_kept(self, ticket: _Ticket, most: int, least: int, whole: Mapping[str, Slice]) -> list[Lease]:
        """Leases that an earlier gang of this process has left, as far as their slices are whole; none if too few."""
        generation = session.generation()
        with self._lock:
            names = [
                name
                for name, (lease, _) in self._kept.items()
                if whole.get(name) == lease.slice and lease.generation == generation and lease.extra == ticket.extra
            ]
            if len(names) < least:
                return []
            return [self._kept.pop(name)[0] for name in sorted(names, key=numeric_key)[:most]]
