"""What a simulated host shows to Ray and to the code on it: resources, labels, environment. No Ray needed."""

from __future__ import annotations

import os
import re
import sysconfig
from collections.abc import Mapping

from prefect_tpu.core.topology import SliceShape

MARK_VARIABLE = "PREFECT_TPU_FLEET_HOST"
"""Tells which simulated host a process belongs to, so that a preemption finds every one of them."""
SIMULATED_VARIABLE = "PREFECT_TPU_SIMULATED"

_SECRET = re.compile(
    r"(^|_)(API_?KEY|ACCESS_?KEY|SECRET_?KEY|PRIVATE_?KEY|TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIAL|AUTH)S?(_|$)"
    r"|CONNECTION_(URL|STRING)",
    re.IGNORECASE,
)
_OWN = ("PREFECT_", "TPU_", "MEGASCALE_", "EXECUTOR_CALL_")
_RAY_OF_ANOTHER_CLUSTER = (
    "RAY_ADDRESS",
    "RAY_JOB_ID",
    "RAY_NODE_ID",
    "RAY_RAYLET_PID",
    "RAY_RUNTIME_ENV_HOOK",
    "RAY_NAMESPACE",
)


def clean_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The driver's environment as far as hosts may see it: no Prefect, no secrets, nothing of another host."""
    return {
        name: value
        for name, value in environ.items()
        if not name.startswith(_OWN) and name not in _RAY_OF_ANOTHER_CLUSTER and not _SECRET.search(name)
    }


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
        "XLA_FLAGS": f"{xla_flags} {flags}".strip(),
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
        "TPU": float(shape.chips_per_host),
        slice_name: 1.0,
        f"accelerator_type:TPU-{shape.accelerator_type.upper()}": 1.0,
    }
    if worker_id == 0:
        resources[f"TPU-{shape.pod_type}-head"] = 1.0
    return resources


def host_labels(shape: SliceShape, slice_name: str, worker_id: int) -> dict[str, str]:
    """Ray labels of a host, as Ray itself gives them to a real one."""
    return {
        "ray.io/tpu-slice-name": slice_name,
        "ray.io/tpu-worker-id": str(worker_id),
        "ray.io/tpu-pod-type": shape.pod_type,
        "ray.io/tpu-topology": shape.topology,
        "ray.io/accelerator-type": f"TPU-{shape.accelerator_type.upper()}",
    }


def supervisor_environment(package_root: str) -> dict[str, str]:
    """Environment of the fleet supervisor, from which every host gets its own."""
    environ = clean_environment(os.environ)
    paths = [part for part in environ.get("PYTHONPATH", "").split(os.pathsep) if part]
    # Installed packages are found anyway, and must not come before the standard library.
    if package_root not in (sysconfig.get_path("purelib"), sysconfig.get_path("platlib")):
        paths.insert(0, package_root)
    return environ | {
        "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths)),
        "PYTHONUNBUFFERED": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
