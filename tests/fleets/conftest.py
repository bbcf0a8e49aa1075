"""The fleet of all tests, whole before and after each test here."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from prefect_tpu import LocalFleet
from tests.whole_fleet import make_whole


@pytest.fixture
def fleet(fleet: LocalFleet) -> Iterator[LocalFleet]:
    """Connected, with every slice up."""
    make_whole(fleet)
    yield fleet
    make_whole(fleet)
