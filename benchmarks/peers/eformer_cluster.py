"""Simulated slices for eFormer, made of Ray's own test cluster. For eFormer's virtual environment: no prefect_tpu."""

from __future__ import annotations

from typing import Any

from eformer.executor.ray import TpuAcceleratorConfig
from ray.cluster_utils import Cluster

PAUSE_SECONDS = 2.0
GANG_SLICES, HOSTS_PER_SLICE, CHIPS = 2, 2, 4
CPUS_PER_HOST = 8
MEMORY_PER_HOST_BYTES = 100 * 1024**3
"""It asks Ray for 20 GB on each host."""
OBJECT_STORE_BYTES = 256 * 1024**2


def start_hosts(slices: int) -> tuple[Cluster, list[Any]]:
    """The same simulated slices as for the others, and the first host of each."""
    head = {"num_cpus": 0, "object_store_memory": OBJECT_STORE_BYTES, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    first_hosts = []
    for index in range(slices):
        name = f"slice-{index}"
        for worker in range(HOSTS_PER_SLICE):
            resources = {"TPU": CHIPS, name: 1, "accelerator_type:TPU-V4": 1}
            host = cluster.add_node(
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
            if worker == 0:
                first_hosts.append(host)
    cluster.wait_for_nodes()
    return cluster, first_hosts


def configuration() -> TpuAcceleratorConfig:
    """Two slices of two hosts."""
    return TpuAcceleratorConfig(
        tpu_version="v4-16",
        pod_count=GANG_SLICES,
        chips_per_host=CHIPS,
        worker_count=HOSTS_PER_SLICE,
        runtime_name="benchmark",
        execution_env={},
    )
