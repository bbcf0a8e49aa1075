"""The first process of one simulated host: starts its raylet, drains it when told, and dies with the fleet.

Forked by the fleet supervisor's main thread, so that many start at the same time. The raylet dies with the
keeper (the kernel sees to it), and the keeper with the supervisor.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import traceback
from typing import Any

from prefect_tpu.cluster.start_node import NodePlan, RayNode, start_node
from prefect_tpu.linux.processes import die_with_parent


def run(plan: NodePlan, channel: socket.socket, supervisor: int) -> None:
    """Be the process of one host, in a freshly forked process. Does not return."""
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


def _serve(node: RayNode, channel: socket.socket) -> None:
    def hear() -> bool:
        line = channel.recv(65536)
        if not line:
            return False
        try:
            node.drain(json.loads(line)["drain_seconds"], "simulated preemption notice")
            _send(channel, {"drained": True})
        except Exception as error:  # noqa: BLE001 - told to the supervisor
            _send(channel, {"failed": f"{type(error).__name__}: {error}"})
        return True

    node.watch(channel.fileno(), hear)


def _send(channel: socket.socket, message: dict[str, Any]) -> None:
    with contextlib.suppress(OSError):
        channel.sendall(json.dumps(message).encode() + b"\n")
