"""What Prefect shows of a gang: states, run count, logs, artifacts, caching, hooks."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from prefect import flow
from prefect.cache_policies import INPUTS
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey
from prefect.states import State

from prefect_tpu import LocalFleet, TpuMultisliceRunner, runtime, task
from tests.prefect_runs import artifact_rows, log_messages, run_and_state, task_runs
from tests.waiting import eventually

Runner = TpuMultisliceRunner[Any]


def test_a_completed_gang(two_slices: Runner, client: SyncPrefectClient) -> None:
    """Completed, run count 1, a row for both slices, and every host's lines with its prefix and level."""

    @task(task_runner=two_slices, task_run_name="gang-of-{n}", tags=["tpu"])
    def speak(n: int) -> int:
        print("printed on a host")
        print("to stderr", file=sys.stderr)
        logging.getLogger("mine").warning("warned by logging")
        return n + runtime.current().process_id

    @flow
    def whole() -> Any:
        return speak(40)

    flow_run_id, state = run_and_state(whole)
    assert state.is_completed()
    (run,) = task_runs(client, flow_run_id)
    assert run.state.type.value == "COMPLETED"
    assert run.run_count == 1
    assert run.name == "gang-of-40"
    assert run.tags == ["tpu"]
    rows = artifact_rows(client, run.id)
    assert [(row["slice"], row["name"], row["hosts"], row["outcome"]) for row in rows] == [
        (0, "slice-0", 2, "SUCCEEDED"),
        (1, "slice-1", 2, "SUCCEEDED"),
    ]
    assert [row["result"] for row in rows] == ["40", "42"]
    assert all(row["launch seconds"] > 0 for row in rows)
    prefixes = [f"[slice {slice_index} host {host_index}]" for slice_index in (0, 1) for host_index in (0, 1)]
    messages = log_messages(client, run.id, *(f"{one} warned by logging" for one in prefixes))
    for prefix in prefixes:
        assert (logging.INFO, f"{prefix} printed on a host") in messages
        assert (logging.INFO, f"{prefix} to stderr") in messages
        assert (logging.WARNING, f"{prefix} warned by logging") in messages


def test_every_task_run_outside_a_flow_has_its_table(one_slice: Runner, client: SyncPrefectClient) -> None:
    """The table is written after the task run, whose own client is closed by then."""

    @task(task_runner=one_slice)
    def lonely() -> int:
        return 1

    for _ in range(3):
        lonely()

    def tables() -> list[Any]:
        found = client.read_artifacts(artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=["tpu-slices-lonely"])))
        return found if len(found) == 3 else []

    assert len({one.task_run_id for one in eventually(tables, "three tables")}) == 3


class OwnError(Exception):
    """An exception of the flow's own file, which hosts do not have."""

    def __init__(self, code: int, *, hint: str) -> None:
        super().__init__(f"code {code}")
        self.code, self.hint = code, hint

    def __reduce__(self) -> tuple[Any, ...]:
        return _own_error, (self.code, self.hint)


def _own_error(code: int, hint: str) -> OwnError:
    return OwnError(code, hint=hint)


def test_user_errors_use_the_tasks_retries(one_slice: Runner, client: SyncPrefectClient) -> None:
    """The function raises once: retried by Prefect, visible as run count 2; both attempts in the table."""

    @task(task_runner=one_slice, retries=2)
    def flaky() -> int:
        if runtime.current().attempt == 1:
            raise OwnError(7, hint="again")
        return runtime.current().attempt

    @flow
    def retried() -> Any:
        return flaky()

    flow_run_id, state = run_and_state(retried)
    assert state.is_completed()
    (run,) = task_runs(client, flow_run_id)
    assert run.run_count == 2
    assert run.empirical_policy.retries == 2
    rows = artifact_rows(client, run.id)
    assert [(row["attempt"], row["outcome"]) for row in rows] == [(1, "USER_ERROR"), (2, "SUCCEEDED")]
    assert "OwnError" in rows[0]["cause"]


def test_user_errors_arrive_as_themselves(one_slice: Runner) -> None:
    """The class, its attributes, and the host's traceback as cause; no retry that nobody asked for."""

    @task(task_runner=one_slice)
    def fails() -> None:
        raise OwnError(3, hint="look here")

    with pytest.raises(OwnError) as caught:
        fails()
    assert (caught.value.code, caught.value.hint) == (3, "look here")
    assert "raise OwnError(3" in str(caught.value.__cause__)


