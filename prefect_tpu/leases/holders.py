"""Which gangs of this process hold slices: a sibling that waits for them need not give up."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence, Set

from prefect_tpu.cluster import session
from prefect_tpu.leases.lease import Lease

SETTLE_SECONDS = 2.0
"""After it was given back: Ray shows a slice as free a moment later, and until then it is still this process's."""


class Holders:
    """Of one queue. What is given back leaves by itself."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: dict[str, tuple[Lease, str, float]] = {}

    def add(self, who: str, leases: Sequence[Lease]) -> None:
        """A gang has got them."""
        now = time.monotonic()
        with self._lock:
            self._held |= {one.slice.name: (one, who, now) for one in leases}

    def now(self, slice_names: Set[str]) -> list[tuple[str, float, int]]:
        """Gangs that hold some of these slices: name, since when (of the monotonic clock), how many; eldest first."""
        long_ago, generation = time.monotonic() - SETTLE_SECONDS, session.generation()
        with self._lock:
            self._held = {
                name: held
                for name, held in self._held.items()
                if held[0].generation == generation and held[0].released_at > long_ago
            }
            held = [(who, since) for name, (_, who, since) in self._held.items() if name in slice_names]
        return [(*one, held.count(one)) for one in sorted(dict.fromkeys(held), key=lambda one: one[1])]
