"""What a simulated host shows to Ray and to the code on it: resources, labels, environment. No Ray needed."""

from __future__ import annotations

from prefect_tpu.cluster import tpu_names
from prefect_tpu.core.environment import merge_flags
from prefect_tpu.core.topology import SliceShape

MARK_VARIABLE = "PREFECT_TPU_FLEET_HOST"
"""Tells which simulated host a process belongs to, so that a preemption finds every one of them."""
SIMULATED_VARIABLE = "PREFECT_TPU_SIMULATED"
XLA_THREADS_PER_CHIP = 4
"""Of a simulated host's XLA thread pool; its default is the larger of cores and devices."""


def simulated_host_environment(shape: SliceShape, xla_flags: str = "") -> dict[str, str]:
    """The simulation seam: the variables that make JAX on this machine's CPU stand for a host's TPU chips.

    Nothing else in prefect_tpu makes CPU devices out of chips; on real hosts none of these is set.

    Args:
        shape: of the slice that the host is in.
        xla_flags: flags that are set already and stay.
    """
    flags = f"--xla_force_host_platform_device_count={shape.chips_per_host} --xla_cpu_multi_thread_eigen=false"
    return {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": merge_flags(xla_flags, flags),
        "JAX_NUM_CPU_DEVICES": str(shape.chips_per_host),  # whatever becomes of the flags
        # XLA sizes its thread pool by this. A device that waits in a collective keeps a thread: with no more
        # threads than devices, and work of one device split over the pool, all can wait for each other.
        "NPROC": str(XLA_THREADS_PER_CHIP * shape.chips_per_host),
        "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo",
        SIMULATED_VARIABLE: "1",
    }


def host_environment(shape: SliceShape, slice_name: str, worker_id: int) -> dict[str, str]:
    """What GKE sets on a real TPU host: its slice, its place in it, what it is."""
    return {
        "TPU_NAME": slice_name,
        "TPU_WORKER_ID": str(worker_id),
        "TPU_ACCELERATOR_TYPE": shape.pod_type,
        "TPU_TOPOLOGY": shape.topology,
    }


def host_resources(shape: SliceShape, slice_name: str, worker_id: int) -> dict[str, float]:
    """Ray resources of a host, as Ray itself gives them to a real one."""
    resources = {
        tpu_names.CHIP_RESOURCE: float(shape.chips_per_host),
        slice_name: 1.0,
        tpu_names.accelerator_resource(shape.accelerator_type): 1.0,
    }
    if worker_id == 0:
        resources[tpu_names.head_resource(shape.pod_type)] = 1.0
    return resources


def host_labels(shape: SliceShape, slice_name: str, worker_id: int) -> dict[str, str]:
    """Ray labels of a host, as Ray itself gives them to a real one."""
    return {
        tpu_names.SLICE_NAME_LABEL: slice_name,
        tpu_names.WORKER_ID_LABEL: str(worker_id),
        tpu_names.POD_TYPE_LABEL: shape.pod_type,
        tpu_names.TOPOLOGY_LABEL: shape.topology,
        tpu_names.ACCELERATOR_TYPE_LABEL: tpu_names.accelerator(shape.accelerator_type),
    }
