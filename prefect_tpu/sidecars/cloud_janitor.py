"""Deletes the queued resources of a process that has ended, beside which it was started."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

from prefect_tpu.provision.janitor import DISMISSED

LOOK_SECONDS = 1.0
QUIET_LOOKS = 3
"""So many times in a row nothing of the owner's is listed, until all is taken to be gone: lists lag behind."""


def sweep(config: dict[str, Any]) -> None:
    """Delete every queued resource of an owner, for as long as `seconds` says.

    Args:
        config: "project", "zones", "fleet", "owner", "endpoint", "call_seconds", "retry_seconds", "seconds", and
            "service_account", the content of a key file, or None for the environment's own identity.
    """
    from prefect_tpu.provision.cloud_tpu import QueuedResources, identity_of
    from prefect_tpu.provision.plan import LEAVING
    from prefect_tpu.provision.problems import CloudError

    api = QueuedResources(
        project=config["project"],
        credentials=identity_of(config["service_account"]) if config["service_account"] else None,
        endpoint=config["endpoint"],
        call_timeout_seconds=config["call_seconds"],
        retry_seconds=config["retry_seconds"],
    )
    give_up, quiet = time.monotonic() + config["seconds"], 0
    while quiet < QUIET_LOOKS and time.monotonic() < give_up:
        quiet += 1
        for zone in config["zones"]:
            try:
                mine = [one for one in api.list(zone, config["fleet"]) if one.owner == config["owner"]]
                for one in mine:
                    quiet = 0
                    if one.state not in LEAVING:
                        api.delete(zone, one.id)
            except CloudError:
                quiet = 0  # tried again until the time is over; nobody is there to be told
        time.sleep(LOOK_SECONDS)


def main() -> None:
    """Wait for the owner's end, or for its word that there is nothing to do."""
    config = json.loads(sys.stdin.readline())
    if sys.stdin.readline().strip() != DISMISSED:
        sweep(config)


if __name__ == "__main__":
    main()
