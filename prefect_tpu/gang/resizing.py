"""Tells the function of a gang that may have more slices when more are free."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from prefect_tpu.gang.host_state import HostState
from prefect_tpu.gang.observer import Observer
from prefect_tpu.gang.plan import GangPlan

LOOK_SECONDS = 2.0
"""How often it is looked whether they are."""


@dataclass(slots=True)
class ResizeOffers:
    """Used by the attempt's thread. Nothing is reserved: the next attempt takes what is free then.

    Attributes:
        attempt_id: what runs.
        num_slices: that it has.
        hosts: that are told.
        room: how many slices the gang could have now, 0 if no more than it has.
    """

    attempt_id: str
    num_slices: int
    hosts: Sequence[HostState]
    plan: GangPlan
    observer: Observer
    room: Callable[[], int]
    _looked_at: float = field(init=False, default=0.0)
    _offered: bool = field(init=False, default=False)

    def look(self, entered_at: float | None, now: float) -> None:
        """Tell all hosts when more slices are free, and when they are not any more; not too soon after a start."""
        if entered_at is None or self.num_slices >= self.plan.most_slices:
            return
        if now < max(entered_at + self.plan.options.resize_interval_seconds, self._looked_at + LOOK_SECONDS):
            return
        self._looked_at = now
        size = self.room()
        if bool(size) == self._offered:
            return
        self._offered = bool(size)
        self.observer.say(
            f"slices are free: {size} in place of {self.num_slices} from the next resize point on"
            if size
            else f"the free slices are taken: it stays with {self.num_slices}"
        )
        for host in self.hosts:
            if not host.over:
                host.agent.offer.remote(self.attempt_id, self._offered)
