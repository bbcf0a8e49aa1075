"""What becomes of a task run: errors, crashes, retries, returned states, names, tags, caching."""

from __future__ import annotations

import asyncio
import uuid
from pathlib import Path
from typing import Any

import prefect
import pytest
from prefect import tags
from prefect.cache_policies import INPUTS
from prefect.client.orchestration import SyncPrefectClient
from prefect.transactions import transaction

from prefect_tpu import HostProcessError
from tests.conformance.conftest import Side, by_runner, note, noted
from tests.prefect_runs import run_and_state, task_runs


class OwnError(Exception):
    """With an attribute of its own."""

    def __init__(self, code: int) -> None:
        super().__init__(f"code {code}")
        self.code = code

    def __reduce__(self) -> Any:
        return OwnError, (self.code,)


class OwnInterruption(BaseException):
    """Not an Exception."""


@by_runner
@pytest.mark.parametrize("is_async", [False, True])
def test_errors_come_back_as_themselves(side: Side, client: SyncPrefectClient, is_async: bool) -> None:
    """Type, arguments, attributes; the run is Failed, with Prefect's own message."""

    def fails() -> None:
        raise OwnError(7)

    async def fails_async() -> None:
        raise OwnError(7)

    task = side.task(fails_async if is_async else fails)

    @side.flow
    def asks() -> Any:
        with pytest.raises(OwnError) as caught:
            task.submit().result()
        return caught.value.code, caught.value.args

    flow_run_id, state = run_and_state(asks)
    assert state.result() == (7, ("code 7",))
    (run,) = task_runs(client, flow_run_id)
    assert (run.state.type.value, run.state.name) == ("FAILED", "Failed")
    assert run.state.message == "Task run encountered an exception OwnError: code 7"


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (KeyboardInterrupt("by hand"), "Execution was aborted by an interrupt signal."),
        (SystemExit(3), "Execution was aborted by Python system exit call."),
        (OwnInterruption("own"), "Execution was interrupted by an unexpected exception: OwnInterruption: own"),
    ],
    ids=["KeyboardInterrupt", "SystemExit", "OwnInterruption"],
)
def test_what_is_no_exception_is_a_crash_and_never_retried(
    side: Side, client: SyncPrefectClient, tmp_path: Path, error: BaseException, message: str
) -> None:
    """Also on a host. What would end or interrupt this process is raised here as an error of ours; never as itself."""
    path = str(tmp_path / "attempts")
    ours = side.gangs and not isinstance(error, OwnInterruption)

    def crashes() -> None:
        note(path, "x")
        raise error

    task = side.task(crashes, retries=2)

    @side.flow
    def asks() -> None:
        with pytest.raises(HostProcessError if ours else type(error)) as caught:
            task.submit().result()
        if ours:
            assert "slice 0 host 0" in str(caught.value)
            assert all(str(one) in str(caught.value) for one in error.args)
        else:
            assert caught.value.args == error.args

    flow_run_id, state = run_and_state(asks)
    assert state.is_completed()
    (run,) = task_runs(client, flow_run_id)
    assert (run.state.type.value, run.state.name) == ("CRASHED", "Crashed")
    assert run.state.message is not None
    if ours:
        assert run.state.message.startswith("Execution was interrupted by an unexpected exception: GangCrash: slice 0")
    else:
        assert run.state.message == message
    assert len(noted(tmp_path / "attempts")) == run.run_count == 1


@pytest.mark.parametrize("is_async", [False, True])
def test_retries(side: Side, client: SyncPrefectClient, tmp_path: Path, is_async: bool) -> None:
    """As many as asked for; the run count shows them; the last error is raised when they are used up."""
    good, bad = tmp_path / "good", tmp_path / "bad"

    def third_time(path: str, succeed: bool) -> int:
        note(path, "x")
        count = len(noted(Path(path)))
        if count < 3 or not succeed:
            raise OwnError(count)
        return count

    async def third_time_async(path: str, succeed: bool) -> int:
        return third_time(path, succeed)

    task = side.task(third_time_async if is_async else third_time, retries=2)

    @side.flow
    def retries() -> Any:
        result = task.submit(str(good), True).result()
        with pytest.raises(OwnError, match="code 3"):
            task.submit(str(bad), False).result()
        return result

    flow_run_id, state = run_and_state(retries)
    assert state.result() == 3
    runs = task_runs(client, flow_run_id, 2)
    assert [run.run_count for run in runs] == [3, 3]
    assert {run.state.name for run in runs} == {"Completed", "Failed"}
    assert {run.empirical_policy.retries for run in runs} == {2}


@by_runner
def test_the_retry_condition_decides(side: Side, tmp_path: Path) -> None:
    """Asked after each failure; no ends it."""
    path = str(tmp_path / "attempts")

    def fails() -> None:
        note(path, "x")
        raise OwnError(len(noted(Path(path))))

    def until_second(task: Any, run: Any, state: Any) -> bool:
        error = state.result(raise_on_failure=False)
        return bool(error.code < 2)

    task = side.task(fails, retries=5, retry_condition_fn=until_second)
    flow = side.flow(lambda: task.submit().result(), name="conditional")
    with pytest.raises(OwnError, match="code 2"):
        flow()
    assert len(noted(tmp_path / "attempts")) == 2


