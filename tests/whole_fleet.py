"""The fleet of all tests, for those that break it."""

from __future__ import annotations

from prefect_tpu import LocalFleet


def make_whole(fleet: LocalFleet) -> None:
    """Connect to it, and bring every slice up that is not."""
    fleet.connect()
    for one in fleet.status()["slices"]:
        if any(host["state"] != "up" for host in one["hosts"]):
            fleet.restore(one["name"])
