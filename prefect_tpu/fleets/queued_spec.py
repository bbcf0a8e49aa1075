"""What a fleet of queued resources is asked for: its fields, checks, and the request for one slice."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Self

from pydantic import ValidationError

from prefect_tpu.core.errors import ConfigurationError
from prefect_tpu.core.secrets import shown
from prefect_tpu.core.topology import SliceShape
from prefect_tpu.fleets import host_package
from prefect_tpu.fleets.queued_fields import QueuedFields
from prefect_tpu.fleets.queued_options import HOST_PACKAGE_WORDS, QueuedOptions
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

    @property
    def _script(self) -> str:
        return self.startup_script or startup.template()

    def check_safe(self) -> None:
        """See that it is said what TPU VMs install, and who gets into their Ray. Not when it is made: old ones load.

        Raises:
            ConfigurationError: it is not said.
        """
        has = startup.placeholders(self._script)
        if "packages" in has and self.host_lock is None and host_package.of(self.host_package) is None:
            raise ConfigurationError(
                f"{self.describe()} do not know where TPU VMs get prefect_tpu, and install nothing by its name alone: "
                f"give host_package, which must be {HOST_PACKAGE_WORDS}"
            )
        if self.token_secret is not None and "token_secret" not in has:
            raise _refused(self, "token_secret", "must be used by startup_script, which has no {{token_secret}}")
        protected = self.token_secret is not None or startup.OWN_TOKEN in (self.startup_script or "")
        if not protected and not self.unprotected_ray:
            raise ConfigurationError(
                f"{self.describe()} would join a Ray in which whoever reaches a TPU VM runs code on all of them. Start "
                "Ray's head with a token, put the token into Secret Manager, and give its name: token_secret="
                "'projects/PROJECT/secrets/NAME' with service_account=; or, in a network of your own, say "
                "unprotected_ray=True (docs/queued-resources.md, Who can reach it)"
            )

    def request(self, shape: SliceShape, ray_address: str, run_id: str) -> SliceRequest:
        """What is asked of the API for one slice.

        Raises:
            ConfigurationError: Cloud TPU's queued resources have no such type, or `check_safe` says no.
        """
        if shape.accelerator_type not in RUNTIME_VERSIONS:
            raise ConfigurationError(
                f"Cloud TPU's API has no queued resources of type {shape.accelerator_type!r}; it has: "
                f"{', '.join(RUNTIME_VERSIONS)}"
            )
        self.check_safe()
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
            startup_script=self._script,
            python_version=".".join(map(str, sys.version_info[:3])),
            packages=host_package.packages(self.host_package, self.host_packages, self.host_lock),
            host_lock=self.host_lock or "",
            token_secret=self.token_secret or "",
            labels=(*tuple(dict(self.labels).items()), *self.run_labels, *ours),
        )


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
    if spec.token_secret is not None and spec.unprotected_ray:
        raise _refused(spec, "unprotected_ray", "must not be given with token_secret: it is one or the other")
    if spec.token_secret is not None and spec.service_account is None:
        says = "must come with service_account: an account that may read this secret, and little else"
        raise _refused(spec, "token_secret", says)
    if spec.host_lock is not None and spec.host_packages:
        raise _refused(spec, "host_packages", "must not be given with host_lock, which has all that is installed")
    if spec.host_lock is not None and not (spec.host_package or "gs://").startswith("gs://"):
        says = "must be a wheel in a bucket if there is a host_lock, which may name it; or be left out"
        raise _refused(spec, "host_package", says)
    least = 2 * (spec.api_timeout_seconds + spec.api_retry_seconds) + spec.poll_seconds
    if spec.owner_silence_seconds < least:
        says = f"must be at least {least:g}: a living run may be silent while the API is asked"
        raise _refused(spec, "owner_silence_seconds", says)


def _refused(spec: QueuedSpec, name: str, says: str) -> ConfigurationError:
    return ConfigurationError(f"QueuedResourceFleet({name}={shown(getattr(spec, name), name)}): {says}")
