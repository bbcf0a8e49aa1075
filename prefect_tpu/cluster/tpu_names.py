"""What Ray calls TPU hosts and their chips: resources and labels. Texts alone, so nothing of Ray is imported."""

from __future__ import annotations

CHIP_RESOURCE = "TPU"
NODE_ID_LABEL = "ray.io/node-id"
SLICE_NAME_LABEL = "ray.io/tpu-slice-name"
TOPOLOGY_LABEL = "ray.io/tpu-topology"
POD_TYPE_LABEL = "ray.io/tpu-pod-type"
WORKER_ID_LABEL = "ray.io/tpu-worker-id"
ACCELERATOR_TYPE_LABEL = "ray.io/accelerator-type"


def head_resource(pod_type: str) -> str:
    """The resource that host 0 of a slice has, by which Ray programs claim whole slices."""
    return f"{CHIP_RESOURCE}-{pod_type}-head"


def accelerator(accelerator_type: str) -> str:
    """Ray's name for an accelerator type: "TPU-V4"."""
    return f"{CHIP_RESOURCE}-{accelerator_type.upper()}"


def accelerator_resource(accelerator_type: str) -> str:
    """The resource that every host of the type has one of."""
    return f"accelerator_type:{accelerator(accelerator_type)}"
