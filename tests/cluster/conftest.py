"""One local fleet for each test module, whole again before every test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from prefect_tpu.fleets.local_fleet import LocalFleet


@pytest.fixture(scope="module")
def module_fleet() -> Iterator[LocalFleet]:
    """Two slices of two hosts with four chips each, up for a whole module. Tests take `fleet`."""
    with LocalFleet(slices=2) as fleet:
        yield fleet


@pytest.fixture
def fleet(module_fleet: LocalFleet) -> LocalFleet:
    """The module's fleet, connected, with every slice up."""
    module_fleet.connect()
    for one in module_fleet.status()["slices"]:
        if any(host["state"] != "up" for host in one["hosts"]):
            module_fleet.restore(one["name"])
    return module_fleet
