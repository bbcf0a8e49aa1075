"""What Ray's control service (GCS) is asked and told: nodes, drains, its key-value store, its autoscaler's words."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import ray  # noqa: F401 - before parts of it: see tests/test_house.py
from ray._private import state as ray_state
from ray._private.worker import global_worker
from ray._raylet import (  # type: ignore[attr-defined]
    AuthenticationMode,
    GcsClient,
    GcsClientOptions,
    get_authentication_mode,
)
from ray.core.generated import autoscaler_pb2
from ray.exceptions import RayError

from prefect_tpu.core.errors import ConfigurationError
from prefect_tpu.linux import probe

DRAIN_REASON_PREEMPTION = 2
"""`DRAIN_NODE_REASON_PREEMPTION` of Ray's autoscaler.proto."""
DEATHS_THAT_WERE_ASKED_FOR = (1, 3, 4)
"""Of Ray's NodeDeathInfo.Reason: EXPECTED_TERMINATION, AUTOSCALER_DRAIN_PREEMPTED, AUTOSCALER_DRAIN_IDLE."""
KEY_VALUE_SECONDS = 5.0
"""For one call to the key-value store."""

Node = dict[str, Any]
"""As `ray.nodes()` gives it."""

log = logging.getLogger("prefect_tpu.leases")


@dataclass(frozen=True, slots=True)
class NodeTable:
    """Every node that Ray remembers.

    Attributes:
        nodes: those that were looked for and do not answer any more are not "Alive".
        available: unreserved resources by node id.
        draining: ids of nodes that are being drained.
    """

    nodes: list[Node]
    available: Mapping[str, Mapping[str, float]]
    draining: Collection[str]


def asks_for_token() -> bool:
    """Whether this process shows a token to the Ray cluster that it is connected to."""
    return bool(get_authentication_mode() == AuthenticationMode.TOKEN)


def node_table(probed: Callable[[Node], bool]) -> NodeTable:
    """Of the cluster that this process is connected to.

    Ray itself needs up to 20 s to find that a host has gone of which nobody holds an actor.

    Args:
        probed: whether it is looked, by a connection, if a node still answers.
    """
    return _read(ray_state.state, probed)


def node_table_at(address: str, probed: Callable[[Node], bool]) -> NodeTable:
    """The same of the cluster at "host:port", without connecting this process to it.

    Raises:
        ConfigurationError: it does not answer, or not to this process.
    """
    state: Any = ray_state.GlobalState()
    state._initialize_global_state(
        GcsClientOptions.create(address, None, allow_cluster_id_nil=True, fetch_cluster_id_if_nil=False)
    )
    try:
        return _read(state, probed)
    except RayError as error:
        raise ConfigurationError(f"Ray at {address} does not tell its nodes: {error}") from error
    finally:
        state.disconnect()


def _read(state: Any, probed: Callable[[Node], bool]) -> NodeTable:
    nodes: list[Node] = state.node_table()
    endpoints = {node["NodeID"]: _endpoint(node) for node in nodes if probed(node)}
    silent = probe.unreachable(endpoints.values())
    for node in nodes:
        if endpoints.get(node["NodeID"]) in silent:
            node["Alive"] = False
    return NodeTable(nodes, state.available_resources_per_node(), state.get_draining_nodes())


def vanished(node_ids: Collection[str]) -> set[str]:
    """Those Ray nodes that are dead in Ray's eyes, or whose raylet takes no connection any more."""
    nodes = [node for node in ray_state.state.node_table() if node["NodeID"] in node_ids]
    endpoints = {node["NodeID"]: _endpoint(node) for node in nodes if node["Alive"]}
    silent = probe.unreachable(endpoints.values())
    return {node_id for node_id in node_ids if node_id not in endpoints or endpoints[node_id] in silent}


def told_to_end(node_ids: Collection[str]) -> dict[str, str]:
    """Those of these Ray nodes that ended because they were told to (SIGTERM, or a drain by the autoscaler), and why.

    That is how a machine that is taken away ends: its system, or Kubernetes, sends SIGTERM before it pulls the plug.
    """
    return {
        node["NodeID"]: node.get("DeathReasonMessage") or "told to end"
        for node in ray_state.state.node_table()
        if node["NodeID"] in node_ids and not node["Alive"] and node.get("DeathReason") in DEATHS_THAT_WERE_ASKED_FOR
    }


def draining() -> dict[str, float | None]:
    """Ray nodes that are being drained, each with the deadline in seconds of Unix time, None if it has none."""
    return {node_id: ms / 1000 or None for node_id, ms in ray_state.state.get_draining_nodes().items()}


def drain(node_id: str, deadline_unix_seconds: float | None, message: str, client: Any = None) -> float | None:
    """Have Ray schedule nothing more on a node; it ends nothing there, not even at the deadline.

    Args:
        node_id: Ray's.
        deadline_unix_seconds: until it is gone; None if that is not known.
        message: why, for who looks at Ray's node table.
        client: of another GCS than this process is connected to.

    Returns:
        The deadline as `draining` will tell it.

    Raises:
        RuntimeError: Ray refuses.
    """
    deadline_ms = int(deadline_unix_seconds * 1000) if deadline_unix_seconds else 0
    client = client or global_worker.gcs_client
    accepted, reason = client.drain_node(node_id, DRAIN_REASON_PREEMPTION, message, deadline_ms)
    if not accepted:
        raise RuntimeError(f"Ray refused to drain node {node_id[:8]}: {reason}")
    return deadline_ms / 1000 or None


class KeyValueStore:
    """Ray's store of small values at "host:port", which no connection of this process is needed for."""

    def __init__(self, address: str, namespace: bytes) -> None:
        self._client: Any = GcsClient(address=address)
        self._namespace = namespace

    def put(self, key: str, value: str) -> None:
        """Keep it in place of what was there."""
        self._client.internal_kv_put(key.encode(), value.encode(), True, self._namespace, KEY_VALUE_SECONDS)

    def get(self, key: str) -> str | None:
        """What is kept, None if nothing is."""
        found = self._client.internal_kv_get(key.encode(), self._namespace, KEY_VALUE_SECONDS)
        return found.decode() if isinstance(found, bytes) else None


def answers(address: str) -> bool:
    """Whether something listens where Ray's head is; Ray's own clients try for 40 s."""
    host, _, port = address.rpartition(":")
    try:
        return not probe.unreachable([(host.strip("[]"), int(port))])
    except OSError:  # the name of its host is not known any more
        return False


def said_by_autoscaler(group_id: str) -> str:
    """What Ray's autoscaler says of a placement group that waits, as an addition to a sentence; "" if nothing.

    Only its second version says anything.
    """
    try:
        status = global_worker.gcs_client.get_cluster_status()
        state = autoscaler_pb2.GetClusterStatusReply.FromString(status).autoscaling_state
    except Exception as error:  # noqa: BLE001 - it only says more
        log.debug("cannot ask Ray for its autoscaler's state: %s", error)
        return ""
    text = ""
    if any(group_id in one.details for one in state.infeasible_gang_resource_requests):
        text += (
            "; it cannot bring them up now: no worker group of the cluster is of this type, or the groups have reached "
            "their maximum (`ray status` on the head)"
        )
    failed = max(state.failed_instance_requests, key=lambda one: one.failed_ts, default=None)
    if failed is not None:
        text += f"; its last start of {failed.ray_node_type_name} failed: {failed.reason}"
    return text


def _endpoint(node: Node) -> tuple[str, int]:
    return node["NodeManagerAddress"], node["NodeManagerPort"]
