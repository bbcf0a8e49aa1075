"""Ray's TPU tables: the only module that touches Ray's alpha TPU helpers. The names are in `tpu_names`."""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping

import ray  # noqa: F401 - before parts of it: see tests/test_house.py
from ray._private.accelerators.tpu import (
    VALID_TPU_TOPOLOGY,
    get_chips_per_host,
    infer_tpu_pod_type_from_topology,
)

from prefect_tpu.core.topology import SliceShape, normalise_accelerator, normalise_topology, slice_shape


def topologies() -> Mapping[str, Collection[str]]:
    """Topologies of every TPU type that the installed Ray knows."""
    table: Mapping[str, Collection[str]] = VALID_TPU_TOPOLOGY
    return table


@functools.cache
def _pods() -> Mapping[str, tuple[str, Collection[str]]]:
    """Accelerator type and topologies of every pod type, such as "v4-16"."""
    found: dict[str, tuple[str, list[str]]] = {}
    for name, valid in topologies().items():
        for topology in valid:
            found.setdefault(infer_tpu_pod_type_from_topology(topology, name) or "", (name, []))[1].append(topology)
    return found


def resolve_shape(accelerator_type: str, topology: str, chips_per_host: int | None = None) -> SliceShape:
    """What a slice of this type and topology is made of.

    Args:
        accelerator_type: "v4", "v5e", "TPU-V6E", ...
        topology: "2x2x2", "4x4", ...
        chips_per_host: None for what Ray says that hosts of this type have.

    Raises:
        TopologyError: unknown type or topology (the message lists the valid ones), or it does not divide.
    """
    table = topologies()
    name = normalise_accelerator(accelerator_type, table, _pods())
    plain = normalise_topology(topology, name, table[name])
    chips = get_chips_per_host(plain, name) if chips_per_host is None else chips_per_host
    pod_type = infer_tpu_pod_type_from_topology(plain, name) or f"{name}-{plain}"
    return slice_shape(name, plain, table=table, chips_per_host=chips, pod_type=pod_type)
