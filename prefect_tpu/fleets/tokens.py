"""The tokens of local fleets: those of this process, and those of `prefect-tpu fleet up` of this user."""

from __future__ import annotations

from prefect_tpu.fleets import local_daemon
from prefect_tpu.fleets.local_registry import registry


def token_of(address: str) -> str | None:
    """Of the local fleet at "host:port"; None if none of ours is there."""
    return registry.token_of(address) or local_daemon.token_of(address)
