"""Submit, map and call, from sync and async flows."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import prefect
import pytest
from prefect import flow, unmapped
from prefect.exceptions import MappingLengthMismatch, MappingMissingIterable, ParameterBindError
from prefect.states import State

from prefect_tpu import runtime
from tests.conformance.conftest import Side, by_runner, finished, until_there


def add(x: int, y: int = 10) -> int:
    return x + y


async def add_async(x: int, y: int = 10) -> int:
    await asyncio.sleep(0)
    return x + y


def where() -> tuple[int, bool]:
    return os.getpid(), runtime.current(default=None) is not None


def test_the_sides_are_what_they_are_called(side: Side) -> None:
    """Bodies run in this process, or on a host of a gang."""
    task = side.task(where)

    @side.flow
    def both() -> Any:
        return task.submit().result(), task()

    (pid, in_gang), (direct_pid, direct_in_gang) = both()
    assert ((pid == os.getpid()), in_gang) == (not side.gangs, side.gangs)
    assert direct_in_gang is (side.name == "task_runner")
    assert (direct_pid == os.getpid()) is (side.name != "task_runner")


@pytest.mark.parametrize("body", [add, add_async])
@pytest.mark.parametrize("in_async_flow", [False, True])
def test_submit_sync_and_async_tasks_in_sync_and_async_flows(side: Side, body: Any, in_async_flow: bool) -> None:
    """All four combinations."""
    task = side.task(body)

    def submits() -> Any:
        return task.submit(1, y=2).result()

    async def submits_async() -> Any:
        return task.submit(1, y=2).result()

    assert finished(side.flow(submits_async if in_async_flow else submits)()) == 3


@pytest.mark.parametrize("body", [add, add_async])
@pytest.mark.parametrize("in_async_flow", [False, True])
def test_direct_calls_of_sync_and_async_tasks(side: Side, body: Any, in_async_flow: bool) -> None:
    """An async task's call is a coroutine, a sync task's is its result."""
    if body is add_async and not in_async_flow:
        pytest.skip("nobody can await in a sync flow, with any runner")
    task = side.task(body)

    def calls() -> Any:
        return task(1, y=2)

    async def calls_async() -> Any:
        return await task(1, y=2) if body is add_async else task(1, y=2)

    assert finished(side.flow(calls_async if in_async_flow else calls)()) == 3


def test_async_tasks_run_side_by_side(side: Side, tmp_path: Path) -> None:
    """asyncio.gather of two calls: each waits for what the other one does."""

    async def meet(mine: str, other: str) -> bool:
        await asyncio.to_thread(Path(mine).touch)
        return await asyncio.to_thread(until_there, other)

    task = side.task(meet)

    @side.flow
    async def both() -> Any:
        a, b = str(tmp_path / "a"), str(tmp_path / "b")
        return await asyncio.gather(task(a, b), task(b, a))

    assert asyncio.run(both()) == [True, True]


def test_submit_does_not_block(side: Side, tmp_path: Path) -> None:
    """It returns while the task still waits for us."""
    task = side.task(until_there)

    @side.flow
    def goes_on() -> Any:
        future = task.submit(str(tmp_path / "go"))
        (tmp_path / "go").touch()
        return future.result()

    assert goes_on()


def test_map_does_not_block(side: Side, tmp_path: Path) -> None:
    """As submit: more elements than slices."""
    task = side.task(until_there)

    @side.flow
    def goes_on() -> Any:
        futures = task.map([str(tmp_path / "go")] * 3)
        (tmp_path / "go").touch()
        return futures.result()

    assert goes_on() == [True] * 3


def test_tasks_run_side_by_side(side: Side, tmp_path: Path) -> None:
    """As many as there are slices."""

    def meet(mine: str, other: str) -> bool:
        Path(mine).touch()
        return until_there(other)

    task = side.task(meet)

    @side.flow
    def both() -> Any:
        a, b = str(tmp_path / "a"), str(tmp_path / "b")
        return [one.result() for one in (task.submit(a, b), task.submit(b, a))]

    assert both() == [True, True]


@by_runner
def test_many_submissions_complete(side: Side) -> None:
    """Far more than slices, each with its own result."""
    task = side.task(add)

    @side.flow
    def many() -> Any:
        return [future.result() for future in [task.submit(number) for number in range(8)]]

    assert many() == [number + 10 for number in range(8)]


def test_submit_with_few_threads(side: Side) -> None:
    """max_workers bounds how many run at once, not how many are submitted."""
    from prefect.task_runners import ThreadPoolTaskRunner

    from prefect_tpu import TpuMultisliceRunner

    runner: Any = ThreadPoolTaskRunner(max_workers=1)
    if side.gangs:
        runner = TpuMultisliceRunner(**(side.runner._given.arguments() | {"max_workers": 1}))
    task = side.task(add)

    @flow(task_runner=runner)
    def several() -> Any:
        return [future.result() for future in [task.submit(number) for number in range(3)]]

    assert several() == [10, 11, 12]


def test_wrong_arguments_are_refused_at_submit(side: Side) -> None:
    """As for a call of the function, before anything runs."""
    task = side.task(add)

    @side.flow
    def wrong() -> None:
        for start in (task.submit, task, lambda **none: task.map([1], [2], [3])):
            with pytest.raises(ParameterBindError):
                start(nothing=1)

    wrong()


@by_runner
def test_parameters_of_every_kind(side: Side) -> None:
    """Positional, keyword, defaults, *args and **kwargs; changed ones do not come back."""

    def takes(a: int, b: int = 2, *rest: int, c: int, **more: int) -> Any:
        return a, b, rest, c, more

    task = side.task(takes)

    @side.flow
    def gives() -> Any:
        return task.submit(1, c=3).result(), task.submit(1, 5, 6, 7, c=8, d=9).result()

    assert gives() == ((1, 2, (), 3, {}), (1, 5, (6, 7), 8, {"d": 9}))


# -- map


@by_runner
def test_map_keeps_the_order(side: Side) -> None:
    """One run for each element; results in the order of the input."""
    task = side.task(add)

    @side.flow
    def maps() -> Any:
        return task.map(range(5)).result()

    assert maps() == [10, 11, 12, 13, 14]


@pytest.mark.parametrize("in_async_flow", [False, True])
def test_map_an_async_task(side: Side, in_async_flow: bool) -> None:
    """From a sync and from an async flow."""
    task = side.task(add_async)

    def maps() -> Any:
        return task.map([1, 2], y=unmapped(1)).result()

    async def maps_async() -> Any:
        return task.map([1, 2], y=unmapped(1)).result()

    assert finished(side.flow(maps_async if in_async_flow else maps)()) == [2, 3]


def test_map_over_a_future(side: Side) -> None:
    """The future is waited for, its value is what is mapped over."""
    numbers, task = side.task(lambda: [1, 2, 3]), side.task(add)

    @side.flow
    def maps() -> Any:
        return task.map(numbers.submit()).result()

    assert maps() == [11, 12, 13]


@by_runner
def test_map_over_futures_in_a_list(side: Side) -> None:
    """Futures of submit and of another map."""
    task = side.task(add)

    @side.flow
    def maps() -> Any:
        first = [task.submit(1), task.submit(2)]
        return task.map(task.map(first)).result()

    assert maps() == [31, 32]


def test_map_with_unmapped_static_and_default_parameters(side: Side) -> None:
    """Only iterables that are not marked are mapped over; futures inside unmapped are resolved."""

    def join(items: list[int], n: int, word: Any = 7, last: tuple[int, ...] = (1, 2)) -> Any:
        return [*items, n, word, last]

    task, numbers = side.task(join), side.task(lambda: [4, 5])

    @side.flow
    def maps() -> Any:
        return (
            task.map(unmapped([10, 20]), [1, 2], word=3).result(),
            task.map(unmapped(numbers.submit()), n=[1]).result(),
        )

    assert maps() == ([[10, 20, 1, 3, (1, 2)], [10, 20, 2, 3, (1, 2)]], [[4, 5, 1, 7, (1, 2)]])


def test_map_refuses_unequal_lengths_and_nothing_to_map(side: Side) -> None:
    """Before anything runs."""
    task = side.task(add)

    @side.flow
    def wrong() -> Any:
        with pytest.raises(MappingLengthMismatch, match="different lengths"):
            task.map([1, 2], [1, 2, 3])
        with pytest.raises(MappingMissingIterable, match="No iterable"):
            task.map(1, 2)
        return task.map([]).result()

    assert wrong() == []


@by_runner
def test_map_with_kwargs(side: Side) -> None:
    """**kwargs are mapped over like named parameters."""

    def total(**numbers: int) -> int:
        return sum(numbers.values())

    task = side.task(total)

    @side.flow
    def maps() -> Any:
        return task.map(a=[1, 2], b=[10, 20], c=100).result()

    assert maps() == [111, 122]


def test_return_state(side: Side) -> None:
    """States in place of results, from call, submit and map; a failure does not raise."""

    def maybe(fail: bool) -> int:
        if fail:
            raise ValueError("asked to")
        return 1

    task = side.task(maybe)

    @side.flow
    def asks() -> Any:
        states = [
            task(False, return_state=True),
            task(True, return_state=True),
            task.submit(False, return_state=True),
            *task.map([True, False], return_state=True),
        ]
        assert all(isinstance(state, State) for state in states)
        return [(state.name, type(state.result(raise_on_failure=False)).__name__) for state in states]

    good, bad = ("Completed", "int"), ("Failed", "ValueError")
    assert asks() == [good, bad, good, bad, good]


def test_outside_of_flows(side: Side) -> None:
    """A call runs anywhere. Submit: Prefect's needs a flow (or a task worker), a gang task's own does not."""
    task = side.task(add)
    assert task(1) == 11
    if side.name == "task_runner":
        assert task.submit(1).result() == 11
        assert task.map([1, 2]).result() == [11, 12]
    else:
        with pytest.raises(RuntimeError, match="Unable to determine task runner"):
            task.submit(1)
        with pytest.raises(RuntimeError, match="Unable to determine task runner"):
            task.map([1])


def test_a_task_that_is_a_method(side: Side) -> None:
    """Of an instance, of the class, and static."""

    class Model:
        def __init__(self, width: int) -> None:
            self.width = width

        @side.task
        def twice(self, more: int) -> int:
            return self.width * 2 + more

        @classmethod
        @side.task
        def name(cls) -> str:
            return cls.__name__

        @staticmethod
        @side.task
        def half(x: int) -> int:
            return x // 2

    model = Model(4)

    @side.flow
    def uses() -> Any:
        return [one.result() for one in (model.twice.submit(1), Model.name.submit(), Model.half.submit(8))]

    assert uses() == [9, "Model", 4]


@by_runner
def test_one_runner_for_two_flows_one_after_the_other(side: Side) -> None:
    """Prefect starts a duplicate for each run."""
    task = side.task(add)
    first = side.flow(lambda: task.submit(1).result(), name="first")
    second = side.flow(lambda: task.submit(2).result(), name="second")
    assert [first(), second(), first()] == [11, 12, 11]


@by_runner
def test_flows_in_threads(side: Side) -> None:
    """Two runs of a flow at the same time in one process."""
    from concurrent.futures import ThreadPoolExecutor

    task = side.task(add)

    @side.flow
    def submits(x: int) -> Any:
        return task.submit(x).result()

    with ThreadPoolExecutor(2) as threads:
        assert list(threads.map(submits, [1, 2])) == [11, 12]


def test_plain_tasks_beside_gangs(side: Side) -> None:
    """Results go from one kind to the other."""
    plain, task = prefect.task(add), side.task(add)

    @side.flow
    def chain() -> Any:
        return task.submit(plain.submit(task.submit(1))).result()

    assert chain() == 31
