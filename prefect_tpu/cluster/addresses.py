"""What a Ray address stands for: "auto", names and loopback become the "host:port" of a cluster that answers."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

import ray  # noqa: F401 - before parts of it: see tests/test_house.py
from ray._private import ray_constants, services

from prefect_tpu.core.errors import ConfigurationError
from prefect_tpu.linux import ports, probe

REACH_TIMEOUT_SECONDS = 5.0
"""How long the cluster's port may take to answer; Ray's own wait, which comes after it, is much longer."""


def resolve(address: str) -> str:
    """The "host:port" of "auto" or "host:port", once something listens there. Connects nothing.

    Raises:
        ConfigurationError: there is no such cluster, or it does not answer.
    """
    refuse_ray_client(address)
    target = _target(address)
    _check_reachable(target, address)
    return target


def same(asked: str, current: str) -> bool:
    """Whether an address is that of the connected cluster."""
    if asked == current:
        return True
    try:
        return bool(_canonical(asked) == current)
    except (ConnectionError, ValueError, OSError):
        return False


def refuse_ray_client(address: str) -> None:
    """See that an address is one at all, and not ray://."""
    if not isinstance(address, str) or not address:
        raise ConfigurationError(f"A Ray address is 'auto' or 'host:port', got {address!r}.")
    if address.startswith("ray://"):
        raise ConfigurationError(
            f"{address!r} is a Ray Client address. Gangs move results and arguments through Ray's object store on "
            "the driver's own host, and Ray Client has none there. Run the flow on a host of the cluster and use "
            "'auto' or its 'host:port' (6379 by default); beside a cluster, RayFleet('host:port', join=True) "
            "makes this machine part of it."
        )


@contextlib.contextmanager
def loopback_stays() -> Iterator[None]:
    """Meanwhile Ray does not put this machine's outer address in place of loopback."""
    # Where Ray has no clusters of several machines (macOS, Windows), it keeps to loopback. It has no other switch.
    before, ray_constants.ENABLE_RAY_CLUSTER = ray_constants.ENABLE_RAY_CLUSTER, False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def _canonical(address: str) -> str | None:
    """As Ray does it; but loopback stays where a cluster listens on nothing else, as local fleets do."""
    with loopback_stays():
        target: str | None = services.canonicalize_bootstrap_address(address)
    host, _, port = (target or "").rpartition(":")
    if target is None or not probe.is_loopback(host) or ports.only_on_loopback(int(port)):
        return target
    outer: str | None = services.canonicalize_bootstrap_address(target)
    return outer


def _target(address: str) -> str:
    try:
        target = _canonical(address)
    except (ConnectionError, ValueError, OSError) as error:
        if address == "auto":
            raise ConfigurationError(
                f"No Ray cluster runs on this machine (address 'auto': looked at RAY_ADDRESS, at Ray's own note "
                f"of its last start, and at running processes): {error} Start Ray here, give host:port, or use "
                "LocalFleet() for simulated slices."
            ) from error
        raise ConfigurationError(
            f"{address!r} is not an address of a Ray cluster: {error} Give 'auto' or 'host:port'."
        ) from error
    if target is None or target == "auto":
        raise ConfigurationError(
            f"No Ray cluster found for address {address!r} (looked at RAY_ADDRESS, at Ray's own note of its last "
            "start, and at running processes). Start Ray here, give host:port, or use LocalFleet() for simulated "
            "slices."
        )
    refuse_ray_client(target)
    return target


def _check_reachable(target: str, asked: str) -> None:
    host, _, port = target.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=REACH_TIMEOUT_SECONDS):
            return
    except (OSError, ValueError) as error:
        via = "" if asked == target else f" (address {asked!r})"
        raise ConfigurationError(
            f"Ray at {target}{via} does not answer: {error}, tried for at most {REACH_TIMEOUT_SECONDS:g} s. Is the "
            "cluster up, and is this its GCS port (6379 by default)? Start it, correct the address, or use "
            "LocalFleet() for simulated slices."
        ) from error
