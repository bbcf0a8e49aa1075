"""The process behind `RayFleet(join=True)`: a Ray node without resources on the driver's machine. Ends with its driver.

Usage: python -m prefect_tpu.sidecars.joined_node HOST:PORT DIRECTORY STORE_BYTES. Standard input: the driver's pipe.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import sys
from typing import Any

CHECK_SECONDS = 0.5
MAX_STARTS = 3
"""Ray gives a raylet 30 s to register, which on a busy machine can be too little."""


def main(gcs_address: str, directory: str, store_bytes: int) -> int:
    """Start the node, say so, and stay until the pipe closes."""
    from prefect_tpu.cluster.start_node import KeeperPlan

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the driver decides
    plan = KeeperPlan(
        name=f"prefect-tpu-driver-{os.getppid()}",
        directory=directory,
        gcs_address=gcs_address,
        cpus=0,
        object_store_bytes=store_bytes,
        object_store_directory=None,
        resources={},
        labels={},
        environment={},
    )
    node: Any = None
    try:
        node = _start(plan)
        print(json.dumps({"node_id": node.node_id}), flush=True)
        raylet = node.all_processes["raylet"][0].process
        while raylet.poll() is None:
            readable, _, _ = select.select([sys.stdin], [], [], CHECK_SECONDS)
            if readable and not os.read(sys.stdin.fileno(), 1):
                return 0
        return 1
    finally:
        if node is not None:
            node.kill_all_processes(check_alive=False, allow_graceful=False)
        shutil.rmtree(directory, ignore_errors=True)


def _start(plan: Any) -> Any:
    from prefect_tpu.cluster.start_node import start_node

    for number in range(1, MAX_STARTS + 1):
        try:
            return start_node(plan)
        except Exception as error:
            if number == MAX_STARTS:
                raise
            print(f"start {number} of {MAX_STARTS} failed: {error}", file=sys.stderr, flush=True)
    raise AssertionError


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
