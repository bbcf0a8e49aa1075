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
from typing import Any

from prefect_tpu.cluster.start_node import KeeperPlan, start_node
from prefect_tpu.linux.processes import die_with_parent

RAYLET_CHECK_SECONDS = 0.5
DRAIN_REASON_PREEMPTION = 2
"""`DRAIN_NODE_REASON_PREEMPTION` of Ray's autoscaler.proto."""


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
