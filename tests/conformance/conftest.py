"""The same tests for Prefect's own thread pool and for gangs, so that a difference is seen to be ours."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import prefect
import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.task_runners import ThreadPoolTaskRunner

import prefect_tpu
from prefect_tpu import LocalFleet, TpuMultisliceRunner

SIGNAL_SECONDS = 60.0
"""How long a task waits for a file of the test; only a test that fails waits so long."""


@dataclass(frozen=True)
class Side:
    """One way to run tasks.

    Attributes:
        name: "prefect": threads; "flow_runner": gangs by `@flow(task_runner=...)`, where what is submitted
            is a gang and a direct call stays here, as in Prefect; "task_runner": gangs by
            `@task(task_runner=...)` in a plain flow, where every call is a gang.
        runner: a runner of that kind.
    """

    name: Literal["prefect", "flow_runner", "task_runner"]
    runner: Any

    @property
    def gangs(self) -> bool:
        """Submitted tasks run on hosts."""
        return self.name != "prefect"

    def task(self, fn: Callable[..., Any] | None = None, /, **options: Any) -> Any:
        """Decorator of tasks."""
        if self.name == "task_runner":
            return prefect_tpu.task(fn, task_runner=self.runner, **options)
        return prefect.task(fn, **options) if fn is not None else prefect.task(**options)

    def flow(self, fn: Callable[..., Any] | None = None, /, **options: Any) -> Any:
        """Decorator of flows."""
        if self.name != "task_runner":
            options |= {"task_runner": self.runner}
        return prefect.flow(fn, **options) if fn is not None else prefect.flow(**options)


@pytest.fixture(scope="package", autouse=True)
def server(prefect_server: None) -> None:
    """Prefect's own, real."""


@pytest.fixture(scope="package")
def fleet() -> Iterator[LocalFleet]:
    """Two simulated slices of one host."""
    with LocalFleet(slices=2, accelerator_type="v4", topology="2x2x1") as running:
        yield running


@pytest.fixture(scope="package")
def gang_runner(fleet: LocalFleet) -> TpuMultisliceRunner[Any]:
    """One slice, one host, and the plain function's own results."""
    return TpuMultisliceRunner(pool=fleet, jax_distributed=False, preload=("cloudpickle",), returns="process0")


@pytest.fixture(params=["prefect", "flow_runner", "task_runner"])
def side(request: pytest.FixtureRequest) -> Side:
    """Prefect's threads, gangs by the flow's runner, gangs by the task's."""
    runner = ThreadPoolTaskRunner() if request.param == "prefect" else request.getfixturevalue("gang_runner")
    return Side(request.param, runner)


by_runner = pytest.mark.parametrize("side", ["prefect", "flow_runner"], indirect=True)
"""For what the two kinds of gangs share: from `TpuMultisliceRunner.submit` on they are the same."""


@pytest.fixture(params=["prefect", "gangs"])
def runner(request: pytest.FixtureRequest) -> Any:
    """A runner that is not started."""
    if request.param == "prefect":
        return ThreadPoolTaskRunner(max_workers=7)
    return request.getfixturevalue("gang_runner").duplicate()


@pytest.fixture
def client() -> Iterator[SyncPrefectClient]:
    """Prefect's API."""
    with get_client(sync_client=True) as api:
        yield api


def finished(value: Any) -> Any:
    """What a function returned, or what its coroutine returns."""
    return asyncio.run(value) if inspect.iscoroutine(value) else value


def until_there(path: str) -> bool:
    """A task's body: wait for a file."""
    give_up = time.monotonic() + SIGNAL_SECONDS
    while not Path(path).exists():
        if time.monotonic() > give_up:
            return False
        time.sleep(0.02)
    return True


def note(path: str, line: Any) -> None:
    """Write a line where the test can count it; on hosts, too: they are this machine."""
    with Path(path).open("a") as file:
        file.write(f"{line}\n")


def noted(path: Path) -> list[str]:
    """The lines that tasks have written."""
    return path.read_text().split() if path.exists() else []
