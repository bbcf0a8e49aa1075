"""Everything about one slice that is asked for, as plain data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from prefect_tpu.provision import startup

Provisioning = Literal["spot", "on-demand", "reservation"]
PROVISIONINGS: tuple[Provisioning, ...] = ("spot", "on-demand", "reservation")

RUNTIME_VERSIONS = {
    "v2": "tpu-ubuntu2204-base",
    "v3": "tpu-ubuntu2204-base",
    "v4": "tpu-ubuntu2204-base",
    "v5litepod": "v2-alpha-tpuv5-lite",
    "v5p": "v2-alpha-tpuv5",
    "v6e": "v2-alpha-tpuv6e",
}
"""What Google's documentation names for JAX; `gcloud compute tpus tpu-vm versions list` has all."""


@dataclass(frozen=True, slots=True)
class SliceRequest:
    """One slice.

    Attributes:
        accelerator_type: "v4", "v5litepod", as `core.topology.SliceShape` has it.
        topology: "2x2x1".
        runtime_version: of the TPU VM's image.
        provisioning: "spot", "on-demand" or "reservation".
        reservation_name: for "reservation": its name, or its full resource name.
        valid_until_seconds: from now, the request fails if it is not fulfilled by then; None: never.
        network, subnetwork, service_account: of the TPU VMs; "" for the project's defaults.
        external_ips: the TPU VMs have addresses that the internet reaches.
        ray_address: of the Ray cluster that the TPU VMs are to join.
        startup_script: run by root on every TPU VM at every start; placeholders are filled in.
        python_version: of the TPU VMs' environment.
        packages: in it.
        host_lock: file of all that is in it, with hashes; "" for none.
        token_secret: name of the secret with Ray's token; "" for a Ray that asks for none.
        labels: of the node.
    """

    accelerator_type: str
    topology: str
    runtime_version: str
    provisioning: Provisioning
    reservation_name: str = ""
    valid_until_seconds: float | None = None
    network: str = ""
    subnetwork: str = ""
    service_account: str = ""
    external_ips: bool = False
    ray_address: str = ""
    python_version: str = ""
    packages: tuple[str, ...] = field(default=(), repr=False)
    host_lock: str = ""
    token_secret: str = ""
    startup_script: str = field(default="", repr=False)
    labels: tuple[tuple[str, str], ...] = ()

    def script(self, slice_name: str) -> str:
        """What the TPU VMs of the slice of this name run."""
        return startup.render(
            self.startup_script,
            slice_name=slice_name,
            ray_address=self.ray_address,
            python_version=self.python_version,
            packages=self.packages,
            host_lock=self.host_lock,
            token_secret=self.token_secret,
        )

    @property
    def kind(self) -> str:
        """Which slices can stand in for each other: "v4-2x2x1"; fits a label."""
        return f"{self.accelerator_type}-{self.topology}"
