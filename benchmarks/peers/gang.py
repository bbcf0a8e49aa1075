"""prefect_tpu's own part: gangs up to the first collective, no-op gangs beside no-op threads, memory when idle.

Usage: gang.py CALLS NOOPS. Needs neither a Prefect server nor a Ray cluster: it starts both, before the clock.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from typing import Any
from uuid import UUID, uuid4

from cluster import FLEET, NUM_SLICES, PAUSE_SECONDS, connected_fleet
from collective import Marks, add_up, durations, first_marks, process_started, read_notes
from idle_memory import RUN_VARIABLE, agent_pids, idle_memory
from messages import Messages
from prefect import flow, task
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterTaskRunId
from prefect.client.schemas.objects import State
from prefect.context import FlowRunContext
from prefect.task_runners import ThreadPoolTaskRunner
from prefect.testing.utilities import prefect_test_harness

import prefect_tpu
from prefect_tpu import TpuMultisliceRunner, runtime
from prefect_tpu.observability import artifacts

SERVER_START_SECONDS = 90
ARTIFACT_WAIT_SECONDS = 10.0
SYSTEM = "prefect_tpu"


@prefect_tpu.task(task_runner=TpuMultisliceRunner(pool=FLEET, num_slices=NUM_SLICES))
def total(directory: str) -> None:
    """On every host; JAX has been initialised by the gang."""
    zygote = process_started(os.getppid())
    add_up(directory, runtime.current().process_id, {"zygote": zygote} | first_marks())


def noop() -> None:
    """Nothing at all."""


noop_gang = prefect_tpu.task(
    task_runner=TpuMultisliceRunner(pool=FLEET, num_slices=NUM_SLICES, jax_distributed=False), name="noop-gang"
)(noop)
noop_thread = task(name="noop-thread")(noop)


@flow
def measure(calls: int, noops: int) -> None:
    """All of it in one flow run, one after the other."""
    context = FlowRunContext.get()
    assert context is not None
    assert type(context.task_runner) is ThreadPoolTaskRunner  # a flow's own, if it is given none
    for number in range(calls):
        call_gang("warm" if number else "first")
        time.sleep(PAUSE_SECONDS)
    if noops:
        for runner in (noop_gang, noop_thread):
            runner.submit().result()  # so that both are warm
        for _ in range(noops):
            for system, runner in ((SYSTEM, noop_gang), ("thread_pool", noop_thread)):
                begin = time.perf_counter()
                runner.submit().result()
                messages.measured("noop", system, time.perf_counter() - begin)
    if calls:
        messages.memory(idle_memory(os.environ[RUN_VARIABLE]))


def call_gang(case: str) -> None:
    """One call, with where its time went."""
    with tempfile.TemporaryDirectory() as directory:
        begin = time.time()
        state: State[Any] = total(directory, return_state=True)
        end = time.time()
        state.result(raise_on_failure=True)
        notes = read_notes(directory)
    last = max(note["collective"] for note in notes)
    agents = max(process_started(pid) for pids in agent_pids().values() for pid in pids)
    before = marks_before(state, begin, max(note["function"] for note in notes)) | {"agent": agents}
    phases = durations(begin, [before | note for note in notes])
    messages.measured(case, SYSTEM, last - begin, phases | {"return": end - last})


def marks_before(state: State[Any], begin: float, entered: float) -> Marks:
    """What came before the hosts: from the table that the attempt has left in Prefect."""
    task_run_id = state.state_details.task_run_id
    assert task_run_id is not None
    [row, *_] = table_of(task_run_id)
    leased = entered - float(row["launch seconds"])
    return {"engine": max(begin, leased - float(row["lease seconds"])), "lease": leased}


def table_of(task_run_id: UUID) -> list[dict[str, Any]]:
    """Rows of the slice table of a task run."""
    artifacts.flush(ARTIFACT_WAIT_SECONDS)
    with get_client(sync_client=True) as client:
        wanted = ArtifactFilter(task_run_id=ArtifactFilterTaskRunId(any_=[task_run_id]))
        [found] = [one for one in client.read_artifacts(artifact_filter=wanted) if one.type == "table"]
    rows: list[dict[str, Any]] = json.loads(str(found.data))
    return rows


if __name__ == "__main__":
    messages = Messages()
    os.environ[RUN_VARIABLE] = uuid4().hex
    messages.say("starting a Prefect server")
    with prefect_test_harness(server_startup_timeout=SERVER_START_SECONDS), connected_fleet(messages):
        measure(int(sys.argv[1]), int(sys.argv[2]))
        artifacts.flush(ARTIFACT_WAIT_SECONDS)
