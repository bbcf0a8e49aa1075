"""Starts the raylet of one node, as `ray start` would, and looks after it. Nothing of Ray is imported before."""

from __future__ import annotations

import os
import select
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from prefect_tpu.cluster.tpu_names import CHIP_RESOURCE

MIN_OBJECT_STORE_BYTES = 80 * 1024 * 1024
"""Ray refuses less than 75 MiB."""
MAX_STARTS = 3
"""Of one node: Ray gives a raylet 30 s to register, which on a busy machine can be too little."""
RAYLET_CHECK_SECONDS = 0.5
_METRICS = "RAY_enable_metrics_collection"


@dataclass(frozen=True, slots=True)
class NodePlan:
    """One simulated host, a fleet's head, which has no chips, or a node that joins a cluster.

    Attributes:
        name: "slice-0/1", or "head".
        directory: for Ray's own files; short, because of the limit for socket names.
        gcs_address: of the head; None makes this the head.
        cpus, object_store_bytes, object_store_directory, resources, labels: what Ray is told.
        environment: variables beside those of the process that starts it.
        address: that it listens on; None for the one that Ray finds, which is the outer one.
        dashboard_agent: whether it gets Ray's agent for dashboards, metrics and jobs, where that is installed.
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
    address: str | None = None
    dashboard_agent: bool = True


class RayNode:
    """A node that this process has started, and that ends with it."""

    def __init__(self, node: Any) -> None:
        """`node`: Ray's own."""
        self._node = node
        self._raylet = node.all_processes["raylet"][0].process

    @property
    def node_id(self) -> str:
        return str(self._node.node_id)

    @property
    def gcs_address(self) -> str:
        return str(self._node.gcs_address)

    def watch(self, reader: int, hear: Callable[[], bool]) -> bool:
        """Stay until it is over.

        Args:
            reader: descriptor that orders come through.
            hear: called when there is something to read; whether to go on.

        Returns:
            Whether `hear` said so; False if the raylet has ended.
        """
        while True:
            readable, _, _ = select.select([reader], [], [], RAYLET_CHECK_SECONDS)
            if self._raylet.poll() is not None:
                return False
            if readable and not hear():
                return True

    def drain(self, seconds: float, message: str) -> None:
        """Ray's notice that the node will be gone in so many seconds.

        Raises:
            RuntimeError: Ray refuses.
        """
        from prefect_tpu.cluster import gcs

        gcs.drain(self.node_id, time.time() + seconds, message, self._node.get_gcs_client())

    def kill(self) -> None:
        """End its processes."""
        self._node.kill_all_processes(check_alive=False, allow_graceful=False)


def import_ray() -> None:
    """What `start_node` imports, ahead: for a process that is forked into many."""
    import ray
    import ray._private.node  # noqa: F401


def leave_out_dashboard_agents() -> None:
    """Nodes that this process starts have agents that serve nothing, as where `ray[default]` is not installed.

    Ray has no switch for it. It looks whether its dashboard's packages can be imported, and starts agents accordingly;
    such agents would still serve metrics.
    """
    sys.modules["ray.dashboard.optional_deps"] = None  # type: ignore[assignment]
    os.environ[_METRICS] = "0"


def start_node(plan: NodePlan) -> RayNode:
    """The node of a plan, started on the main thread."""
    import ray  # noqa: F401 - before parts of it: see tests/test_house.py
    from ray._private.node import Node
    from ray._private.parameter import RayParams

    is_head = plan.gcs_address is None
    os.makedirs(plan.directory, exist_ok=True)
    if not plan.dashboard_agent:
        leave_out_dashboard_agents()
    params: Any = RayParams(
        node_ip_address=plan.address,
        num_cpus=plan.cpus,
        num_gpus=0,
        # Explicit, or Ray would look for chips and count real ones of this machine.
        resources={CHIP_RESOURCE: 0, **plan.resources},
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
    return RayNode(Node(params, head=is_head, shutdown_at_exit=False, spawn_reaper=True))
