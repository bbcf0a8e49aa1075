"""A slice is taken away in mid-run: the run goes on, and the task's own retries are not charged."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from prefect import flow
from prefect.client.orchestration import SyncPrefectClient

from prefect_tpu import LocalFleet, RetriesExhaustedError, TpuMultisliceRunner, runtime, task
from tests.prefect_runs import artifact_rows, run_and_state, task_runs
from tests.waiting import eventually

Runner = TpuMultisliceRunner[Any]


@pytest.fixture
def whole_again(fleet: LocalFleet) -> Iterator[LocalFleet]:
    """The fleet, with every slice back afterwards."""
    yield fleet
    for name in ("slice-0", "slice-1"):
        fleet.restore(name)


def preempt_when_running(marker: Path, fleet: LocalFleet) -> threading.Thread:
    """Preempt the slice whose name the gang writes into `marker`."""

    def work() -> None:
        fleet.preempt(eventually(lambda: marker.exists() and marker.read_text(), "the gang runs", 60))

    thread = threading.Thread(target=work)
    thread.start()
    return thread


def test_a_preempted_slice_is_replaced_and_not_charged(
    whole_again: LocalFleet, client: SyncPrefectClient, tmp_path: Path
) -> None:
    """retries=0, and still Completed on another slice with run count 2; checkpoint_dir is the same."""
    runner: Runner = TpuMultisliceRunner(pool=whole_again, num_slices=1, lease_timeout_seconds=60)

    @task(task_runner=runner)
    def goes_on(folder: str) -> tuple[int, str, list[str]]:
        import pathlib
        import time

        ctx = runtime.current()
        assert ctx.checkpoint_dir is not None
        seen = pathlib.Path(folder, "seen")
        with seen.open("a") as file:
            file.write(f"{ctx.checkpoint_dir}\n")
        if ctx.attempt == 1:
            pathlib.Path(folder, "running").write_text(ctx.slice_name)
            time.sleep(3600)
        return ctx.attempt, ctx.slice_name, seen.read_text().split()

    @flow
    def survives() -> Any:
        thread = preempt_when_running(tmp_path / "running", whole_again)
        try:
            return goes_on(str(tmp_path))
        finally:
            thread.join()

    flow_run_id, state = run_and_state(survives)
    results = state.result()
    assert [attempt for attempt, _, _ in results] == [2, 2]
    first, second = (tmp_path / "running").read_text(), results[0][1]
    assert {first, second} == {"slice-0", "slice-1"}
    assert len({path for _, _, paths in results for path in paths}) == 1
    (run,) = task_runs(client, flow_run_id)
    assert (run.run_count, run.empirical_policy.retries) == (2, 0)
    rows = artifact_rows(client, run.id)
    assert [(row["name"], row["outcome"]) for row in rows] == [(first, "PREEMPTED"), (second, "SUCCEEDED")]
    assert f"slice 0 ({first}) preempted" in rows[0]["cause"]


def test_the_preemption_budget_ends_the_run(whole_again: LocalFleet, tmp_path: Path) -> None:
    """max_preemptions=1: RetriesExhaustedError with the ledger, although retries are left; which has a checkpoint."""
    runner: Runner = TpuMultisliceRunner(pool=whole_again, jax_distributed=False, max_preemptions=1)

    @task(task_runner=runner, retries=3)
    def never(folder: str) -> None:
        import pathlib
        import time

        ctx = runtime.current()
        assert ctx.checkpoint_dir is not None
        if ctx.process_id == 0:
            for name in ("3.orbax-checkpoint-tmp", "2"):
                pathlib.Path(ctx.checkpoint_dir, name).mkdir(parents=True, exist_ok=True)
        pathlib.Path(folder, f"running-{ctx.attempt}").write_text(ctx.slice_name)
        time.sleep(3600)

    threads = [preempt_when_running(tmp_path / f"running-{attempt}", whole_again) for attempt in (1, 2)]
    with pytest.raises(RetriesExhaustedError, match="max_preemptions=1") as caught:
        never(str(tmp_path))
    for thread in threads:
        thread.join()
    assert [one.found_checkpoint for one in caught.value.reports] == [False, True]
    assert "preempted" in str(caught.value.__cause__)


def test_ray_shut_down_by_somebody_else_between_attempts(
    whole_again: LocalFleet, caplog: pytest.LogCaptureFixture
) -> None:
    """It is said, no other cluster is started unasked, and the next attempt has a connection and slices of its own."""
    runner: Runner = TpuMultisliceRunner(pool=whole_again, jax_distributed=False)

    def shut_down(*_: Any) -> bool:
        ray.shutdown()
        return True

    @task(task_runner=runner, retries=1, retry_condition_fn=shut_down)
    def second_time() -> int:
        if runtime.current().attempt == 1:
            raise ValueError("once")
        return runtime.current().attempt

    assert second_time() == [2, 2]
    assert "closed or replaced outside prefect_tpu" in caplog.text


def test_a_retried_flow_run_goes_on_from_its_checkpoints(one_slice: Runner) -> None:
    """checkpoint_dir is the same for the same call of the task in a retried flow run, and another for each call."""
    seen: list[list[str]] = []

    @task(task_runner=one_slice, name="train it")
    def train(name: str) -> str:
        from prefect_tpu import runtime as here

        return f"{name} {here.current().checkpoint_dir}"

    @flow(retries=1)
    def training() -> None:
        seen.append([train("a")[0], train("b")[0], train.submit("c").result()[0]])
        if len(seen) == 1:
            raise ValueError("once")

    training()
    first, again = seen
    assert first == again
    directories = {one.partition(" ")[2] for one in first}
    assert len(directories) == 3
    assert all("None" not in one for one in directories)
