"""Starts the raylet of one node, as `ray start` would."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

MIN_OBJECT_STORE_BYTES = 80 * 1024 * 1024
"""Ray refuses less than 75 MiB."""


@dataclass(frozen=True, slots=True)
class KeeperPlan:
    """One simulated host, or the fleet's head, which has no chips.

    Attributes:
        name: "slice-0/1", or "head".
        directory: for Ray's own files; short, because of the limit for socket names.
        gcs_address: of the head; None makes this the head.
        cpus, object_store_bytes, object_store_directory, resources, labels: what Ray is told.
        environment: variables beside those of the supervisor.
    """

    name: str
    directory: str
    gcs_address: str | None
    cpus: int
    object_store_bytes: int
    object_store_directory: str | None
    resources: dict[str, float]
    labels: dict[str, str]
    environment: dict[str, str]


def start_node(plan: KeeperPlan) -> Any:
    """The Ray node of a plan, on the main thread; it ends with this process."""
    from ray._private.node import Node
    from ray._private.parameter import RayParams

    is_head = plan.gcs_address is None
    os.makedirs(plan.directory, exist_ok=True)
    params: Any = RayParams(
        num_cpus=plan.cpus,
        num_gpus=0,
        # Explicit, or Ray would look for chips and count real ones of this machine.
        resources={"TPU": 0, **plan.resources},
        labels=plan.labels,
        object_store_memory=max(plan.object_store_bytes, MIN_OBJECT_STORE_BYTES),
        plasma_directory=plan.object_store_directory,
        temp_dir=plan.directory,
        min_worker_port=0,
        max_worker_port=0,
        # Its default is one fixed port; on one machine every host but the first waits 3.5 s for it in vain.
        dashboard_agent_listen_port=0,
        node_name=plan.name,
    )
    params.update(include_log_monitor=False)
    if is_head:
        params.update(include_dashboard=False, no_monitor=True)
    else:
        params.update(gcs_address=plan.gcs_address)
    return Node(params, head=is_head, shutdown_at_exit=False, spawn_reaper=True)
