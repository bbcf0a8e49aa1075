"""Who is in a gang: hosts and slices, and the order in which they are numbered."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Host:
    """One host of a slice as the fleet sees it.

    Attributes:
        node_id: Ray's node id, hex.
        worker_id: `ray.io/tpu-worker-id`, counted from 0 inside the slice.
        address: IP address that other hosts reach it by.
        chips: TPU chips of this host.
        has_head_resource: whether it holds the slice's `TPU-<pod type>-head` resource.
    """

    node_id: str
    worker_id: int
    address: str
    chips: int
    has_head_resource: bool = False


@dataclass(frozen=True, slots=True)
class Slice:
    """One slice of a fleet: its name and its hosts in worker-id order."""

    name: str
    hosts: tuple[Host, ...]


@dataclass(frozen=True, slots=True)
class Member:
    """One host process of a gang.

    Attributes:
        process_id: `slice_index * hosts_per_slice + host_index`.
        slice_index: counted from 0 in the gang's slice order.
        host_index: counted from 0 inside its slice.
        slice_name: the slice's name in the fleet.
        host: where it runs.
    """

    process_id: int
    slice_index: int
    host_index: int
    slice_name: str
    host: Host

    @property
    def label(self) -> str:
        """How this host is named in logs and errors."""
        return f"slice {self.slice_index} host {self.host_index}"


@dataclass(frozen=True, slots=True)
class Gang:
    """All host processes of one task run: slices in numeric order, hosts by worker id."""

    slices: tuple[Slice, ...]

    @property
    def num_slices(self) -> int:
        return len(self.slices)

    @property
    def hosts_per_slice(self) -> int:
        return len(self.slices[0].hosts)

    @property
    def num_processes(self) -> int:
        return self.num_slices * self.hosts_per_slice

    @property
    def members(self) -> tuple[Member, ...]:
        """Every host process in process-id order."""
        per_slice = self.hosts_per_slice
        return tuple(
            Member(
                process_id=slice_index * per_slice + host_index,
                slice_index=slice_index,
                host_index=host_index,
                slice_name=one.name,
                host=host,
            )
            for slice_index, one in enumerate(self.slices)
            for host_index, host in enumerate(one.hosts)
        )

    @property
    def coordinator(self) -> Host:
        """Host 0 of slice 0: JAX's and MegaScale's coordinator run there."""
        return self.slices[0].hosts[0]


def sizes_of(num_slices: int | Sequence[int]) -> tuple[int, ...]:
    """The numbers of slices that a gang may have, ascending: of 2 it is (2,), of [4, 2] it is (2, 4)."""
    return (num_slices,) if isinstance(num_slices, int) else tuple(sorted(set(num_slices)))


def numeric_key(name: str) -> tuple[tuple[int, int, str], ...]:
    """Sort key that puts "slice-2" before "slice-10"."""
    return tuple((0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", name) if part)


def order_slices(slices: tuple[Slice, ...]) -> tuple[Slice, ...]:
    """Slices in numeric order of their names, each with its hosts in worker-id order."""
    ordered = sorted(slices, key=lambda one: numeric_key(one.name))
    return tuple(Slice(one.name, tuple(sorted(one.hosts, key=lambda host: host.worker_id))) for one in ordered)
