"""checkpoint_dir follows what is trained: the same training finds its own files again, and nobody else's."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import Any

import prefect
import pytest
from prefect import flow
from prefect.futures import as_completed

from prefect_tpu import LocalFleet, TpuMultisliceRunner, task

Runner = TpuMultisliceRunner[Any]


@pytest.fixture(scope="module")
def runner(fleet: LocalFleet, tmp_path_factory: pytest.TempPathFactory) -> Runner:
    """One slice, process 0's answer, checkpoints in a folder of these tests."""
    root = tmp_path_factory.mktemp("checkpoints")
    return TpuMultisliceRunner(pool=fleet, jax_distributed=False, returns="process0", checkpoint_root=root)


def who_was_here(mark: str) -> list[str]:
    """On a host: leave a mark in checkpoint_dir, and say whose are there."""
    import pathlib

    from prefect_tpu import runtime

    ctx = runtime.current()
    assert ctx.checkpoint_dir is not None
    if ctx.process_id:
        return []
    place = pathlib.Path(ctx.checkpoint_dir)
    place.mkdir(parents=True, exist_ok=True)
    with (place / "marks").open("a") as file:
        file.write(f"{mark}\n")
    return (place / "marks").read_text().split()


class Turns:
    """Plain tasks end in one order in the first run of the flow, and the other way round in the second."""

    def __init__(self, *names: str) -> None:
        self.names, self.run = list(names), 0
        self.begin()

    def begin(self) -> None:
        self.ended = {name: threading.Event() for name in self.names}

    def wait(self, name: str) -> str:
        before = self.names[: self.names.index(name)]
        for one in before:
            assert self.ended[one].wait(60)
        return name

    def next_run(self) -> None:
        """The flow is retried once, with another order."""
        self.run += 1
        self.names.reverse()
        self.begin()
        if self.run == 1:
            raise ValueError("once")


def trains(runner: Runner, **options: Any) -> Any:
    """A gang that says who used its directory."""

    @task(task_runner=runner, name="train it", **options)
    def train(name: str, rate: float = 0.1) -> list[str]:
        return who_was_here(name)

    return train


def test_a_retried_flow_goes_on_from_its_own_training_whatever_ends_first(runner: Runner) -> None:
    """Plain tasks end in another order in the second run, and as_completed submits a gang for each."""
    turns, train = Turns("a", "b"), trains(runner)

    @prefect.task
    def prepare(name: str) -> str:
        return turns.wait(name)

    @flow(retries=1)
    def training() -> dict[str, list[str]]:
        found = {}
        for done in as_completed([prepare.submit("a"), prepare.submit("b")]):
            name = done.result()
            turns.ended[name].set()
            found[name] = train(name)
        turns.next_run()
        return found

    assert training() == {"a": ["a", "a"], "b": ["b", "b"]}


def test_gather_and_threads_and_map(runner: Runner) -> None:
    """Whoever comes first: the gangs of the second run begin in another order."""
    turns, train = Turns("a", "b"), trains(runner)

    @task(task_runner=runner, name="train it")
    async def train_async(name: str, rate: float) -> list[str]:
        return who_was_here(f"async-{name}")

    def turn(name: str) -> tuple[str, list[str]]:
        turns.wait(name)
        turns.ended[name].set()
        return name, train(name, rate=1.0)

    async def turn_async(name: str) -> tuple[str, list[str]]:
        await asyncio.to_thread(turns.wait, name)
        turns.ended[name].set()
        return name, await train_async(name, rate=2.0)

    @flow
    async def in_gather() -> dict[str, list[str]]:
        return dict(await asyncio.gather(turn_async("a"), turn_async("b")))

    @flow(retries=1)
    def training() -> list[Any]:
        with ThreadPoolExecutor(2) as pool:
            threads = dict([one.result() for one in [pool.submit(copy_context().run, turn, one) for one in "ab"]])
        turns.begin()
        gathered = asyncio.run(in_gather())
        mapped = dict(zip(turns.names, train.map(turns.names, rate=3.0).result(), strict=True))
        equal = [train("c").copy(), train("c")]
        turns.next_run()
        return [threads, gathered, mapped, equal]

    twice = {"a": ["a", "a"], "b": ["b", "b"]}
    again = {"a": ["async-a", "async-a"], "b": ["async-b", "async-b"]}
    assert training() == [twice, again, twice, [["c", "c"]] * 2]


def test_a_subflow_of_a_retried_flow(runner: Runner) -> None:
    """Its run is another then, and the subflows come in another order; an equal call has a directory of its own."""
    turns, train = Turns("a", "b"), trains(runner)
    runs: set[str] = set()

    @flow(name="Sub flow")
    def inner(name: str, config: dict[str, Any]) -> list[str]:
        from prefect.runtime import flow_run

        runs.add(str(flow_run.id))
        return train("same")

    @flow(retries=1)
    def outer() -> list[Any]:
        found = {name: inner(name, {"rates": {1}}) for name in turns.names}
        equal = [inner("c", {}), inner("c", {})]
        turns.next_run()
        return [found, equal]

    twice = ["same", "same"]
    assert outer() == [{"a": twice, "b": twice}, [twice, twice]]
    assert len(runs) == 8
