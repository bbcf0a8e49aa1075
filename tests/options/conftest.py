"""Everything here talks to a real Prefect server."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session", autouse=True)
def server(prefect_server: None) -> None:
    """Prefect's own."""
