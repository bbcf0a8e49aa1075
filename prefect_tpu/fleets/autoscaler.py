"""Asks Ray's autoscaler for the slices that a gang waits for, and takes that back when it waits no more."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import ray
from ray.util.placement_group import placement_group, placement_group_table, remove_placement_group

from prefect_tpu.cluster import gcs, session, tpu_names
from prefect_tpu.core.topology import SliceShape

log = logging.getLogger("prefect_tpu.leases")

SETTLE_SECONDS = 1.0
"""Nothing is asked for before: chips that were just given back take a moment to show as free."""
HAND_OVER_SECONDS = 5.0
"""How long the slices that came have to be leased before they are asked for again; doubled after each time."""
HAND_OVER_LONGEST_SECONDS = 60.0
NAME_PREFIX = "prefect-tpu-demand-"
"""Of the placement groups, as `ray list placement-groups` shows them."""


@dataclass(slots=True)
class AutoscalerDemand:
    """One placement group over all hosts that a gang waits for; pending, it is what makes Ray's autoscaler start hosts.

    It belongs to the process, and Ray removes it when that ends, however it does. It is over all slices, so that
    gangs which wait do not hold some slices each. When it can be placed, the slices are there: it is removed, and
    the gang leases them as it leases any others, each pinned to its hosts.
    """

    shape: SliceShape
    run_id: str
    _lock: threading.Lock = field(init=False, default_factory=threading.Lock)
    _wanted: int = field(init=False, default=0)
    _group: Any = field(init=False, default=None)
    _generation: int = field(init=False, default=0)
    _not_before: float = field(init=False, default=0.0)
    _asked_at: float = field(init=False, default=0.0)
    _hand_over_seconds: float = field(init=False, default=HAND_OVER_SECONDS)

    def waiting(self, num_slices: int) -> None:
        """So many slices are looked for from now on; none: nothing is asked for any more."""
        with self._lock:
            if num_slices == self._wanted:
                return
            self._remove()
            now = time.monotonic()
            self._wanted, self._hand_over_seconds = num_slices, HAND_OVER_SECONDS
            self._not_before, self._asked_at = now + SETTLE_SECONDS, now

    def check(self) -> None:
        """Ask, or make room for the gang's lease if what was asked for is there. Slices may always come yet."""
        with self._lock, contextlib.suppress(ray.exceptions.RayError):
            now = time.monotonic()
            if not self._wanted or now < self._not_before:
                return
            if self._group is None:
                self._generation = session.generation()
                self._group = placement_group(
                    bundles(self.shape) * self._wanted,
                    strategy="STRICT_SPREAD" if self._wanted * self.shape.hosts > 1 else "PACK",
                    name=f"{NAME_PREFIX}{self.run_id}-{uuid4().hex[:8]}",  # Ray refuses a name that it has seen
                )
            elif placement_group_table(self._group).get("state") != "PENDING":
                # Whoever else waits may take them first, and so may it be for the others: the pause grows.
                self._remove()
                self._not_before = now + self._hand_over_seconds
                self._hand_over_seconds = min(2 * self._hand_over_seconds, HAND_OVER_LONGEST_SECONDS)

    def describe(self) -> str:
        """What was asked for, and what the autoscaler says to it."""
        with self._lock:
            if self._group is None:
                return ""
            seconds = time.monotonic() - self._asked_at
            said = gcs.said_by_autoscaler(self._group.id.hex())
            return (
                f"Ray's autoscaler has been asked for {self._wanted} {self.shape.accelerator_type} "
                f"{self.shape.topology} slices for {seconds:.0f} s{said}"
            )

    def withdraw(self) -> None:
        """Nothing is wanted any more."""
        self.waiting(0)

    def _remove(self) -> None:
        group, self._group = self._group, None
        if group is None:
            return
        try:
            # Of another generation: the group went with its connection.
            session.while_connected(self._generation, lambda: remove_placement_group(group))
        except Exception as error:  # noqa: BLE001 - the cluster may be gone, and its groups with it
            log.debug("could not remove a demand's placement group: %s", error)


def bundles(shape: SliceShape) -> list[dict[str, float]]:
    """What one slice is for the autoscaler: a host with the head resource, which tells the type, and the others.

    All hosts, not only the head: on KubeRay Ray's autoscaler counts hosts and divides by those of a slice.
    """
    chips = float(shape.chips_per_host)
    head = {tpu_names.CHIP_RESOURCE: chips, tpu_names.head_resource(shape.pod_type): 1.0}
    return [head] + [{tpu_names.CHIP_RESOURCE: chips}] * (shape.hosts - 1)


__all__ = ["AutoscalerDemand"]
