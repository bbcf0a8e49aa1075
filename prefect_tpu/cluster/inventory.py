"""Which slices the connected Ray cluster has, which of them are whole, and which are free."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from prefect_tpu.cluster import gcs, tpu, tpu_names
from prefect_tpu.core.errors import TopologyError
from prefect_tpu.core.gang import Host, Slice, numeric_key, order_slices
from prefect_tpu.core.topology import SliceShape


@dataclass(frozen=True, slots=True)
class SliceStatus:
    """One slice as the cluster shows it.

    Attributes:
        name: of the slice; a single-host slice without one is called by its node id.
        accelerator_type: "v4", "" if the labels do not say.
        topology: "2x2x2", "" if the labels do not say.
        pod_type: "v4-16", "" if the labels do not say.
        hosts_alive: hosts that the cluster counts as alive.
        hosts_expected: by its topology; None if that is not known.
        chips: of all hosts that are alive.
        free: none of its chips is reserved.
        draining: at least one host is about to go away.
        problem: why it is not whole; "" if it is.
        slice: its hosts that are alive, in worker-id order.
    """

    name: str
    accelerator_type: str
    topology: str
    pod_type: str
    hosts_alive: int
    hosts_expected: int | None
    chips: int
    free: bool
    draining: bool
    problem: str
    slice: Slice

    @property
    def intact(self) -> bool:
        return not self.problem

    @property
    def usable(self) -> bool:
        """Free, and not about to go away."""
        return self.free and not self.draining

    def describe(self) -> str:
        """One phrase for messages: "slice-1 (v4 2x2x2, 2 of 2 hosts, 8 chips): free"."""
        expected = "?" if self.hosts_expected is None else self.hosts_expected
        kind = " ".join(part for part in (self.accelerator_type, self.topology) if part) or "unknown type"
        if self.problem:
            use = f"not whole: {self.problem}"
        elif self.draining:
            use = "draining"
        else:
            use = "free" if self.free else "taken"
        return f"{self.name} ({kind}, {self.hosts_alive} of {expected} hosts, {self.chips} chips): {use}"


@dataclass(frozen=True, slots=True)
class FleetSummary:
    """Every slice that was seen, and how many hosts have no TPU at all."""

    slices: tuple[SliceStatus, ...]
    hosts_without_tpu: int

    def describe(self) -> str:
        """One line for messages."""
        if not self.slices:
            return f"no TPU slices ({self.hosts_without_tpu} hosts without TPU)"
        return "; ".join(one.describe() for one in self.slices)


def fitting(shape: SliceShape) -> list[SliceStatus]:
    """Slices of this shape that are whole, free or not, in numeric order of their names."""
    return [one for one in summary().slices if fits(one, shape)]


def free_slices(shape: SliceShape) -> list[Slice]:
    """Those of them that are not draining and have every chip unreserved."""
    return [one.slice for one in fitting(shape) if one.usable]


def fits(status: SliceStatus, shape: SliceShape) -> bool:
    """Whether a slice is whole and of this shape."""
    return (
        status.intact
        and status.pod_type == shape.pod_type
        and status.topology == shape.topology
        and len(status.slice.hosts) == shape.hosts
        and all(host.chips == shape.chips_per_host for host in status.slice.hosts)
    )


def no_slices_message(address: str) -> str | None:
    """What to tell a user whose Ray cluster has no TPU hosts; None if it has some."""
    found = summary()
    if found.slices:
        return None
    return (
        f"Ray at {address} has {found.hosts_without_tpu} hosts, and none of them has TPU chips. Ray finds them "
        "on TPU VMs when it is started there; on GKE use the Ray operator's TPU webhook. For simulated slices "
        "on this machine use LocalFleet(), or start some with `prefect-tpu fleet up`."
    )


def summary() -> FleetSummary:
    """Read every slice from the cluster that this process is connected to.

    Hosts that do not answer any more are left out: Ray itself needs up to 20 s to find that a host has gone
    of which nobody holds an actor.
    """
    return _summary_of(gcs.node_table(_has_chips))


def summary_at(address: str) -> FleetSummary:
    """The same for the cluster at "host:port", without connecting this process to it."""
    return _summary_of(gcs.node_table_at(address, _has_chips))


def _summary_of(table: gcs.NodeTable) -> FleetSummary:
    return summarise(table.nodes, table.available, table.draining)


def _has_chips(node: Mapping[str, Any]) -> bool:
    return bool(node["Alive"]) and node["Resources"].get(tpu_names.CHIP_RESOURCE, 0) >= 1


def summarise(
    nodes: list[dict[str, Any]],
    available: Mapping[str, Mapping[str, float]],
    draining: Collection[str],
) -> FleetSummary:
    """Sort Ray's nodes into slices.

    Args:
        nodes: as `ray.nodes()` gives them.
        available: unreserved resources by node id.
        draining: node ids that are being drained.
    """
    alive = [node for node in nodes if node["Alive"]]
    groups: dict[str, list[dict[str, Any]]] = {}
    for node in alive:
        if _has_chips(node):
            groups.setdefault(node["Labels"].get(tpu_names.SLICE_NAME_LABEL) or node["NodeID"], []).append(node)
    for node in nodes:
        # A slice of which nothing is left is still worth a line, as long as Ray remembers it.
        name = node["Labels"].get(tpu_names.SLICE_NAME_LABEL) if not node["Alive"] else None
        if name and name not in groups:
            groups[name] = []
    dead = {
        node["Labels"][tpu_names.SLICE_NAME_LABEL]: node["Labels"]
        for node in nodes
        if not node["Alive"] and tpu_names.SLICE_NAME_LABEL in node["Labels"]
    }
    slices = [_status(name, members, dead.get(name, {}), available, draining) for name, members in groups.items()]
    slices.sort(key=lambda one: numeric_key(one.name))
    with_tpu = sum(len(members) for members in groups.values())
    return FleetSummary(tuple(slices), len(alive) - with_tpu)


def _status(
    name: str,
    members: list[dict[str, Any]],
    dead_labels: Mapping[str, str],
    available: Mapping[str, Mapping[str, float]],
    draining: Collection[str],
) -> SliceStatus:
    labels = [node["Labels"] for node in members] or [dead_labels]
    pod_types = {one.get(tpu_names.POD_TYPE_LABEL, "") for one in labels}
    topologies = {one.get(tpu_names.TOPOLOGY_LABEL, "") for one in labels}
    pod_type, topology = min(pod_types), min(topologies)
    accelerator_type = pod_type.partition("-")[0]
    hosts = [_host(node, pod_type) for node in members]
    chips = sum(host.chips for host in hosts)
    expected = _expected_hosts(accelerator_type, topology, {host.chips for host in hosts})
    return SliceStatus(
        name=name,
        accelerator_type=accelerator_type,
        topology=topology,
        pod_type=pod_type,
        hosts_alive=len(hosts),
        hosts_expected=expected,
        chips=chips,
        free=bool(hosts)
        and all(
            available.get(host.node_id, {}).get(tpu_names.CHIP_RESOURCE, 0) >= host.chips
            and (not host.has_head_resource or available[host.node_id].get(tpu_names.head_resource(pod_type), 0) >= 1)
            for host in hosts
        ),
        draining=any(host.node_id in draining for host in hosts),
        problem=_problem(hosts, pod_types, topologies, expected),
        slice=order_slices((Slice(name, tuple(hosts)),))[0],
    )


def _host(node: dict[str, Any], pod_type: str) -> Host:
    worker_id = node["Labels"].get(tpu_names.WORKER_ID_LABEL, "0")
    return Host(
        node_id=node["NodeID"],
        worker_id=int(worker_id) if worker_id.isdigit() else -1,
        address=node["NodeManagerAddress"],
        chips=int(node["Resources"].get(tpu_names.CHIP_RESOURCE, 0)),
        has_head_resource=tpu_names.head_resource(pod_type) in node["Resources"],
    )


def _expected_hosts(accelerator_type: str, topology: str, chips: set[int]) -> int | None:
    try:
        # If hosts of a topology may come in several sizes, what they say themselves counts; too few chips
        # on a host then shows as too few hosts.
        size = chips.pop() if len(chips) == 1 else None
        try:
            return tpu.resolve_shape(accelerator_type, topology, size).hosts
        except TopologyError:
            return tpu.resolve_shape(accelerator_type, topology).hosts
    except TopologyError:
        return None


def _problem(hosts: list[Host], pod_types: set[str], topologies: set[str], expected: int | None) -> str:
    """Why these hosts are not one whole slice; "" if they are."""
    if not hosts:
        return "no host is alive"
    if len(pod_types) > 1 or len(topologies) > 1:
        return f"its hosts say different things: {sorted(pod_types)}, {sorted(topologies)}"
    if expected is None:
        return f"Ray's labels do not tell what it is (pod type {min(pod_types)!r}, topology {min(topologies)!r})"
    if len(hosts) != expected:
        return f"{len(hosts)} of {expected} hosts alive"
    counts = {host.chips for host in hosts}
    if len(counts) > 1:
        return f"its hosts have different numbers of chips: {sorted(counts)}"
    ids = sorted(host.worker_id for host in hosts)
    if ids != list(range(expected)):
        return f"worker ids {ids} instead of 0 to {expected - 1}"
    return ""
