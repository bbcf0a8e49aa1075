"""The first process of one simulated host: starts its raylet, drains it when told, and dies with the fleet.

Forked by the fleet supervisor's main thread, so that many start at the same time. The raylet dies with the
keeper (the kernel sees to it), and the keeper with the supervisor.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import time
import traceback
from dataclasses import dataclass
from typing import Any

from prefect_tpu.sidecars.fleet_marks import die_with_parent

RAYLET_CHECK_SECONDS = 0.5
MIN_OBJECT_STORE_BYTES = 80 * 1024 * 1024
"""Ray refuses less than 75 MiB."""
DRAIN_REASON_PREEMPTION = 2
"""`DRAIN_NODE_REASON_PREEMPTION` of Ray's autoscaler.proto."""


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


def run(plan: KeeperPlan, channel: socket.socket, supervisor: int) -> None:
    """Be the keeper of one host, in a freshly forked process. Does not return."""
    code = 1
    try:
        os.setsid()
        die_with_parent(supervisor)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        os.environ.update(plan.environment)
        try:
            node = start_node(plan)
        except BaseException as error:  # noqa: BLE001 - told to the supervisor, which tells the driver
            traceback.print_exc()
            _send(channel, {"failed": f"{type(error).__name__}: {error}"})
            return
        _send(channel, {"up": node.node_id, "gcs_address": node.gcs_address})
        _serve(node, channel)
        code = 0
    finally:
        os._exit(code)


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


def _serve(node: Any, channel: socket.socket) -> None:
    raylet = node.all_processes["raylet"][0].process
    while True:
        readable, _, _ = select.select([channel], [], [], RAYLET_CHECK_SECONDS)
        if raylet.poll() is not None:
            return
        if not readable:
            continue
        line = channel.recv(65536)
        if not line:
            return
        request = json.loads(line)
        try:
            _send(channel, {"drained": _drain(node, request["drain_seconds"])})
        except Exception as error:  # noqa: BLE001 - told to the supervisor
            _send(channel, {"failed": f"{type(error).__name__}: {error}"})


def _drain(node: Any, seconds: float) -> bool:
    deadline_ms = int((time.time() + seconds) * 1000)
    accepted, reason = node.get_gcs_client().drain_node(
        node.node_id, DRAIN_REASON_PREEMPTION, "simulated preemption notice", deadline_ms
    )
    if not accepted:
        raise RuntimeError(f"Ray refused the drain: {reason}")
    return True


def _send(channel: socket.socket, message: dict[str, Any]) -> None:
    with contextlib.suppress(OSError):
        channel.sendall(json.dumps(message).encode() + b"\n")
