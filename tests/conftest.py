"""For all tests."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from prefect.testing.utilities import prefect_test_harness

# Prefect warns when a task outside a flow logs to the API; here a warning is an error.
os.environ["PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW"] = "ignore"


@pytest.fixture(scope="session")
def prefect_server() -> Iterator[None]:
    """A Prefect server with an empty database, one for all tests of a process: Prefect keeps its address."""
    from prefect_tpu.observability import artifacts

    with prefect_test_harness(server_startup_timeout=90):
        yield
        artifacts.flush(5)
