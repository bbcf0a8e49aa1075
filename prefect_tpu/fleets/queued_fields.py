"""Generated from queued_options.py by queued_generate.py, do not edit. The fields of a fleet of queued resources."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from prefect_tpu.provision.request import Provisioning


@dataclass(frozen=True, slots=True)
class QueuedFields:
    """In the order in which they may be given by position."""

    project: str
    zones: tuple[str, ...]
    ray_address: str = "auto"
    name: str = "prefect-tpu"
    provisioning: Provisioning = "spot"
    reservation_name: str | None = None
    runtime_version: str | None = None
    valid_until_seconds: float | None = 3600.0
    network: str | None = None
    subnetwork: str | None = None
    external_ips: bool = False
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
    host_package: str | None = None
    host_lock: str | None = None
    token_secret: str | None = None
    unprotected_ray: bool = False
