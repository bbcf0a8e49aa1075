"""The block of a fleet whose slices are created in Google Cloud when gangs want them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field, field_validator, model_validator

from prefect_tpu.blocks.base import TpuBlock
from prefect_tpu.core.ray_address import check_address
from prefect_tpu.fleets.fleet import Fleet
from prefect_tpu.fleets.queued_fleet import QueuedResourceFleet
from prefect_tpu.fleets.queued_options import QueuedOptions

if TYPE_CHECKING:
    from typing import Self

try:
    from prefect_gcp.credentials import GcpCredentials
except ImportError:  # without it the environment's own identity is used
    from prefect.blocks.abstract import CredentialsBlock as GcpCredentials


class QueuedResourceFleetBlock(QueuedOptions, TpuBlock):
    """TPU slices that are created in Google Cloud when gangs want them, as queued resources, and deleted afterwards.

    Example:
        ```python
        from prefect_tpu.blocks import QueuedResourceFleetBlock

        fleet = QueuedResourceFleetBlock.load("BLOCK_NAME")
        ```
    """

    _block_type_name = "Queued Resource TPU Fleet"
    _block_type_slug = "queued-resource-tpu-fleet"
    _documentation_url = "https://cloud.google.com/tpu/docs/queued-resources"

    credentials: GcpCredentials | None = Field(
        default=None, description="Identity that creates the slices; empty: that of the environment."
    )

    def __getstate__(self) -> dict[Any, Any]:
        """For a pickle, which may be stored: without credentials, as the fleet itself."""
        state = super().__getstate__()
        return state | {"__dict__": state["__dict__"] | {"credentials": None}}

    @field_validator("ray_address")
    @classmethod
    def _is_an_address(cls, given: str) -> str:
        return check_address(given)

    @model_validator(mode="after")
    def _is_a_fleet(self) -> Self:
        self._fleet()
        return self

    def make(self, accelerator_type: str, topology: str, chips_per_host: int | None) -> Fleet:  # noqa: ARG002
        """The fleet; it makes slices of whatever kind a gang wants."""
        return self._fleet()

    def _fleet(self) -> QueuedResourceFleet:
        values: dict[str, Any] = {name: getattr(self, name) for name in type(self).model_fields}
        return QueuedResourceFleet(**values)
