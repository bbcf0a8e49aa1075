"""A fleet that asks Google Cloud for its slices when gangs want them: queued resources that join a Ray cluster."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from importlib import metadata
from typing import Any, Self

from prefect_tpu._version import __version__
from prefect_tpu.core.errors import ConfigurationError
from prefect_tpu.core.topology import SliceShape
from prefect_tpu.fleets.fleet import Demand, Say
from prefect_tpu.fleets.ray_fleet import RayFleet
from prefect_tpu.options.given import GivenOptions
from prefect_tpu.provision import startup
from prefect_tpu.provision.owner import FLOW_RUN_LABEL, LABEL_KEY, LABEL_VALUE, NAME, TASK_RUN_LABEL, clean_label
from prefect_tpu.provision.plan import Rules
from prefect_tpu.provision.request import PROVISIONINGS, RUNTIME_VERSIONS, Provisioning, SliceRequest

OWN_LABELS = "prefect-tpu-"
MAX_LABELS = 50
"""Of one node, with our own."""
MAY_BE_NONE = ("valid_until_seconds", "reap_after_seconds")


@dataclass(frozen=True, slots=True)
class QueuedResourceFleet:
    """TPU slices that are created when gangs want them, and deleted when nobody does: Cloud TPU's queued resources.

    Each slice is one queued resource. Its TPU VMs run a script at their start that makes them hosts of the Ray cluster
    at `ray_address`. Everything that a process has created is deleted when the process ends; what a killed one has
    left behind is deleted by the next.

    A value: equal configurations share their slices inside a process.

        fleet = QueuedResourceFleet("my-project", ("us-east5-b", "us-east5-c"), "10.0.0.2:6379")

    Args:
        project: Google Cloud project id.
        zones: where slices may be, in order of preference.
        ray_address: "host:port" of Ray's head, as the driver and the TPU VMs reach it; "auto" for the cluster that the
            driver's machine is part of.
        name: of this fleet in ids and labels. Fleets that share a name in a project delete what dead runs of each
            other have left behind.
        provisioning: "spot", "on-demand" or "reservation".
        reservation_name: for "reservation".
        runtime_version: of the TPU VMs; None for what Google recommends for the accelerator type.
        valid_until_seconds: a request that is not fulfilled by then is given up, and the next zone asked; None: never.
        network, subnetwork: of the TPU VMs; None for the project's default.
        external_ips: whether TPU VMs have external addresses; without, their network needs a way to the packages.
        service_account: of the TPU VMs; None for the project's default.
        startup_script: its text, in place of the package's own; may have {{ray_address}}, {{slice_name}},
            {{python_version}} and {{packages}}.
        host_packages: installed on the TPU VMs beside Ray, JAX and prefect_tpu, as for pip.
        labels: of every TPU VM, beside the fleet's own.
        join: start a Ray node without resources on the driver's machine first.
        namespace: Ray's namespace for what prefect_tpu starts.
        credentials: a GcpCredentials block of prefect-gcp, or credentials of google.auth; None for the environment's
            own identity. Never shown, and left out when the fleet is pickled.
        endpoint: "host:port" of another API endpoint; None for Google's.
        idle_release_seconds: slices that no gang wants are deleted after it.
        join_timeout_seconds: from ACTIVE to a whole slice in Ray; one that takes longer is replaced.
        zone_pause_seconds: a zone without capacity is asked again after it, then after twice as long, and so on.
        poll_seconds: between two looks at the API.
        api_timeout_seconds: of one try of a call to the API.
        api_retry_seconds: how long a call is tried again that got 429 or 5xx.
        close_timeout_seconds: for deleting everything when the process ends.
        owner_silence_seconds: what a run on another machine has created is deleted when the Ray cluster has heard
            nothing of that run for so long.
        reap_after_seconds: what runs on other machines have left is deleted when it is so old, longer than any run may
            take; None: only by that silence.

    Raises:
        ConfigurationError: a value that cannot be right.
    """

    project: str
    zones: tuple[str, ...]
    ray_address: str = "auto"
    name: str = "prefect-tpu"
    provisioning: Provisioning = "spot"
    reservation_name: str | None = None
    runtime_version: str | None = None
    valid_until_seconds: float | None = 3_600.0
    network: str | None = None
    subnetwork: str | None = None
    external_ips: bool = True
    service_account: str | None = None
    startup_script: str | None = field(default=None, repr=False)
    host_packages: tuple[str, ...] = ()
    labels: tuple[tuple[str, str], ...] | Mapping[str, str] = ()
    join: bool = False
    namespace: str = "prefect_tpu"
    credentials: Any = field(default=None, repr=False)
    endpoint: str | None = None
    idle_release_seconds: float = 300.0
    join_timeout_seconds: float = 900.0
    zone_pause_seconds: float = 60.0
    poll_seconds: float = 10.0
    api_timeout_seconds: float = 30.0
    api_retry_seconds: float = 60.0
    close_timeout_seconds: float = 60.0
    owner_silence_seconds: float = 900.0
    reap_after_seconds: float | None = None
    run_labels: tuple[tuple[str, str], ...] = field(default=(), compare=False, repr=False)

    def __post_init__(self) -> None:
        for name in ("zones", "host_packages"):
            if isinstance(getattr(self, name), list):
                object.__setattr__(self, name, tuple(getattr(self, name)))
        if isinstance(self.labels, Mapping):
            object.__setattr__(self, "labels", tuple(sorted(self.labels.items())))
        _check(self)
        RayFleet(address=self.ray_address, namespace=self.namespace, join=self.join)

    def __reduce__(self) -> tuple[Any, ...]:
        values = {one.name: getattr(self, one.name) for one in fields(self) if one.name != "credentials"}
        return _rebuild, (values,)

    @property
    def preemptible(self) -> bool:
        """Whether the cloud may take slices away."""
        return self.provisioning == "spot"

    @property
    def address(self) -> str:
        """Of the Ray cluster."""
        return self.ray_address

    @property
    def rules(self) -> Rules:
        """The limits that its keeper goes by."""
        return Rules(
            idle_release_seconds=self.idle_release_seconds,
            valid_until_seconds=self.valid_until_seconds,
            zone_pause_seconds=self.zone_pause_seconds,
            join_seconds=self.join_timeout_seconds,
        )

    def describe(self) -> str:
        """How messages call it."""
        zones = ", ".join(self.zones)
        return f"the {self.provisioning} queued resources {self.name!r} of project {self.project} in {zones}"

    def options(self) -> GivenOptions:
        """It makes slices of any kind; whether they can be taken away is known."""
        return {"preemptible": self.preemptible}

    def connect(self, say: Say | None = None) -> None:
        """Connect this process to the Ray cluster. Asks for no slices.

        Raises:
            ConfigurationError: google-cloud-tpu is missing, there are no credentials, or Ray's head does not answer.
        """
        from prefect_tpu.fleets import queued_keepers

        queued_keepers.connect(self, say)

    def demand(self, shape: SliceShape, num_slices: int, run_id: str, say: Say) -> Demand | None:
        """Have so many slices more, until the demand is withdrawn.

        Raises:
            ConfigurationError: Cloud TPU has no such slices, or TPU VMs cannot reach the Ray cluster.
        """
        from prefect_tpu.fleets import queued_keepers

        asked = self.request(shape, queued_keepers.address_for_hosts(self), run_id)
        say(f"{num_slices} {shape} slices are wanted of {self.describe()}")
        return queued_keepers.keeper(self).demand(asked, num_slices)

    def for_flow_run(self, flow_run_id: str) -> Self:
        """The same fleet; what it creates carries the flow run's id as a label."""
        return replace(self, run_labels=((FLOW_RUN_LABEL, clean_label(flow_run_id)),))

    def close(self) -> None:
        """Delete everything that this process has created, within `close_timeout_seconds`; also done at its end."""
        from prefect_tpu.fleets import queued_keepers

        queued_keepers.close(self)

    def reap(self, *, elsewhere_too: bool = False) -> list[str]:
        """Delete what dead runs of fleets of this name have left behind; needs no Ray cluster.

        Args:
            elsewhere_too: also what was created on other machines or in other containers, of which nobody here can
                know whether they live. Say so only if no run of this fleet is alive.

        Returns:
            The ids of what was deleted.

        Raises:
            ConfigurationError: google-cloud-tpu is missing, or there are no credentials.
            ProvisioningError: the API refuses.
        """
        from prefect_tpu.fleets import queued_keepers

        return queued_keepers.reap(self, elsewhere_too=elsewhere_too)

    def request(self, shape: SliceShape, ray_address: str, run_id: str) -> SliceRequest:
        """What is asked of the API for one slice.

        Raises:
            ConfigurationError: Cloud TPU's queued resources have no such type.
        """
        if shape.accelerator_type not in RUNTIME_VERSIONS:
            raise ConfigurationError(
                f"Cloud TPU's API has no queued resources of type {shape.accelerator_type!r}; it has: "
                f"{', '.join(RUNTIME_VERSIONS)}"
            )
        ours = ((TASK_RUN_LABEL, clean_label(run_id)),)
        return SliceRequest(
            accelerator_type=shape.accelerator_type,
            topology=shape.topology,
            runtime_version=self.runtime_version or RUNTIME_VERSIONS[shape.accelerator_type],
            provisioning=self.provisioning,
            reservation_name=self.reservation_name or "",
            valid_until_seconds=self.valid_until_seconds,
            network=self.network or "",
            subnetwork=self.subnetwork or "",
            service_account=self.service_account or "",
            external_ips=self.external_ips,
            ray_address=ray_address,
            startup_script=self.startup_script or startup.template(),
            python_version=".".join(map(str, sys.version_info[:3])),
            packages=(*_versions(), *self.host_packages),
            labels=(*tuple(dict(self.labels).items()), *self.run_labels, *ours),
        )


