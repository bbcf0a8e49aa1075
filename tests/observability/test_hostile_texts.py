"""Texts that JSON, SQLite or PostgreSQL refuse: nothing of a run is lost by them."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from typing import Any
from uuid import UUID, uuid4

import pytest
from prefect import flow, get_run_logger
from prefect import task as plain_task
from prefect.client.orchestration import SyncPrefectClient
from prefect.context import TaskRunContext

from prefect_tpu import TpuMultisliceRunner, runtime, task
from prefect_tpu.core.kinds import Kind
from prefect_tpu.observability import artifacts, events, states
from tests.core.test_ledger import report
from tests.prefect_runs import artifact_rows, artifacts_of, log_messages, task_runs
from tests.waiting import eventually

NAME = "'/data/\udcff\udc80.txt'"
SAID = r"'/data/\udcff\udc80.txt'"


def events_of(client: SyncPrefectClient, task_run_id: UUID, name: str) -> list[dict[str, Any]]:
    """Events of this name that have to do with the task run."""
    wanted = {"filter": {"event": {"name": [name]}, "related": {"id": [f"prefect.task-run.{task_run_id}"]}}}
    return list(client.request("POST", "/events/filter", json=wanted).json()["events"])


def test_an_error_about_a_name_that_is_no_text(
    one_slice: TpuMultisliceRunner[Any], client: SyncPrefectClient, capfd: pytest.CaptureFixture[str]
) -> None:
    """As `os.listdir` gives it: log line, verdict, state, artifacts and event are there; the error is as raised."""

    @task(task_runner=one_slice, name="reads \udcff", task_run_name="read {name}")
    def reads(name: str) -> None:
        if runtime.current().process_id == 0:
            runtime.report(step=1, **{"loss\udcff": 1.0})
            logging.getLogger("mine").warning("found %s, \0 and all", name)
            raise ValueError(f"cannot open {name}")

    @flow
    def whole() -> bool:
        with pytest.raises(ValueError, match="cannot open") as caught:
            reads(NAME)
        with pytest.raises(ValueError, match="cannot open"):
            reads.submit("\udcff").result()
        get_run_logger().info("the flow goes on without %s", NAME)
        return str(caught.value) == f"cannot open {NAME}"

    state = whole(return_state=True)
    assert state.result() is True
    runs = {one.name: one for one in task_runs(client, state.state_details.flow_run_id, 2)}
    assert runs[r"read \udcff"].state.message.endswith(r"cannot open \udcff")
    run = runs[f"read {SAID}"]
    assert run.state.is_failed()
    assert run.state.message == rf"Task run encountered an exception ValueError: cannot open {SAID}"
    cause = rf"slice 0 host 0 raised ValueError: cannot open {SAID}"
    messages = log_messages(client, run.id, f"found {SAID}", "USER_ERROR", "Traceback")
    assert (logging.WARNING, rf"[slice 0 host 0] found {SAID}, \x00 and all") in messages
    assert any(f"attempt 1 USER_ERROR: {cause}" in text for _, text in messages)
    assert any(rf"ValueError: cannot open {SAID}" in text.splitlines()[-1] for _, text in messages)
    (row,) = artifact_rows(client, run.id)
    assert row["cause"] == cause.replace("\\", "\\\\")  # Prefect's page takes it for markdown
    (summary,) = artifacts_of(client, run.id, "markdown")
    assert "cannot open '/data/\\\\udcff\\\\udc80.txt'" in summary.data
    assert r"reads \\udcff" in summary.description
    (event,) = eventually(lambda: events_of(client, run.id, "prefect-tpu.attempt.finished"), "the event")
    assert event["payload"]["cause"] == cause
    assert "Logging error" not in capfd.readouterr().err


def test_what_the_driver_says_itself(client: SyncPrefectClient) -> None:
    """A state in the history, artifacts: with whatever names and causes they are given."""

    @plain_task
    def tells() -> None:
        context = TaskRunContext.get()
        assert context is not None
        states.emit(context.task_run, "Preempted", f"no {NAME}\0")
        shown = artifacts.RunArtifacts(f"{NAME}\0", context.task_run.id, context.task_run.flow_run_id)
        shown.progress(1.0, f"waits for {NAME}\0")

    @flow
    def whole() -> None:
        tells()

    (run,) = task_runs(client, whole(return_state=True).state_details.flow_run_id)
    assert artifacts.flush(10)
    (progress,) = artifacts_of(client, run.id, "progress")
    assert r"waits for '/data/\\udcff\\udc80.txt'\\x00" in progress.description

    def history() -> Any:
        found = client.request("GET", "/task_run_states/", params={"task_run_id": str(run.id)}).json()
        return [one["message"] for one in found if one["name"] == "Preempted"]

    assert eventually(history, "the state") == [rf"no {SAID}\x00"]
    assert json.dumps(progress.description)


def test_an_event_is_never_too_large(client: SyncPrefectClient) -> None:
    """Whatever the names and causes are: automations hear of it."""
    long = "l" * 10**6
    lost = report(1, Kind.PREEMPTED, began=0, names=tuple(f"{long}-{number}" for number in range(60)), lost=3)
    lost = replace(lost, verdict=replace(lost.verdict, cause=long, resolution=long), budgets=long)
    task_run_id = uuid4()
    events.GangEvents(task_run_id, long, None).finished(lost)
    (found,) = eventually(lambda: events_of(client, task_run_id, "prefect-tpu.attempt.finished"), "the event")
    assert "more characters]" in found["payload"]["cause"]
    assert len(json.dumps(found)) < 200_000
