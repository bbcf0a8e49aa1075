"""A real Prefect server and one local fleet for all tests of this folder."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client

from prefect_tpu import LocalFleet, TpuMultisliceRunner

WAIT_SECONDS = 20.0


@pytest.fixture(scope="session", autouse=True)
def server(prefect_server: None) -> None:
    """Prefect's own, real."""


@pytest.fixture(scope="session")
def fleet() -> Iterator[LocalFleet]:
    """Two simulated v4 slices of two hosts with four chips each."""
    with LocalFleet(slices=2, accelerator_type="v4", topology="2x2x2") as running:
        yield running


@pytest.fixture(scope="session")
def two_slices(fleet: LocalFleet) -> TpuMultisliceRunner[Any]:
    """A runner over both slices."""
    return TpuMultisliceRunner(pool=fleet, num_slices=2)


@pytest.fixture(scope="session")
def one_slice(fleet: LocalFleet) -> TpuMultisliceRunner[Any]:
    """A runner over one slice of the fleet, without JAX: for tests that need no collective."""
    return TpuMultisliceRunner(pool=fleet, num_slices=1, jax_distributed=False)


@pytest.fixture
def client() -> Iterator[SyncPrefectClient]:
    """Prefect's API."""
    with get_client(sync_client=True) as api:
        yield api


def eventually(look: Callable[[], Any], what: str, seconds: float = WAIT_SECONDS) -> Any:
    """What `look` returns once it is truthy; Prefect records task runs, logs and artifacts a little later."""
    deadline = time.monotonic() + seconds
    while True:
        found = look()
        if found:
            return found
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.2)