def test_retry_condition_and_delays_keep_their_meaning(one_slice: Runner, client: SyncPrefectClient) -> None:
    """retry_condition_fn that says no ends the run; a delay list is indexed by failures."""
    asked: list[str] = []

    def only_key_errors(task_: Any, run: Any, state: State[Any]) -> bool:
        error = state.result(raise_on_failure=False)
        asked.append(type(error).__name__)
        return isinstance(error, KeyError)

    @task(task_runner=one_slice, retries=5, retry_delay_seconds=[0.1, 0.2], retry_condition_fn=only_key_errors)
    def fails() -> None:
        raise KeyError("a") if runtime.current().attempt < 3 else ValueError("no more")

    @flow
    def conditional() -> None:
        fails()

    flow_run_id, state = run_and_state(conditional)
    assert state.is_failed()
    assert asked == ["KeyError", "KeyError", "ValueError"]
    (run,) = task_runs(client, flow_run_id)
    assert run.run_count == 3


def test_a_cache_hit_reserves_nothing(fleet: LocalFleet, client: SyncPrefectClient, tmp_path: Path) -> None:
    """While another gang holds every slice, a cached call returns at once; another shape is no hit."""
    both: Runner = TpuMultisliceRunner(pool=fleet, num_slices=2, jax_distributed=False)
    one: Runner = TpuMultisliceRunner(pool=fleet, num_slices=1, jax_distributed=False)
    marker = tmp_path / "holding"

    @task(task_runner=one, cache_policy=INPUTS, result_storage_key=None, persist_result=True)
    def cached(x: str) -> str:
        return x.upper()

    @task(task_runner=both)
    def hold(path: str) -> None:
        import pathlib
        import time

        pathlib.Path(path).touch()
        while pathlib.Path(path).exists():
            time.sleep(0.05)

    @flow
    def hits() -> tuple[Any, Any, Any]:
        value = str(tmp_path)
        first = cached(value)
        holding = hold.submit(str(marker))
        eventually(marker.exists, "the other gang holds the slices")
        try:
            second = cached(value, return_state=True)  # type: ignore[call-overload]
            shaped = nested.submit(value)
            waits = "waiting for 1 free v4 2x2x2 slices"
            assert log_messages(client, shaped.task_run_id, waits), "another shape is not served"
        finally:
            marker.unlink()
            holding.wait()
        assert second.name == "Cached"
        return first, second.result(), shaped.result()

    per_slice: Runner = TpuMultisliceRunner(pool=fleet, num_slices=1, jax_distributed=False, flatten=False)
    nested: Any = cached.with_options(task_runner=per_slice)  # type: ignore[call-arg]
    first, second, shaped = hits()
    assert first == second == [str(tmp_path).upper()] * 2
    assert shaped == [first]


def test_gangs_wait_in_order_and_say_so(fleet: LocalFleet, client: SyncPrefectClient, tmp_path: Path) -> None:
    """Three gangs of two slices on two slices run one after the other, first come first served."""

    def waits() -> bool:
        of_progress = {"artifacts": {"type": {"any_": ["progress"]}, "key": {"any_": ["tpu-progress-turn"]}}}
        found = client.request("POST", "/artifacts/filter", json=of_progress).json()
        return any("attempt 1: waiting for 2 free v4 2x2x2 slices" in one["description"] for one in found)

    runner: Runner = TpuMultisliceRunner(pool=fleet, num_slices=2, jax_distributed=False)

    @task(task_runner=runner)
    def turn(number: int, folder: str) -> None:
        import pathlib
        import time

        if runtime.current().process_id == 0:
            with pathlib.Path(folder, "order").open("a") as file:
                file.write(f"{number} ")
            time.sleep(1.5)

    @flow
    def three() -> None:
        futures = []
        for number in range(3):
            futures.append(turn.submit(number, str(tmp_path)))
            time.sleep(0.2)
        eventually(waits, "its progress says that one waits")
        for future in futures:
            future.result()

    flow_run_id, state = run_and_state(three)
    assert state.is_completed()
    assert (tmp_path / "order").read_text().split() == ["0", "1", "2"]
    runs = sorted(task_runs(client, flow_run_id, 3), key=lambda run: run.expected_start_time)
    log_messages(client, runs[2].id, "waiting for 2 free v4 2x2x2 slices")


