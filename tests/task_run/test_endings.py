"""What a function has left to do when it has ended."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from prefect import flow
from prefect.client.orchestration import SyncPrefectClient

from prefect_tpu import TpuMultisliceRunner, task
from tests.prefect_runs import log_messages, task_runs


def test_what_is_cut_is_told_with_thread_and_host(
    one_slice: TpuMultisliceRunner[Any], client: SyncPrefectClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Completed, with its result; what was saved in time is whole, what was not has a name in the run's logs."""
    monkeypatch.setenv("PREFECT_INTEGRATIONS_TPU_EXIT_TIMEOUT_SECONDS", "2")

    @task(task_runner=one_slice)
    def saves(folder: str) -> int:
        import pathlib
        import threading
        import time

        from prefect_tpu import runtime

        number = runtime.current().process_id

        def save() -> None:
            time.sleep(600 if number else 0.5)
            pathlib.Path(folder, f"saved-{number}").write_text("whole")

        threading.Thread(target=save, name="saver").start()
        return number

    @flow
    def trains() -> list[int]:
        return saves(str(tmp_path))

    state = trains(return_state=True)
    assert state.result() == [0, 1]
    assert (tmp_path / "saved-0").read_text() == "whole"
    assert not (tmp_path / "saved-1").exists()
    assert state.state_details.flow_run_id is not None
    (run,) = task_runs(client, state.state_details.flow_run_id)
    lines = log_messages(client, run.id, "its end was cut")
    (warning,) = [text for level, text in lines if level == logging.WARNING and "its end was cut" in text]
    for part in ("[slice 0 host 1]", "exit_timeout_seconds=2 is over", "thread 'saver' at ", "in save"):
        assert part in warning


def test_a_function_that_raises_lets_its_saves_end(
    one_slice: TpuMultisliceRunner[Any], client: SyncPrefectClient, tmp_path: Path
) -> None:
    """As in plain Python: the exception is the function's own, its files are whole. Another host is ended at once."""

    @task(task_runner=one_slice)
    def saves(folder: str) -> None:
        import pathlib
        import threading
        import time

        from prefect_tpu import runtime

        number = runtime.current().process_id

        def save() -> None:
            time.sleep(1.5)
            pathlib.Path(folder, f"saved-{number}").write_text("whole")

        threading.Thread(target=save, name="saver").start()
        if number:
            time.sleep(600)
        raise ValueError("as asked")

    with pytest.raises(ValueError, match="as asked"):
        saves(str(tmp_path))
    assert [one.name for one in tmp_path.iterdir()] == ["saved-0"]
