"""What `submit` and `map` return: waiting, results, timeouts, order of completion."""

from __future__ import annotations

import concurrent.futures
import threading
from pathlib import Path
from typing import Any

import pytest
from prefect.futures import as_completed, wait

from tests.conformance.conftest import Side, by_runner, until_there

SOON_SECONDS = 0.3
"""A timeout that is to pass."""


class OwnError(Exception):
    """Of this file."""


def maybe(fail: bool) -> int:
    if fail:
        raise OwnError("asked to", 3)
    return 1


def test_wait_takes_the_final_state(side: Side) -> None:
    """It raises nothing, whatever the state is."""
    task = side.task(maybe)

    @side.flow
    def waits() -> Any:
        good, bad = task.submit(False), task.submit(True)
        good.wait()
        bad.wait()
        return good.state.name, bad.state.name

    assert waits() == ("Completed", "Failed")


def test_result_raises_the_tasks_own_error_or_returns_it(side: Side) -> None:
    """raise_on_failure; result may be asked again and again."""
    task = side.task(maybe)

    @side.flow
    def asks() -> Any:
        future = task.submit(True)
        for _ in range(2):
            with pytest.raises(OwnError) as caught:
                future.result()
            assert caught.value.args == ("asked to", 3)
        error = future.result(raise_on_failure=False)
        assert type(error) is OwnError
        return error.args

    assert asks() == ("asked to", 3)


@by_runner
def test_timeouts_of_wait_and_result(side: Side, tmp_path: Path) -> None:
    """wait returns, result raises TimeoutError, and the task goes on."""
    task = side.task(until_there)

    @side.flow
    def impatient() -> Any:
        future = task.submit(str(tmp_path / "go"))
        future.wait(timeout=SOON_SECONDS)
        assert not future.state.is_final()
        with pytest.raises(TimeoutError, match=f"{future.task_run_id} did not complete"):
            future.result(timeout=SOON_SECONDS)
        (tmp_path / "go").touch()
        future.wait(timeout=60)
        assert future.state.is_completed()
        return future.result(timeout=0)

    assert impatient()


def test_as_completed_yields_the_first_first(side: Side, tmp_path: Path) -> None:
    """Whatever the order of submission; a failed one is complete, too."""
    waits, fails = side.task(until_there), side.task(maybe)

    @side.flow
    def in_order() -> Any:
        slow, quick = waits.submit(str(tmp_path / "go")), fails.submit(True)
        seen = []
        for future in as_completed([slow, quick]):
            seen.append("slow" if future is slow else "quick")
            (tmp_path / "go").touch()
        return seen

    assert in_order() == ["quick", "slow"]


def test_timeouts_of_as_completed_and_of_lists(side: Side, tmp_path: Path) -> None:
    """as_completed and the result of a list raise TimeoutError; wait says what is done and what is not."""
    waits, adds = side.task(until_there), side.task(maybe)

    @side.flow
    def impatient() -> Any:
        futures = waits.map([str(tmp_path / "go")])
        quick = adds.submit(False)
        quick.wait()
        with pytest.raises(TimeoutError, match="1 \\(of 2\\) futures unfinished"):
            list(as_completed([quick, *futures], timeout=SOON_SECONDS))
        with pytest.raises(TimeoutError):
            futures.result(timeout=SOON_SECONDS)
        futures.wait(timeout=SOON_SECONDS)
        done, not_done = wait([quick, *futures], timeout=SOON_SECONDS)
        assert (done, not_done) == ({quick}, set(futures))
        (tmp_path / "go").touch()
        done, not_done = wait([quick, *futures])
        assert (done, not_done) == ({quick, *futures}, set())
        return futures.result()

    assert impatient() == [True]


@by_runner
def test_a_list_raises_the_first_failure_without_waiting_for_the_rest(side: Side, tmp_path: Path) -> None:
    """And keeps the order where failures are returned."""

    def fails_or_waits(path: str | None) -> bool:
        if path is None:
            raise OwnError("asked to")
        return until_there(path)

    task = side.task(fails_or_waits)

    @side.flow
    def asks() -> Any:
        futures = task.map([str(tmp_path / "go"), None])
        with pytest.raises(OwnError):
            futures.result()
        (tmp_path / "go").touch()
        return [type(one).__name__ for one in futures.result(raise_on_failure=False)]

    assert asks() == ["bool", "OwnError"]


@by_runner
def test_callbacks_hear_of_the_end(side: Side) -> None:
    """Once each, with the future; at once where it has ended already."""
    task = side.task(maybe)
    heard: list[Any] = []
    both = threading.Event()

    def hear(future: Any) -> None:
        heard.append(future)
        if len(heard) == 2:
            both.set()

    @side.flow
    def listens() -> None:
        good, bad = task.submit(False), task.submit(True)
        good.add_done_callback(hear)
        bad.add_done_callback(hear)
        wait([good, bad])
        assert both.wait(10)
        assert set(heard) == {good, bad}
        good.add_done_callback(hear)
        assert heard[2:] == [good]

    listens()


@by_runner
def test_a_future_knows_its_run(side: Side) -> None:
    """Its id, its state on the way, and the future of the pool that it wraps."""
    task = side.task(maybe)

    @side.flow
    def looks() -> Any:
        first, second = task.submit(False), task.submit(False)
        assert first.task_run_id != second.task_run_id
        assert isinstance(first.wrapped_future, concurrent.futures.Future)
        wait([first, second])
        assert first.state.state_details.task_run_id == first.task_run_id
        return first.result()

    assert looks() == 1


@by_runner
def test_futures_and_states_that_a_flow_returns(side: Side) -> None:
    """They decide the flow run's own state, as with any runner."""
    task = side.task(maybe)

    @side.flow
    def returns(fail: bool, state: bool) -> Any:
        future = task.submit(fail, return_state=True) if state else task.submit(fail)
        return [future]

    for state in (False, True):
        assert returns(False, state, return_state=True).is_completed()
        ended = returns(True, state, return_state=True)
        assert ended.is_failed()
        with pytest.raises(OwnError):
            ended.result()
