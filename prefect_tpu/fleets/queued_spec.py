"""What a fleet of queued resources is asked for: its fields, checks, and the request for one slice."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from importlib import metadata
from typing import Any, Self

from pydantic import ValidationError

from prefect_tpu._version import __version__
from prefect_tpu.core.errors import ConfigurationError
from prefect_tpu.core.secrets import shown
from prefect_tpu.core.topology import SliceShape
from prefect_tpu.fleets.queued_fields import QueuedFields
from prefect_tpu.fleets.queued_options import QueuedOptions
from prefect_tpu.fleets.ray_fleet import RayFleet
from prefect_tpu.options.check import in_words
from prefect_tpu.provision import startup
from prefect_tpu.provision.owner import FLOW_RUN_LABEL, TASK_RUN_LABEL, clean_label
from prefect_tpu.provision.plan import Rules
from prefect_tpu.provision.request import RUNTIME_VERSIONS, SliceRequest


@dataclass(frozen=True, slots=True, repr=False)
class QueuedSpec(QueuedFields):
    """A fleet of queued resources as a value; it does nothing. `run_labels`: of the flow run that uses it."""

    run_labels: tuple[tuple[str, str], ...] = field(default=(), compare=False, repr=False)

    def __post_init__(self) -> None:
        for name in ("zones", "host_packages"):
            if isinstance(getattr(self, name), list):
                object.__setattr__(self, name, tuple(getattr(self, name)))
        if isinstance(self.labels, Mapping):
            object.__setattr__(self, "labels", tuple(sorted(self.labels.items())))
        _check(self)
        RayFleet(address=self.ray_address, namespace=self.namespace, join=self.join)

    def __repr__(self) -> str:
        values = ((one.name, getattr(self, one.name)) for one in fields(self) if one.repr)
        return f"{type(self).__name__}({', '.join(f'{name}={shown(value, name)}' for name, value in values)})"

    def __reduce__(self) -> tuple[Any, ...]:
        values = {one.name: getattr(self, one.name) for one in fields(self) if one.name != "credentials"}
        return _rebuild, (type(self), values)

    @property
    def preemptible(self) -> bool:
        """Whether the cloud may take slices away."""
        return self.provisioning == "spot"

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

    def for_flow_run(self, flow_run_id: str) -> Self:
        """The same fleet; what it creates carries the flow run's id as a label."""
        return replace(self, run_labels=((FLOW_RUN_LABEL, clean_label(flow_run_id)),))

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


def _rebuild(kind: type[QueuedSpec], values: dict[str, Any]) -> QueuedSpec:
    return kind(**values)


def _check(spec: QueuedSpec) -> None:
    """By the rules of `QueuedOptions`, then what goes together."""
    given = {name: getattr(spec, name) for name in QueuedOptions.model_fields}
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in given.items()}
    try:
        QueuedOptions.model_validate(plain | {"labels": dict(spec.labels)}, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        raise _refused(spec, str(first["loc"][0]), in_words(first["msg"])) from None
    if (spec.provisioning == "reservation") != bool(spec.reservation_name):
        raise _refused(spec, "reservation_name", "must be given for provisioning='reservation', and only then")
    if spec.startup_script is not None:
        startup.check(spec.startup_script)
    least = 2 * (spec.api_timeout_seconds + spec.api_retry_seconds) + spec.poll_seconds
    if spec.owner_silence_seconds < least:
        says = f"must be at least {least:g}: a living run may be silent while the API is asked"
        raise _refused(spec, "owner_silence_seconds", says)


def _refused(spec: QueuedSpec, name: str, says: str) -> ConfigurationError:
    return ConfigurationError(f"QueuedResourceFleet({name}={shown(getattr(spec, name), name)}): {says}")