def _versions() -> tuple[str, ...]:
    """What hosts need in the driver's version."""
    ray, jax = metadata.version("ray"), metadata.version("jax")
    return (f"ray[default]=={ray}", f"jax[tpu]=={jax}", f"prefect-tpu=={__version__}")


def _rebuild(values: dict[str, Any]) -> QueuedResourceFleet:
    return QueuedResourceFleet(**values)


def _check(fleet: QueuedResourceFleet) -> None:
    def refuse(name: str, must: str) -> None:
        raise ConfigurationError(f"QueuedResourceFleet({name}={getattr(fleet, name)!r}): must be {must}")

    if not isinstance(fleet.project, str) or not re.fullmatch(r"[a-z][-a-z0-9.:]{4,62}", fleet.project):
        refuse("project", "the id of a Google Cloud project, such as 'my-project'")
    zones = fleet.zones
    if not isinstance(zones, tuple) or not zones or len(set(zones)) < len(zones):
        refuse("zones", "one or more zones in order of preference, each once: ('us-east5-b', 'us-east5-c')")
    if not all(isinstance(zone, str) and re.fullmatch(r"[a-z]+-[a-z]+[0-9]+-[a-z]", zone) for zone in zones):
        refuse("zones", "names of zones, such as ('us-east5-b',)")
    if not isinstance(fleet.name, str) or not NAME.fullmatch(fleet.name):
        refuse("name", "lower-case letters, digits and dashes, 40 at most, and begin with a letter")
    if fleet.provisioning not in PROVISIONINGS:
        refuse("provisioning", f"one of {', '.join(map(repr, PROVISIONINGS))}")
    if (fleet.provisioning == "reservation") != bool(fleet.reservation_name):
        refuse("reservation_name", "given for provisioning='reservation', and only then")
    for name in ("runtime_version", "network", "subnetwork", "service_account", "endpoint"):
        value = getattr(fleet, name)
        if value is not None and (not isinstance(value, str) or not value.strip()):
            refuse(name, "a text that is not empty, or None")
    if fleet.endpoint is not None and not re.fullmatch(r"[^/\s]+:[0-9]+", fleet.endpoint):
        refuse("endpoint", "'host:port', such as 'tpu.googleapis.com:443', or None")
    if not all(isinstance(one, str) and one.strip() for one in fleet.host_packages):
        refuse("host_packages", "requirements as for pip")
    if fleet.startup_script is not None:
        startup.check(fleet.startup_script)
    _check_labels(fleet)
    for one in fields(fleet):
        value = getattr(fleet, one.name)
        if not one.name.endswith("_seconds") or (value is None and one.name in MAY_BE_NONE):
            continue
        may_be_zero = one.name == "idle_release_seconds"
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not (0 < value < float("inf") or (may_be_zero and value == 0)):
            refuse(one.name, "a number of seconds that is " + ("not negative" if may_be_zero else "more than 0"))

    least = 2 * (fleet.api_timeout_seconds + fleet.api_retry_seconds) + fleet.poll_seconds
    if fleet.owner_silence_seconds < least:
        refuse("owner_silence_seconds", f"at least {least:g}: a living run may be silent while the API is asked")


def _check_labels(fleet: QueuedResourceFleet) -> None:
    for key, value in dict(fleet.labels).items():
        if not LABEL_KEY.fullmatch(str(key)) or not LABEL_VALUE.fullmatch(str(value)) or key.startswith(OWN_LABELS):
            raise ConfigurationError(
                f"QueuedResourceFleet(labels={{{key!r}: {value!r}}}): keys and values are lower-case letters, digits, "
                f"dashes and underscores, 63 at most; keys begin with a letter, and not with {OWN_LABELS!r}"
            )
    if len(dict(fleet.labels)) > MAX_LABELS:
        raise ConfigurationError(
            f"QueuedResourceFleet(labels=...): {MAX_LABELS} at most, got {len(dict(fleet.labels))}"
        )
