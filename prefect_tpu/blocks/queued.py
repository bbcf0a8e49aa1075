"""The block of a fleet whose slices are created in Google Cloud when gangs want them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field, field_validator, model_validator

from prefect_tpu.blocks.base import TpuBlock, check_address
from prefect_tpu.fleets.fleet import Fleet
from prefect_tpu.fleets.queued_fleet import QueuedResourceFleet
from prefect_tpu.provision.request import Provisioning

if TYPE_CHECKING:
    from typing import Self

try:
    from prefect_gcp.credentials import GcpCredentials
except ImportError:  # without it the environment's own identity is used
    from prefect.blocks.abstract import CredentialsBlock as GcpCredentials


class QueuedResourceFleetBlock(TpuBlock):
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

    project: str = Field(default=..., description="Id of the Google Cloud project.")
    zones: list[str] = Field(
        default=..., min_length=1, description="Zones of the slices, such as us-east5-b, in order of preference."
    )
    ray_address: str = Field(
        default="auto",
        title="Ray address",
        description="host:port of Ray's head for driver and TPU VMs; 'auto': the driver's machine is part of it.",
    )
    name: str = Field(
        default="prefect-tpu", description="Name in ids and labels; fleets of one name clean up after each other."
    )
    provisioning: Provisioning = Field(default="spot", description="How slices are paid for and who may take them.")
    reservation_name: str | None = Field(
        default=None, title="Reservation", description="Name of the reservation; only for 'reservation'."
    )
    runtime_version: str | None = Field(
        default=None, title="Runtime version", description="Image of the TPU VMs; empty: by accelerator type."
    )
    valid_until_seconds: float | None = Field(
        default=3_600.0,
        gt=0,
        title="Valid until (seconds)",
        description="A request not fulfilled by then is given up and the next zone is asked; empty: it waits for ever.",
    )
    network: str | None = Field(default=None, description="Network of the TPU VMs; empty: the project's default.")
    subnetwork: str | None = Field(default=None, description="Subnetwork of the TPU VMs; empty: the network's own.")
    external_ips: bool = Field(
        default=True, title="External addresses", description="TPU VMs have addresses that reach the internet."
    )
    service_account: str | None = Field(
        default=None, title="Service account", description="Of the TPU VMs, by e-mail; empty: the project's default."
    )
    startup_script: str | None = Field(
        default=None,
        title="Startup script",
        description="What TPU VMs run to join Ray; empty: the package's own. {{ray_address}} is filled in.",
    )
    host_packages: list[str] = Field(
        default_factory=list, title="Host packages", description="Installed on the TPU VMs beside Ray and JAX."
    )
    labels: dict[str, str] = Field(default_factory=dict, description="Labels of every TPU VM, beside the fleet's own.")
    join: bool = Field(
        default=False,
        description="The flow's machine is beside the cluster: a Ray node without resources joins it for the flow.",
    )
    namespace: str = Field(
        default="prefect_tpu", min_length=1, description="Ray's namespace for what prefect_tpu starts."
    )
    credentials: GcpCredentials | None = Field(
        default=None, description="Identity that creates the slices; empty: that of the environment."
    )
    endpoint: str | None = Field(default=None, description="host:port of another API endpoint; empty: Google's.")
    idle_release_seconds: float = Field(
        default=300.0,
        ge=0,
        title="Idle release (seconds)",
        description="Slices that no gang wants are deleted after this time.",
    )
    join_timeout_seconds: float = Field(
        default=900.0,
        gt=0,
        title="Join timeout (seconds)",
        description="From ACTIVE to a whole slice in Ray; one that takes longer is replaced.",
    )
    zone_pause_seconds: float = Field(
        default=60.0,
        gt=0,
        title="Zone pause (seconds)",
        description="A zone without capacity is asked again after this time, then after twice as long, and so on.",
    )
    poll_seconds: float = Field(
        default=10.0, gt=0, title="Poll (seconds)", description="Time between two looks at the API."
    )
    api_timeout_seconds: float = Field(
        default=30.0, gt=0, title="API timeout (seconds)", description="Longest time of one try of a call."
    )
    api_retry_seconds: float = Field(
        default=60.0, gt=0, title="API retry (seconds)", description="How long a call is tried again after 429 or 5xx."
    )
    close_timeout_seconds: float = Field(
        default=60.0,
        gt=0,
        title="Close timeout (seconds)",
        description="For deleting everything when the flow's process ends.",
    )
    owner_silence_seconds: float = Field(
        default=900.0,
        gt=0,
        title="Owner silence (seconds)",
        description="What a run elsewhere created is deleted when Ray has not heard of that run for so long.",
    )
    reap_after_seconds: float | None = Field(
        default=None,
        gt=0,
        title="Reap after (seconds)",
        description="What runs on other machines left is deleted at this age, longer than any run; empty: never.",
    )

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
