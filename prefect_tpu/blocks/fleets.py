"""Blocks of fleets that are there already: simulated slices, and those of a Ray cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field, field_validator, model_validator

from prefect_tpu.blocks.base import TpuBlock
from prefect_tpu.core.ray_address import check_address
from prefect_tpu.fleets.fleet import Fleet
from prefect_tpu.fleets.local_fleet import MAX_SLICES, LocalFleet
from prefect_tpu.fleets.ray_fleet import RayFleet

if TYPE_CHECKING:
    from typing import Self


class LocalFleetBlock(TpuBlock):
    """Simulated TPU slices on the machine that runs the flow, their chips as JAX CPU devices.

    Example:
        ```python
        from prefect_tpu.blocks import LocalFleetBlock

        fleet = LocalFleetBlock.load("BLOCK_NAME")
        ```
    """

    _block_type_name = "Local TPU Fleet"
    _block_type_slug = "local-tpu-fleet"

    slices: int = Field(default=2, ge=1, le=MAX_SLICES, description="How many slices are simulated.")
    cpus_per_host: int = Field(
        default=1, ge=0, le=1024, title="CPUs per host", description="CPUs that Ray counts for each host."
    )
    start_timeout_seconds: float = Field(
        default=180.0, gt=0, title="Start timeout (seconds)", description="For all hosts to come up, in seconds."
    )

    def make(self, accelerator_type: str, topology: str, chips_per_host: int | None) -> Fleet:
        """Simulated slices of this kind."""
        return LocalFleet(
            slices=self.slices,
            accelerator_type=accelerator_type,
            topology=topology,
            chips_per_host=chips_per_host,
            cpus_per_host=self.cpus_per_host,
            start_timeout_seconds=self.start_timeout_seconds,
        )


class RayFleetBlock(TpuBlock):
    """The TPU slices of a Ray cluster that runs already: on TPU VMs, or on GKE by KubeRay.

    Example:
        ```python
        from prefect_tpu.blocks import RayFleetBlock

        fleet = RayFleetBlock.load("BLOCK_NAME")
        ```
    """

    _block_type_name = "Ray TPU Fleet"
    _block_type_slug = "ray-tpu-fleet"

    address: str = Field(
        default="auto",
        description="'auto' for the cluster that the flow's own machine belongs to, or its host:port.",
    )
    namespace: str = Field(
        default="prefect_tpu", min_length=1, description="Ray's namespace for what prefect_tpu starts."
    )
    join: bool = Field(
        default=False,
        description="The flow's machine is beside the cluster: a Ray node without resources joins it for the flow.",
    )
    autoscaled: bool = Field(
        default=False,
        description="Slices that are missing are asked for from Ray's autoscaler while a gang waits for them.",
    )

    @field_validator("address")
    @classmethod
    def _is_an_address(cls, given: str) -> str:
        return check_address(given)

    @model_validator(mode="after")
    def _is_a_fleet(self) -> Self:
        self._fleet()
        return self

    def _fleet(self) -> RayFleet:
        return RayFleet(address=self.address, namespace=self.namespace, join=self.join, autoscaled=self.autoscaled)

    def make(self, accelerator_type: str, topology: str, chips_per_host: int | None) -> Fleet:  # noqa: ARG002
        """The cluster; it has the slices that it has, or that its autoscaler brings up."""
        return self._fleet()
