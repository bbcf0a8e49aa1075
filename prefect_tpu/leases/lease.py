"""The hold on slices: one placement group for each."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

import ray  # noqa: F401 - before parts of it: see tests/test_house.py
from ray.util.placement_group import placement_group, remove_placement_group

from prefect_tpu.cluster import session, tpu_names
from prefect_tpu.core.gang import Gang, Slice, numeric_key, order_slices
from prefect_tpu.core.topology import SliceShape

log = logging.getLogger("prefect_tpu.leases")

LONGEST_HAND_OVER_SECONDS = 30.0
"""A lease older than this is not handed on inside the process, so that other processes get their turn."""

Extra = tuple[tuple[str, float], ...]
"""Resources beside the chips that are reserved on each host, sorted by name: (("CPU", 4.0),)."""


@dataclass(slots=True)
class Lease:
    """Our hold on one slice: a placement group over the chips of all its hosts.

    Attributes:
        slice: which.
        group: Ray's placement group.
        generation: of the connection that it belongs to.
        reserved_at: of the monotonic clock.
        extra: resources beside the chips.
        released_at: when it was given back, of the monotonic clock; infinite until then.
    """

    slice: Slice
    group: Any
    generation: int
    reserved_at: float
    extra: Extra = ()
    released_at: float = math.inf

    def release(self) -> None:
        """Give the slice back. Safe to call twice, and after the cluster has gone."""
        if self.released_at != math.inf:
            return
        self.released_at = time.monotonic()
        try:
            # Of another generation: its cluster is not connected any more, and the group went with the connection.
            session.while_connected(self.generation, lambda: remove_placement_group(self.group))
        except Exception as error:  # noqa: BLE001 - the cluster may be gone, and its groups with it
            log.debug("could not remove the placement group of %s: %s", self.slice.name, error)


@dataclass(slots=True)
class GangLease:
    """The leases of all slices of a gang.

    Attributes:
        leases: one for each slice, in numeric order of their names at first.
        generation: of the connection that they belong to.
        look_again: called when slices were given back: somebody may wait for them.
        keep: takes leases for the next gang, until that time of the monotonic clock.
    """

    leases: list[Lease]
    generation: int
    look_again: Callable[[], None]
    keep: Callable[[list[Lease], float], None]
    _released: bool = False
    _missing: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.leases.sort(key=lambda one: numeric_key(one.slice.name))

    @property
    def gang(self) -> Gang:
        """Its slices; one that has taken another's place has its index, too."""
        return Gang(tuple(order_slices((lease.slice,))[0] for lease in self.leases))

    @property
    def missing(self) -> int:
        """How many slices were dropped and not filled in again."""
        return len(self._missing)

    def drop(self, slice_names: Collection[str]) -> None:
        """Give back the slices of these names and keep the others, with their places."""
        for index, lease in enumerate(self.leases):
            if lease.slice.name in slice_names and index not in self._missing:
                lease.release()
                self._missing.append(index)
        self.look_again()

    def fill(self, other: GangLease) -> None:
        """Take over the slices of another lease, in the places of those that were dropped, as far as they go."""
        places = sorted(self._missing)
        for index, lease in zip(places, other.leases, strict=False):
            self.leases[index] = lease
        self._missing = places[len(other.leases) :]
        other._hand_on()

    def extend(self, other: GangLease) -> None:
        """Take over the slices of another lease, behind those that are there."""
        self.leases.extend(other.leases)
        other._hand_on()

    def shrink(self, num_slices: int) -> None:
        """Go on with so many: without those that were dropped, the others in their order; give back the rest."""
        kept = [lease for index, lease in enumerate(self.leases) if index not in self._missing]
        self.leases, self._missing = kept[:num_slices], []
        release_all(kept[num_slices:])
        self.look_again()

    def _hand_on(self) -> None:
        """Its slices are another lease's now."""
        self._released = True
        session.release()

    def release(self) -> None:
        """Give every slice back."""
        if self._released:
            return
        self._released = True
        for lease in self.leases:
            lease.release()
        session.release()
        self.look_again()

    def hand_over(self, linger_seconds: float) -> None:
        """Leave the slices to the next gang of this process; if none takes them, they are given back.

        Ray needs some tenths of a second until what is given back can be reserved again; gangs that follow
        each other need not wait for that.
        """
        now = time.monotonic()
        if (
            linger_seconds <= 0
            or self._missing
            or any(now - one.reserved_at > LONGEST_HAND_OVER_SECONDS for one in self.leases)
        ):
            self.release()
        elif not self._released:
            self._released = True
            session.release()
            self.keep(self.leases, now + linger_seconds)


def reserve(one: Slice, shape: SliceShape, extra: Extra) -> Lease:
    """Ask Ray for the chips of every host of a slice, and what else is wanted there; does not wait for them."""
    # The head resource goes with host 0, so that programs which claim slices by it stay away.
    bundles = [
        {tpu_names.CHIP_RESOURCE: float(host.chips)}
        | ({tpu_names.head_resource(shape.pod_type): 1.0} if host.has_head_resource else {})
        | dict(extra)
        for host in one.hosts
    ]
    group = placement_group(
        bundles,
        strategy="STRICT_SPREAD" if len(bundles) > 1 else "PACK",
        bundle_label_selector=[{tpu_names.NODE_ID_LABEL: host.node_id} for host in one.hosts],
    )
    return Lease(one, group, session.generation(), time.monotonic(), extra)


def release_all(leases: list[Lease]) -> None:
    """Give all of them back."""
    for lease in leases:
        lease.release()
