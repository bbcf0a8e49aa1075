"""What Ray's control service (GCS) knows of nodes: which are gone, drained or told to end."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import ray
from ray._private import state as ray_state

from prefect_tpu.linux import probe

DRAIN_REASON_PREEMPTION = 2
"""Of Ray's autoscaler protocol (DrainNodeReason), as a number."""
DEATHS_THAT_WERE_ASKED_FOR = (1, 3, 4)
"""Of Ray's NodeDeathInfo.Reason: EXPECTED_TERMINATION, AUTOSCALER_DRAIN_PREEMPTED, AUTOSCALER_DRAIN_IDLE."""


def vanished(node_ids: Collection[str]) -> set[str]:
    """Those Ray nodes that are dead in Ray's eyes, or whose raylet takes no connection any more."""
    nodes = {node["NodeID"]: node for node in ray_state.state.node_table() if node["NodeID"] in node_ids}
    endpoints = {
        node_id: (node["NodeManagerAddress"], node["NodeManagerPort"])
        for node_id, node in nodes.items()
        if node["Alive"]
    }
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


def drain(node_id: str, deadline_unix_seconds: float | None, message: str) -> float | None:
    """Have Ray schedule nothing more on a node; it ends nothing there, not even at the deadline.

    Returns:
        The deadline as `draining` will tell it.

    Raises:
        RuntimeError: Ray refuses.
    """
    client: Any = ray._private.worker.global_worker.gcs_client
    deadline_ms = int(deadline_unix_seconds * 1000) if deadline_unix_seconds else 0
    accepted, reason = client.drain_node(node_id, DRAIN_REASON_PREEMPTION, message, deadline_ms)
    if not accepted:
        raise RuntimeError(f"Ray refused to drain node {node_id[:8]}: {reason}")
    return deadline_ms / 1000 or None
