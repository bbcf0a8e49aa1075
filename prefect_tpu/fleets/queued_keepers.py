"""The keepers of this process's queued-resource fleets, and what they see of Ray."""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import ray

from prefect_tpu.cluster import auth, exit_hooks, gcs, inventory, session
from prefect_tpu.core.errors import ConfigurationError, ProvisioningError
from prefect_tpu.fleets import join
from prefect_tpu.fleets.signs_of_life import SignsOfLife, warn_once
from prefect_tpu.fleets.tokens import token_of
from prefect_tpu.linux import places, probe
from prefect_tpu.provision import reaping
from prefect_tpu.provision.interfaces import RayView
from prefect_tpu.provision.janitor import Janitor
from prefect_tpu.provision.keeper import Keeper
from prefect_tpu.provision.problems import CloudError

if TYPE_CHECKING:
    from prefect_tpu.fleets.fleet import Say
    from prefect_tpu.fleets.queued_spec import QueuedSpec
    from prefect_tpu.provision.cloud_tpu import QueuedResources

log = logging.getLogger("prefect_tpu.provision")

INSTALL = "pip install 'google-cloud-tpu>=1.24,<2' 'prefect-gcp>=0.6,<0.7'"
"""What the extra `gcp` has; not by the name of this package, which is nobody's in an index until it is published."""
JANITOR_SECONDS = 600.0
"""How long a killed process's slices are tried to be deleted, at least."""


@dataclass(slots=True, eq=False)
class _Kept:
    """The keeper of a fleet, and where its Ray cluster is."""

    keeper: Keeper
    address: str
    signs: SignsOfLife
    janitor: Janitor | None = None


_lock = threading.Lock()
_kept: dict[QueuedSpec, _Kept] = {}


def connect(fleet: QueuedSpec, say: Say | None) -> None:
    """Make the fleet's Ray cluster this process's; make its keeper, which asks for nothing yet."""
    fleet.check_safe()
    with _lock:
        kept = _kept.get(fleet)
    fresh = None if kept is not None else cloud(fleet)  # first what can be wrong without anybody's help
    address = join.connect(fleet.ray_address, namespace=fleet.namespace, joining=fleet.join, say=say)
    check_token(fleet, address, asks=gcs.asks_for_token())
    with _lock:
        kept = _kept.get(fleet)
        if kept is not None:
            if kept.address != address:
                kept.address, kept.signs = address, SignsOfLife(address)
            return
        assert fresh is not None
        made = _Kept(_keeper(fleet, fresh), address, SignsOfLife(address))
        exit_hooks.at_exit("queued resources", close_all)
        _kept[fleet] = made


def keeper(fleet: QueuedSpec) -> Keeper:
    """Of a fleet that is connected, and from now on looked after should this process be killed."""
    kept = _of(fleet)
    with _lock:
        if kept.janitor is None:
            kept.janitor = _janitor(fleet, kept.keeper)
    return kept.keeper


def _janitor(fleet: QueuedSpec, looks_after: Keeper) -> Janitor | None:
    given: Any = fleet.credentials
    key = None
    if getattr(given, "service_account_info", None) is not None:
        key = given.service_account_info.get_secret_value()
    elif getattr(given, "service_account_file", None) is not None:
        with places.usable(given.service_account_file, "the fleet's identity", "credentials"):
            key = json.loads(given.service_account_file.expanduser().read_text())
    elif given is not None and not hasattr(given, "get_credentials_from_service_account"):
        log.info(
            "credentials of google.auth cannot be handed on: if this process is killed, its slices stay until the "
            "next run of the fleet"
        )
        return None
    return Janitor(
        {
            "project": fleet.project,
            "zones": fleet.zones,
            "fleet": fleet.name,
            "owner": str(looks_after.owner),
            "endpoint": fleet.endpoint or "",
            "call_seconds": fleet.api_timeout_seconds,
            "retry_seconds": fleet.api_retry_seconds,
            "seconds": max(JANITOR_SECONDS, fleet.close_timeout_seconds),
            "service_account": key,
        }
    )


def address_for_hosts(fleet: QueuedSpec) -> str:
    """Where TPU VMs find the Ray head.

    Raises:
        ConfigurationError: not connected, or at an address that only this machine has.
    """
    address = _of(fleet).address
    check_reachable(fleet, address)
    return address


def check_reachable(fleet: QueuedSpec, address: str) -> None:
    """See that TPU VMs can reach a Ray head at this address, as far as that can be told.

    Raises:
        ConfigurationError: only this machine can.
    """
    host = address.rpartition(":")[0]
    api_is_here = fleet.endpoint is not None and probe.is_loopback(fleet.endpoint.rpartition(":")[0])
    if probe.is_loopback(host) and not api_is_here:
        raise ConfigurationError(
            f"Ray's head is at {address}, which TPU VMs cannot reach. Start it with `ray start --head "
            "--node-ip-address=ADDRESS` at an address of the TPU VMs' network, and give that as ray_address"
        )