@by_runner
def test_a_returned_state_is_the_runs_state(side: Side, client: SyncPrefectClient) -> None:
    """Name, type, message and data. The function has to import Prefect on the host for it."""

    def returns(fail: bool) -> Any:
        from prefect.states import Completed, Failed

        return Failed(message="as you wish") if fail else Completed(name="Skipped", data=5)

    task = side.task(returns)

    @side.flow
    def asks() -> Any:
        bad, good = task.submit(True), task.submit(False)
        bad.wait()
        assert (bad.state.name, bad.state.message) == ("Failed", "as you wish")
        return good.result(), good.state.name

    flow_run_id, state = run_and_state(asks)
    assert state.result() == (5, "Skipped")
    assert {run.state.name for run in task_runs(client, flow_run_id, 2)} == {"Failed", "Skipped"}


def test_names_and_tags(side: Side, client: SyncPrefectClient) -> None:
    """task_run_name with parameters, tags of the task, of the context, and of both."""
    task = side.task(lambda n: n, name="named", task_run_name="number-{n}", tags=["own"])

    @side.flow
    def tagged() -> None:
        with tags("outer", "own"):
            task.submit(1).wait()
        task.map([2]).wait()

    flow_run_id, _ = run_and_state(tagged)
    runs = {run.name: run for run in task_runs(client, flow_run_id, 2)}
    assert set(runs) == {"number-1", "number-2"}
    assert sorted(runs["number-1"].tags) == ["outer", "own"]
    assert runs["number-2"].tags == ["own"]


def test_persisted_results_and_cache_hits(side: Side, tmp_path: Path) -> None:
    """The second flow run with the same input gets the first one's result and runs nothing; refresh_cache runs."""
    path = str(tmp_path / "runs")

    def counted(path: str, x: int) -> int:
        note(path, x)
        return x + 1

    task = side.task(counted, cache_policy=INPUTS, persist_result=True)
    refreshed = task.with_options(refresh_cache=True)

    @side.flow
    def twice(x: int, again: bool) -> Any:
        future = (refreshed if again else task).submit(path, x)
        return future.result(), future.state.name

    assert twice(1, False) == (2, "Completed")
    assert twice(1, False) == (2, "Cached")
    assert twice(2, False) == (3, "Completed")
    assert twice(1, True) == (2, "Completed")
    assert noted(tmp_path / "runs") == ["1", "2", "1"]


@by_runner
def test_own_cache_keys_are_kept(side: Side, tmp_path: Path) -> None:
    """cache_key_fn sees the context and the parameters; None is no key."""
    path = str(tmp_path / "runs")

    def counted(path: str, x: int) -> int:
        note(path, x)
        return x

    unique = uuid.uuid4()

    def key(context: Any, parameters: dict[str, Any]) -> str | None:
        assert context.task_run.id
        return None if parameters["x"] == 0 else f"{side.name}-{unique}-{parameters['x'] % 2}"

    task = side.task(counted, cache_key_fn=key, persist_result=True)

    @side.flow
    def calls() -> Any:
        return [task.submit(path, x).result() for x in (1, 3, 0, 0)]

    assert calls() == [1, 1, 0, 0]
    assert noted(tmp_path / "runs") == ["1", "0", "0"]


@by_runner
def test_hooks(side: Side) -> None:
    """In this process, with the task run and its state."""
    heard: list[tuple[str, str]] = []

    def hear(task: Any, run: Any, state: Any) -> None:
        heard.append((task.name, state.name))

    def maybe(fail: bool) -> None:
        if fail:
            raise OwnError(1)

    task = side.task(maybe, name="heard", on_running=[hear], on_completion=[hear], on_failure=[hear])

    @side.flow
    def both() -> None:
        task.submit(False).wait()
        task.submit(True).wait()

    both(return_state=True)
    assert heard == [("heard", name) for name in ("Running", "Completed", "Running", "Failed")]


def test_timeouts_end_the_run(side: Side, client: SyncPrefectClient) -> None:
    """TimedOut, a TimeoutError, and the next run works. An async body: threads cannot stop a blocking one."""

    async def slow(seconds: float) -> float:
        await asyncio.sleep(seconds)
        return seconds

    task = side.task(slow, timeout_seconds=1)

    @side.flow
    async def late() -> Any:
        late_one = task.submit(60)
        late_one.wait()
        assert (late_one.state.name, late_one.state.type.value) == ("TimedOut", "FAILED")
        with pytest.raises(TimeoutError):
            late_one.result()
        return task.submit(0).result()

    flow_run_id, state = run_and_state_async(late)
    assert asyncio.run(state.aresult()) == 0
    run = next(run for run in task_runs(client, flow_run_id, 2) if run.state.name == "TimedOut")
    assert run.state.message == "Task run exceeded timeout of 1.0 second(s)"


def run_and_state_async(body: Any) -> Any:
    state = asyncio.run(body(return_state=True))
    return state.state_details.flow_run_id, state


def test_rollback(side: Side) -> None:
    """When a later task of the transaction fails."""
    heard: list[str] = []
    task = side.task(lambda: 1)
    task.on_rollback(lambda txn: heard.append(txn.get("why")))

    @prefect.task
    def fails() -> None:
        raise OwnError(1)

    @side.flow
    def pipeline() -> None:
        with transaction() as txn:
            txn.set("why", "later")
            task()
            fails()

    with pytest.raises(OwnError):
        pipeline()
    assert heard == ["later"]
