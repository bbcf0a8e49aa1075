"""What a function has left to do when it has ended."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

import pytest
from prefect import flow
from prefect.client.orchestration import SyncPrefectClient

from prefect_tpu import ConfigurationError, HostProcessError, LocalFleet, TpuMultisliceRunner, task
from tests.prefect_runs import log_messages, task_runs
from tests.waiting import eventually


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


@pytest.mark.parametrize("returned", [False, True])
def test_a_host_that_leaves_by_itself_ends_no_driver(
    one_slice: TpuMultisliceRunner[Any], client: SyncPrefectClient, returned: bool
) -> None:
    """Called, as a state, submitted, awaited: which host left and how; Crashed where Prefect says so."""

    @task(task_runner=one_slice, retries=1)
    def leaves(how: str) -> int:
        import os
        import sys
        import time

        from prefect_tpu import runtime

        if runtime.current().process_id == 0:
            time.sleep(600)
        match how:
            case "exit":
                sys.exit(4)
            case "os exit":
                os._exit(0)
            case "generator exit":
                raise GeneratorExit
        return runtime.current().process_id

    leaves_async: Any = task(task_runner=one_slice)(_leaves_async)
    by = {"exit": leaves, "generator exit": leaves, "os exit": leaves.with_options(retries=0)}

    @flow
    def goes_on() -> Any:
        found = {}
        for how, one in by.items():
            if returned:
                state = one(how, return_state=True)
                error, name = state.result(raise_on_failure=False), state.name
            else:
                future = one.submit(how)
                with pytest.raises(HostProcessError) as caught:
                    future.result()
                error, name = caught.value, future.state.name
            found[how] = type(error), name, str(error).partition("\n")[0]
        return found

    @flow
    async def goes_on_async() -> Any:
        if returned:
            return type((await leaves_async(return_state=True)).data)
        with pytest.raises(HostProcessError) as caught:
            await leaves_async()
        return type(caught.value)

    found = goes_on()
    assert {how: one[:2] for how, one in found.items()} == {
        "exit": (HostProcessError, "Crashed"),
        "generator exit": (HostProcessError, "Crashed"),
        "os exit": (HostProcessError, "Failed"),
    }
    assert "slice 0 host 1 left by sys.exit(4) before its function had returned" in found["exit"][2]
    assert "slice 0 host 1 raised GeneratorExit" in found["generator exit"][2]
    assert "slice 0 host 1 exited with code 0 before its function returned" in found["os exit"][2]
    assert asyncio.run(goes_on_async()) is HostProcessError


async def _leaves_async() -> None:
    raise asyncio.CancelledError


@pytest.mark.parametrize("how", ["timed out", "cancelled"])
def test_what_finally_says_is_in_the_logs(
    fleet: LocalFleet, client: SyncPrefectClient, tmp_path: Path, how: str
) -> None:
    """Of every host, at its own level, whoever is done first: JAX's coordinator waits for the others."""

    @task(task_runner=TpuMultisliceRunner(pool=fleet, num_slices=1), timeout_seconds=2 if how == "timed out" else None)
    def works(folder: str) -> None:
        import logging
        import pathlib
        import time

        from prefect_tpu import runtime

        number = runtime.current().process_id
        try:
            pathlib.Path(folder, f"works-{number}").touch()
            time.sleep(600)
        finally:
            time.sleep(number * 1.5)
            print(f"host {number} has cleaned up")
            logging.getLogger("mine").warning("host %d has been disturbed", number)

    @flow
    def ends() -> None:
        future = works.submit(str(tmp_path))
        if how == "timed out":
            future.result()
        eventually(lambda: len(list(tmp_path.iterdir())) == 2, "both hosts work")
        raise ValueError("as asked")

    state = ends(return_state=True)
    assert state.is_failed()
    assert state.state_details.flow_run_id is not None
    (run,) = task_runs(client, state.state_details.flow_run_id)
    assert run.state.name == ("TimedOut" if how == "timed out" else "Crashed")
    lines = log_messages(client, run.id, "host 1 has been disturbed")
    for number in range(2):
        label = f"[slice 0 host {number}] host {number} has"
        assert (logging.INFO, f"{label} cleaned up") in lines
        assert (logging.WARNING, f"{label} been disturbed") in lines


def test_a_program_that_no_gang_can_run_is_not_retried(fleet: LocalFleet, client: SyncPrefectClient) -> None:
    """It starts JAX's runtime for hosts of its own choice; the message has the way out, the cause the line."""

    @task(task_runner=TpuMultisliceRunner(pool=fleet, num_slices=1), retries=2)
    def script() -> None:
        import jax

        jax.distributed.initialize("10.0.0.1:1234", num_processes=8, process_id=0)

    @flow
    def runs() -> Any:
        with pytest.raises(ConfigurationError, match=r"Take the call out.*jax_distributed=False") as caught:
            script()
        return str(caught.value.__cause__)

    state = runs(return_state=True)
    assert 'jax.distributed.initialize("10.0.0.1:1234"' in state.result()
    assert state.state_details.flow_run_id is not None
    (run,) = task_runs(client, state.state_details.flow_run_id)
    assert (run.state.name, run.run_count) == ("Failed", 1)
