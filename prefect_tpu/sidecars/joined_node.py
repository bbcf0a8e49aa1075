"""The process behind `RayFleet(join=True)`: a Ray node without resources on the driver's machine. Ends with its driver.

Usage: python -m prefect_tpu.sidecars.joined_node HOST:PORT DIRECTORY STORE_BYTES. Standard input: the driver's pipe.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys

from prefect_tpu.cluster.start_node import MAX_STARTS, NodePlan, RayNode, start_node


def main(gcs_address: str, directory: str, store_bytes: int) -> int:
    """Start the node, say so, and stay until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the driver decides
    plan = NodePlan(
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
    node: RayNode | None = None
    try:
        node = _start(plan)
        print(json.dumps({"node_id": node.node_id}), flush=True)
        pipe = sys.stdin.fileno()
        return 0 if node.watch(pipe, lambda: bool(os.read(pipe, 1))) else 1
    finally:
        if node is not None:
            node.kill()
        shutil.rmtree(directory, ignore_errors=True)


def _start(plan: NodePlan) -> RayNode:
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
