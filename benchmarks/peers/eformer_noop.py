"""eFormer's executor with a no-op, run by the Python of its own virtual environment, which has no prefect_tpu.

Usage: eformer_noop.py CALLS. A run counts up to the entry of the no-op on the last host: no JAX is
initialised and no collective done, which is to eFormer's advantage.
"""

from __future__ import annotations

import importlib.metadata
import os
import sys
import tempfile
import time

import ray
from collective import durations, first_marks, leave_note, read_notes
from eformer.executor.ray import JobSucceeded, RayExecutor, TpuAcceleratorConfig
from messages import Messages
from ray.cluster_utils import Cluster

SETTLE_SECONDS = 10.0
PAUSE_SECONDS = 2.0
SLICES, HOSTS_PER_SLICE, CHIPS = 2, 2, 4
CPUS_PER_HOST = 8
MEMORY_PER_HOST_BYTES = 100 * 1024**3
"""It asks Ray for 20 GB on each host."""
OBJECT_STORE_BYTES = 256 * 1024**2


@ray.remote
def enter(directory: str) -> None:
    """Leaves its note at entry."""
    leave_note(directory, os.getpid(), first_marks())


def start_hosts() -> Cluster:
    """The same simulated slices, made of Ray's own test cluster."""
    head = {"num_cpus": 0, "object_store_memory": OBJECT_STORE_BYTES, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    for index in range(SLICES):
        name = f"slice-{index}"
        for worker in range(HOSTS_PER_SLICE):
            resources = {"TPU": CHIPS, name: 1, "accelerator_type:TPU-V4": 1}
            cluster.add_node(
                wait=False,
                num_cpus=CPUS_PER_HOST,
                memory=MEMORY_PER_HOST_BYTES,
                object_store_memory=OBJECT_STORE_BYTES,
                resources=resources | ({"TPU-v4-16-head": 1} if worker == 0 else {}),
                labels={
                    "ray.io/tpu-slice-name": name,
                    "ray.io/tpu-worker-id": str(worker),
                    "ray.io/tpu-pod-type": "v4-16",
                    "ray.io/tpu-topology": "2x2x2",
                },
                env_vars={
                    "TPU_NAME": name,
                    "TPU_WORKER_ID": str(worker),
                    "TPU_ACCELERATOR_TYPE": "v4-16",
                    "TPU_TOPOLOGY": "2x2x2",
                },
            )
    cluster.wait_for_nodes()
    return cluster


def call(case: str) -> None:
    """One call of what eFormer offers for several slices."""
    config = TpuAcceleratorConfig(
        tpu_version="v4-16",
        pod_count=SLICES,
        chips_per_host=CHIPS,
        worker_count=HOSTS_PER_SLICE,
        runtime_name="benchmark",
        execution_env={},
    )
    with tempfile.TemporaryDirectory() as directory:
        begin = time.time()
        status = RayExecutor.autoscale_execute(enter, config, directory=directory)
        if not isinstance(status, JobSucceeded):
            raise RuntimeError(f"eFormer: {status}")  # noqa: TRY004 - no wrong type: a run that failed
        notes = read_notes(directory)
    messages.measured(case, "eformer", max(note["function"] for note in notes) - begin, durations(begin, notes))


if __name__ == "__main__":
    messages = Messages()
    messages.versions(**{f"{name} (eformer)": importlib.metadata.version(name) for name in ("ray", "jax")})
    messages.versions(eformer=importlib.metadata.version("eformer"))
    messages.say("starting two simulated slices of two hosts")
    hosts = start_hosts()
    try:
        ray.init(address=hosts.address)
        time.sleep(SETTLE_SECONDS)
        for number in range(int(sys.argv[1])):
            call("warm" if number else "first")
            time.sleep(PAUSE_SECONDS)
        ray.shutdown()
    finally:
        hosts.shutdown()