def test_hooks_and_states_are_prefects(one_slice: Runner) -> None:
    """on_running, on_failure, on_completion see the task run; wait_for a failed task is not run."""
    heard: list[str] = []

    def hear(task_: Any, run: Any, state: State[Any]) -> None:
        heard.append(f"{task_.name} {state.type.value}")

    @task(task_runner=one_slice, on_running=[hear], on_failure=[hear], on_completion=[hear])
    def works(fail: bool) -> None:
        if fail:
            raise ValueError("asked to")

    @flow
    def both() -> Any:
        failed = works.submit(True)
        after = works.with_options(name="after").submit(False, wait_for=[failed])
        works.with_options(name="alone").submit(False).wait()
        after.wait()
        return after.state.name

    state = both(return_state=True)
    assert "works FAILED" in heard
    assert "alone COMPLETED" in heard
    assert "after RUNNING" not in heard
    assert state.is_failed() or state.result() == "NotReady"


def test_unawaited_futures_are_joined(one_slice: Runner, tmp_path: Path) -> None:
    """A flow that returns without waiting still has its gangs finished when the call returns."""

    @task(task_runner=one_slice)
    def late(path: str) -> None:
        import pathlib
        import time

        time.sleep(0.5)
        pathlib.Path(path).touch()

    @flow
    def careless(path: str) -> int:
        late.submit(path)
        return 1

    @flow(task_runner=one_slice)
    def careless_runner(path: str) -> int:
        late.submit(path)
        return 1

    assert careless(str(tmp_path / "a")) == careless_runner(str(tmp_path / "b")) == 1
    assert (tmp_path / "a").exists()
    assert (tmp_path / "b").exists()


def test_a_failed_flow_cancels_its_gangs(one_slice: Runner) -> None:
    """A flow that raises does not leave a gang running for an hour."""

    @task(task_runner=one_slice)
    def long() -> None:
        import time

        time.sleep(3600)

    @flow
    def fails() -> None:
        long.submit()
        time.sleep(1)
        raise ValueError("the flow's own")

    @task(task_runner=one_slice)
    def next_one() -> int:
        return 1

    began = threading.Timer(90, lambda: None)
    with pytest.raises(ValueError, match="the flow's own"):
        fails()
    assert next_one() == [1, 1]
    began.cancel()


def test_timeout_counts_from_the_launch(one_slice: Runner, client: SyncPrefectClient) -> None:
    """timeout_seconds ends the attempt as TimedOut, grandchildren included, and the slice is free again."""

    @task(task_runner=one_slice, timeout_seconds=2)
    def hangs() -> None:
        import subprocess
        import time

        subprocess.Popen(["sleep", "987654"])
        time.sleep(3600)

    @flow
    def late() -> None:
        hangs()

    flow_run_id, state = run_and_state(late)
    assert state.is_failed()
    (run,) = task_runs(client, flow_run_id)
    assert run.state.name == "TimedOut"
    assert run.state.message == "Task run exceeded timeout of 2.0 second(s)"
    assert [row["outcome"] for row in artifact_rows(client, run.id)] == ["TIMED_OUT"]
    assert not _processes("987654")

    @task(task_runner=one_slice)
    def fine() -> int:
        return 1

    assert fine() == [1, 1]


def test_cancel_during_a_retry_delay_gives_the_slices_back(fleet: LocalFleet) -> None:
    """While Prefect sleeps before a retry nothing runs; a cancel then leaves nothing reserved."""
    runner: Runner = TpuMultisliceRunner(pool=fleet, num_slices=2, jax_distributed=False)

    @task(task_runner=runner, retries=1, retry_delay_seconds=6)
    def fails() -> None:
        raise ValueError("first")

    @task(task_runner=runner.duplicate())
    def next_one() -> int:
        return 1

    started = runner.duplicate().__enter__()
    future = started.submit(fails, {})
    from prefect_tpu.cluster import inventory

    shape = fleet.shape
    eventually(lambda: not inventory.free_slices(shape), "the slices are taken")
    time.sleep(2)
    assert not inventory.free_slices(shape)
    for task_run in list(started._task_runs):
        task_run.cancel()
    eventually(lambda: len(inventory.free_slices(shape)) == 2, "the slices are free", 3)
    started.__exit__(ValueError, None, None)
    assert isinstance(future.wrapped_future.exception(), asyncio.CancelledError)
    assert next_one() == [1] * 4


def _processes(text: str) -> list[str]:
    found = []
    for one in Path("/proc").glob("[0-9]*"):
        try:
            command = (one / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if text in command and "pytest" not in command:
            found.append(command)
    return found
