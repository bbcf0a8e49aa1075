"""For all tests: one Prefect server and one local fleet for each process of pytest."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Generator, Iterator
from typing import Any

import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.testing.utilities import prefect_test_harness

from prefect_tpu import LocalFleet, TpuMultisliceRunner

# Prefect warns when a task outside a flow logs to the API; here a warning is an error.
os.environ["PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW"] = "ignore"


IGNORED_IN_THE_BACKGROUND = (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP)


def pytest_configure() -> None:
    """Signals do what they do in a terminal: nohup and a shell's background ignore some, and processes inherit that."""
    for number in IGNORED_IN_THE_BACKGROUND:
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


def pytest_unconfigure() -> None:
    """What ends with the process may still log, but pytest has closed the stream that Prefect's handler writes to."""
    logging.raiseExceptions = False


NOT_FAST = {"fleet", "prefect_server"}
"""Fixtures that start a Ray cluster or a Prefect server."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The fast half: `-m fast`. What starts a cluster or a server of its own says `slow`, or stands in e2e."""
    for item in items:
        starts = NOT_FAST & set(getattr(item, "fixturenames", ()))
        if not starts and not item.get_closest_marker("slow") and not item.get_closest_marker("e2e"):
            item.add_marker("fast")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
    """What was captured, as text that can be sent: some tests log names that are none, and xdist stops at them."""
    report = yield
    report.sections = [
        (name, text.encode("utf-8", "backslashreplace").decode("utf-8")) for name, text in report.sections
    ]
    return report


@pytest.fixture(scope="session")
def prefect_server() -> Iterator[None]:
    """A Prefect server with an empty database, one for all tests of a process: Prefect keeps its address."""
    from prefect_tpu.observability import artifacts

    with prefect_test_harness(server_startup_timeout=90):
        yield
        artifacts.flush(5)


@pytest.fixture(scope="session")
def fleet() -> Iterator[LocalFleet]:
    """Two simulated v4 slices of two hosts with four chips each. Who breaks it, mends it: tests.whole_fleet."""
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