def check_token(fleet: QueuedSpec, address: str, *, asks: bool) -> None:
    """See that TPU VMs come to this Ray as this process does: with a token, or without.

    Raises:
        ConfigurationError: only one of them has a token.
    """
    if fleet.token_secret is not None and not asks:
        raise ConfigurationError(
            f"TPU VMs get the token {fleet.token_secret} (token_secret), but this process is connected to Ray at "
            f"{address} without any. Start the head with RAY_AUTH_MODE=token and the same token, and give it to the "
            "flow's process (RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH); or, if that cluster is to be open, take "
            "token_secret out and say unprotected_ray=True"
        )
    if fleet.unprotected_ray and asks:
        raise ConfigurationError(
            f"Ray at {address} asks for a token, and TPU VMs would have none: give its name in Secret Manager as "
            "token_secret='projects/PROJECT/secrets/NAME', in place of unprotected_ray=True"
        )


def close(fleet: QueuedSpec) -> None:
    """Delete everything of this fleet that is ours. Does nothing if it was not connected."""
    with _lock:
        kept = _kept.pop(fleet, None)
    if kept is None:
        return
    left = kept.keeper.close()
    if kept.janitor is not None:
        kept.janitor.take_over() if left else kept.janitor.dismiss()


def close_all() -> None:
    """Of all fleets, at the same time."""
    threads = [threading.Thread(target=close, args=(fleet,), name="prefect-tpu-close") for fleet in list(_kept)]
    for thread in threads[1:]:
        thread.start()
    if threads:
        threads[0].run()
    for thread in threads[1:]:
        thread.join()


def reap(fleet: QueuedSpec, *, elsewhere_too: bool) -> list[str]:
    """Delete what dead owners have left."""
    api = cloud(fleet)
    try:
        found = [one for zone in fleet.zones for one in api.list(zone, fleet.name)]
        left = reaping.left_behind(
            found,
            reap_after_seconds=fleet.reap_after_seconds,
            unix_now=time.time(),
            unseen_too=elsewhere_too,
        )
        for one in left:
            api.delete(one.zone, one.id)
    except CloudError as error:
        raise ProvisioningError(str(error)) from error
    finally:
        api.close()
    return [one.id for one in left]


def cloud(fleet: QueuedSpec) -> QueuedResources:
    """The API as the fleet's identity sees it.

    Raises:
        ConfigurationError: the client is not installed, or there are no credentials.
    """
    try:
        from prefect_tpu.provision.cloud_tpu import QueuedResources
    except ImportError as error:
        raise ConfigurationError(
            f"{fleet.describe()} need Google's client for Cloud TPU, and {error.name} is not installed: {INSTALL}"
        ) from error
    given: Any = fleet.credentials
    if hasattr(given, "get_credentials_from_service_account"):  # a GcpCredentials block of prefect-gcp
        given = given.get_credentials_from_service_account()
    return QueuedResources(
        project=fleet.project,
        credentials=given,
        endpoint=fleet.endpoint or "",
        call_timeout_seconds=fleet.api_timeout_seconds,
        retry_seconds=fleet.api_retry_seconds,
    )


def _keeper(fleet: QueuedSpec, api: QueuedResources) -> Keeper:
    def look() -> Mapping[str, bool] | None:
        with _lock:
            kept = _kept.get(fleet)
        return None if kept is None else slices_in_use(kept.address)

    def beat(owner: str) -> None:
        with _lock:
            kept = _kept.get(fleet)
        if kept is not None:
            kept.signs.leave(owner)

    def heard(owner: str) -> str | None:
        with _lock:
            kept = _kept.get(fleet)
        return None if kept is None else kept.signs.last(owner)

    return Keeper(
        name=fleet.name,
        zones=fleet.zones,
        cloud=api,
        ray=RayView(look, retire, beat, heard),
        rules=fleet.rules,
        poll_seconds=fleet.poll_seconds,
        close_timeout_seconds=fleet.close_timeout_seconds,
        owner_silence_seconds=fleet.owner_silence_seconds,
        reap_after_seconds=fleet.reap_after_seconds,
    )


def slices_in_use(address: str) -> dict[str, bool] | None:
    """Slices that are whole in Ray, and whether each has chips reserved; None if Ray does not answer."""
    if not gcs.answers(address):  # Ray itself tries for long
        return None
    try:
        with auth.at(address, token_of):
            found = inventory.summary_at(address)
    except ConfigurationError as error:
        warn_once(f"Ray at {address} cannot be asked for its slices: {error}")
        return None
    except (ray.exceptions.RayError, RuntimeError, ConnectionError, ValueError, OSError) as error:
        log.debug("Ray at %s does not answer: %s", address, error)
        return None
    return {one.name: not one.free for one in found.slices if one.intact}


def retire(names: Sequence[str]) -> None:
    """No gang may lease these slices any more: Ray counts their hosts as draining until they are gone."""

    def drain() -> None:
        for one in inventory.summary().slices:
            for host in one.slice.hosts if one.name in names else ():
                gcs.drain(host.node_id, None, "nobody wants the slice: it is being deleted")

    try:
        session.while_connected(session.generation(), drain)
    except (ray.exceptions.RayError, RuntimeError, ConnectionError) as error:
        log.debug("slices %s could not be drained: %s", names, error)


def _of(fleet: QueuedSpec) -> _Kept:
    with _lock:
        kept = _kept.get(fleet)
    if kept is None:
        raise ConfigurationError(f"{fleet.describe()}: call connect() first")
    return kept


def _forget() -> None:
    """In a forked process: what the first one keeps is not its own."""
    global _lock
    _lock = threading.Lock()
    _kept.clear()


os.register_at_fork(after_in_child=_forget)
