"""The slices of one task run over all its attempts: leased, replaced, fewer after a loss, more again, given back."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

from prefect_tpu.cluster import inventory, session
from prefect_tpu.core.errors import SliceUnavailableError
from prefect_tpu.core.gang import sizes_of
from prefect_tpu.core.topology import SliceShape
from prefect_tpu.fleets.fleet import Demand, Fleet
from prefect_tpu.leases.lease import GangLease
from prefect_tpu.leases.queue import LeaseQueue
from prefect_tpu.options.gang import GangOptions
from prefect_tpu.options.tuning import Tuning

log = logging.getLogger("prefect_tpu.gang")

QUEUE = LeaseQueue()
GROW_SECONDS = 5.0
"""How long the slices that were free a moment ago may take to be reserved; the gang waits meanwhile."""

Say = Callable[[str], None]


class StandbyLease:
    """Slices that are being reserved on a thread of its own, for the next attempt."""

    def __init__(self, num_slices: int, acquire: Callable[[int, Callable[[], bool]], GangLease]) -> None:
        """`acquire`: takes the number, and asks whether it is enough."""
        self.num_slices = num_slices
        self._acquire = acquire
        self._enough = threading.Event()
        self._lease: GangLease | None = None
        self._thread = threading.Thread(target=self._work, name="prefect-tpu-reserve-ahead", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        try:
            self._lease = self._acquire(self.num_slices, self._enough.is_set)
        except Exception as error:  # noqa: BLE001 - the next attempt looks for itself
            log.debug("nothing could be reserved ahead: %s", error)

    def take(self) -> GangLease | None:
        """What was reserved by now, if anything."""
        self._enough.set()
        self._thread.join()
        lease, self._lease = self._lease, None
        return lease

    def release(self) -> None:
        """It is not wanted after all."""
        lease = self.take()
        if lease is not None:
            lease.release()


@dataclass(slots=True)
class GangSlices:
    """What the task run holds. Used by the thread of its attempts; `release` may come from another one.

    Attributes:
        fleet: where they come from.
        options: how many, and for how long each wait lasts.
        tuning: the site's waits.
        host_resources: reserved on each host beside its chips.
        run_id: of the task run.
        cancelled: asked often; True ends every wait.
        run_name: how other gangs that wait for its slices call it.
    """

    fleet: Fleet
    options: GangOptions
    tuning: Tuning
    host_resources: tuple[tuple[str, float], ...]
    run_id: str
    cancelled: Callable[[], bool]
    run_name: str = ""
    _lease: GangLease | None = field(init=False, default=None)
    _standby: StandbyLease | None = field(init=False, default=None)
    _demand: Demand | None = field(init=False, default=None)
    _grow: bool = field(init=False, default=False)

    def complete(self, shape: SliceShape, say: Say) -> GangLease:
        """The lease for the next attempt: that of the one before with what it lacks or may have more, or a new one.

        Raises:
            ProvisioningError: the fleet cannot bring them up.
            SliceUnavailableError: not even the smallest number within lease_timeout_seconds.
            GangCancelledError: cancelled meanwhile.
        """
        sizes, timeout_seconds = sizes_of(self.options.num_slices), self.options.lease_timeout_seconds
        if self._lease is not None and self._lease.generation != session.generation():
            self.release()  # its cluster has gone since the attempt before
        if self._demand is None:
            self._demand = self.fleet.demand(shape, sizes[-1], self.run_id, say)
        give_up = time.monotonic() + timeout_seconds
        if self._lease is not None and self._lease.missing:
            self._replace(shape, say)
        elif self._lease is not None and self._grow:
            self._enlarge(shape, say)
        self._grow = False
        if self._lease is None:
            left = round(max(0.0, give_up - time.monotonic()), 1)
            self._lease = self._acquire(shape, sizes, left, say, holds_none=True)
        return self._lease

    def _replace(self, shape: SliceShape, say: Say) -> None:
        """Fill in what was lost. With several sizes the gang goes on with fewer slices if nothing comes.

        Slices are not held for ever while others are missing, or two gangs could wait for each other's.
        """
        options, sizes, lease = self.options, sizes_of(self.options.num_slices), self._lease
        assert lease is not None
        standby, self._standby = self._standby, None
        fresh = standby.take() if standby is not None else None
        if fresh is not None and len(fresh.leases) != lease.missing:
            fresh.release()
            fresh = None
        left = len(lease.leases) - lease.missing
        smaller = [size for size in sizes if size <= left]
        longest = options.resize_after_seconds if smaller else options.lease_hold_seconds
        wait = min(longest, options.lease_timeout_seconds)
        wanted = [size - left for size in sizes if left < size <= len(lease.leases)]
        try:
            lease.fill(fresh or self._acquire(shape, wanted, wait, say))
        except SliceUnavailableError:
            if smaller:
                say(f"no replacement within {wait:g} s (resize_after_seconds): it goes on with {smaller[-1]} slices")
                lease.shrink(smaller[-1])
                return
            if wait == options.lease_timeout_seconds:
                raise
            say(f"no replacement within {wait:g} s: the slices that are left are given back")
            lease.release()
            self._lease = None
            return
        if lease.missing:
            now = len(lease.leases) - lease.missing
            say(f"not every slice was replaced within {wait:g} s (resize_after_seconds): it goes on with {now} slices")
            lease.shrink(now)

    def _enlarge(self, shape: SliceShape, say: Say) -> None:
        lease = self._lease
        assert lease is not None
        have = len(lease.leases)
        try:
            more = [size - have for size in sizes_of(self.options.num_slices) if size > have]
            lease.extend(self._acquire(shape, more, GROW_SECONDS, say))
        except SliceUnavailableError:
            say(f"the slices that were free have been taken by somebody else: it goes on with {have}")

    def _acquire(
        self,
        shape: SliceShape,
        sizes: Sequence[int],
        timeout_seconds: float,
        say: Say,
        cancelled: Callable[[], bool] | None = None,
        *,
        holds_none: bool = False,
    ) -> GangLease:
        """As many as the last of `sizes` says; at the deadline one of the smaller ones will do.

        Who holds slices meanwhile waits no longer than `timeout_seconds`, whatever for; who holds none waits for gangs
        of this process as long as they take, and for the largest size no longer than `size_wait_seconds`,
        if the fleet makes no slices on demand.
        """
        return QUEUE.acquire(
            shape,
            sizes[-1],
            fewer=sizes[:-1],
            timeout_seconds=timeout_seconds,
            fleet=self.fleet.describe(),
            cancelled=cancelled or self.cancelled,
            say=say,
            say_interval_seconds=self.tuning.queue_message_interval_seconds,
            extra=self.host_resources,
            demand=self._demand,
            size_wait_seconds=self.options.size_wait_seconds if holds_none and self._demand is None else None,
            who=self.run_name,
            behind_siblings_counts=not holds_none,
        )

    def reserve_ahead(self, shape: SliceShape, say: Say, slice_name: str) -> None:
        """A slice is about to go: reserve another one while the old one still runs."""
        count = 1 + (self._standby.num_slices if self._standby is not None else 0)
        if self._standby is not None:
            self._standby.release()
        say(f"a replacement for {slice_name} is reserved ahead")
        timeout_seconds = self.options.lease_timeout_seconds
        self._standby = StandbyLease(
            count, lambda number, enough: self._acquire(shape, [number], timeout_seconds, lambda _: None, enough)
        )

    def room(self, shape: SliceShape) -> int:
        """How many slices the gang could have now; 0 if no more than it has, or if others wait for them."""
        lease = self._lease
        if lease is None or lease.missing or QUEUE.somebody_waits(shape):
            return 0
        have = len(lease.leases)
        bigger = [size for size in sizes_of(self.options.num_slices) if size > have]
        try:
            free = len(inventory.free_slices(shape)) if bigger else 0
        except Exception as error:  # noqa: BLE001 - it only saves time later
            log.debug("cannot look for more slices: %s", error)
            return 0
        return max((size for size in bigger if size - have <= free), default=0)

    def grow(self) -> None:
        """The next attempt is to have as many slices as it can."""
        self._grow = True

    def drop(self, slice_names: Collection[str]) -> None:
        """Give slices back that are lost; a lost slice's placement group would wait for it for ever."""
        for name in slice_names:
            QUEUE.suspect(name)
        if slice_names and self._lease is not None:
            self._lease.drop(slice_names)

    def hand_over(self) -> None:
        """The gang has succeeded: its slices are for the next one of this process, for a moment."""
        if self._lease is not None:
            self._lease.hand_over(self.tuning.lease_linger_seconds)

    def release(self) -> None:
        """Give everything back. The next attempt, if there is one, leases anew."""
        lease, self._lease = self._lease, None
        standby, self._standby = self._standby, None
        demand, self._demand = self._demand, None
        if lease is not None:
            lease.release()
        if standby is not None:
            standby.release()
        if demand is not None:
            demand.withdraw()
