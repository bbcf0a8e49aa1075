"""From `create` to a trained model to `delete`: a flow, real Ray hosts, the official client, and every fault.

The service is the tests' own; what it makes ACTIVE boots as a host of a local fleet, by what its startup script says.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from prefect import flow
from prefect.client.orchestration import SyncPrefectClient, get_client

from flows.quickstart import PRELOAD, train_to
from prefect_tpu import LocalFleet, ProvisioningError, QueuedResourceFleet, TpuMultisliceRunner, runtime, task
from prefect_tpu.cluster.tpu import resolve_shape
from prefect_tpu.provision.owner import Owner
from tests.chaos.conftest import Story
from tests.prefect_runs import artifact_rows, log_messages, task_runs
from tests.processes import alive, assert_gone, descendants
from tests.provision.conftest import EAST, WEST, access
from tests.provision.queued_server import QueuedServer, queued_server
from tests.waiting import eventually

pytestmark = [pytest.mark.slow, pytest.mark.timeout(150)]

STEPS, CHECKPOINT_EVERY_STEPS, LOSE_AT = 20, 5, 12


@pytest.fixture(scope="module", autouse=True)
def prefect(prefect_server: None) -> None:
    """Prefect's own server, real."""


@pytest.fixture(scope="module")
def machines() -> Iterator[LocalFleet]:
    """Where TPU VMs boot: a Ray head without any slice, for single hosts of four chips."""
    with LocalFleet(slices=0, accelerator_type="v4", topology="2x2x1") as fleet:
        yield fleet


@pytest.fixture
def server(machines: LocalFleet) -> Iterator[QueuedServer]:
    """Nothing may be left of a test, in the service or in Ray."""
    with queued_server(machines, step_seconds=0.3) as running:
        yield running
        running.until(lambda: not running.states())
        running.machines.settle()
        assert machines.status()["slices"] == []


@pytest.fixture
def fleet(machines: LocalFleet, server: QueuedServer) -> Iterator[QueuedResourceFleet]:
    """Spot slices in two zones."""
    made = QueuedResourceFleet(
        "my-project", (EAST, WEST), machines.address, name="training", endpoint=server.endpoint, **access(),
        labels={"team": "vision"}, poll_seconds=0.2, idle_release_seconds=5, zone_pause_seconds=2, api_retry_seconds=5,
    )  # fmt: skip
    yield made
    made.close()


@pytest.fixture
def client() -> Iterator[SyncPrefectClient]:
    """Prefect's API."""
    with get_client(sync_client=True) as api:
        yield api


def runner(fleet: QueuedResourceFleet, folder: Path, **options: Any) -> TpuMultisliceRunner[Any]:
    values: dict[str, Any] = {
        "num_slices": 2, "accelerator_type": "v4", "topology": "2x2x1", "checkpoint_root": str(folder),
        "preload": list(PRELOAD), "lease_timeout_seconds": 90,
    }  # fmt: skip
    return TpuMultisliceRunner(pool=fleet, **(values | options))


def body(folder: str, pause_at: int) -> tuple[float, int]:
    """Train the quickstart's network; in the first attempt stop at a step, until something happens."""
    ctx = runtime.current()

    def after_step(step: int, loss: float) -> None:
        if step == pause_at and ctx.attempt == 1:
            Path(folder, f"paused-{ctx.slice_name}").touch()
            time.sleep(100)

    trained = train_to(STEPS, CHECKPOINT_EVERY_STEPS, after_step)
    return trained["loss"], len(trained["params"])


def train(runs_on: TpuMultisliceRunner[Any], folder: Path, client: SyncPrefectClient, *, pause_at: int = 0) -> Story:
    gang = task(task_runner=runs_on, name="gang")(body)

    @flow(name="training")
    def training() -> Any:
        return gang(str(folder), pause_at)

    state = training(return_state=True)
    flow_run_id = state.state_details.flow_run_id
    assert flow_run_id is not None
    (run,) = task_runs(client, flow_run_id)
    records = client.request("GET", "/task_run_states/", params={"task_run_id": str(run.id)}).json()
    history = [(one["name"], one["message"] or "") for one in sorted(records, key=lambda one: one["timestamp"])]
    return Story(state, run, artifact_rows(client, run.id), history, {})


def is_trained(story: Story) -> None:
    assert story.state.is_completed(), story.state
    (loss, size), second = story.state.result()
    assert (loss, size) == second, "both slices have trained together"
    assert loss < 1.0
    assert size == 64 * 128 + 128 + 128 * 10 + 10


def test_with_a_preemption_on_the_way(
    fleet: QueuedResourceFleet, server: QueuedServer, client: SyncPrefectClient, tmp_path: Path
) -> None:
    """SUSPENDED, deleted (it holds quota), replaced; charged to preemptions; nothing is left afterwards."""
    server.quota(EAST, 2)
    server.quota(WEST, 0)
    lost: list[str] = []

    def preempt() -> None:
        paused = eventually(lambda: sorted(tmp_path.glob("paused-*"))[1:], "both slices have paused", 80)
        lost.append(paused[0].name.removeprefix("paused-"))
        server.preempt(lost[0])

    thread = threading.Thread(target=preempt)
    thread.start()
    story = train(runner(fleet, tmp_path), tmp_path, client, pause_at=LOSE_AT)
    thread.join()
    is_trained(story)
    assert story.states == ["Pending", "Running", "Preempted", "Retrying", "Completed"]
    assert story.charges() == ["preemptions"]
    assert (story.run.run_count, story.run.empirical_policy.retries) == (2, 0)
    rows = {(row["attempt"], row["name"]): row["outcome"] for row in story.rows}
    assert rows[1, lost[0]] == "PREEMPTED"
    assert (2, lost[0]) not in rows
    assert sum(outcome == "SUCCEEDED" for outcome in rows.values()) == 2
    assert log_messages(client, story.run.id, "going on from the checkpoint at step")
    # Kept for the next gang for a while, then deleted.
    assert len(server.active()) == 2
    server.until(lambda: not server.states())
    assert len(server.deleted) == 3
    assert [one.id for one in server.deleted if "SUSPENDED" in one.history] == lost
    for record in server.deleted:
        assert record.labels["prefect-tpu-flow-run"] == str(story.state.state_details.flow_run_id)
        assert record.labels["prefect-tpu-task-run"] == str(story.run.id)
        assert (record.labels["team"], record.labels["prefect-tpu-fleet"]) == ("vision", "training")


def stockout_and_a_slow_api(server: QueuedServer) -> None:
    """The first zone has none."""
    server.stockout(EAST)
    server.slow(0.3)


def preempted_while_provisioning_and_lost_answers(server: QueuedServer) -> None:
    """Both of the first zone; the service has created them, though it did not say so."""
    server.preempt_while_provisioning(2)
    server.lose_answers(2)


def quota_held_by_a_dead_run_and_the_api_down(server: QueuedServer) -> None:
    """What it has left is reaped once the API answers."""
    dead = dataclasses.replace(Owner.new(), pid=2**22 + 1)
    for number in range(2):
        labels = {"prefect-tpu-fleet": "training", "prefect-tpu-owner": str(dead), "prefect-tpu-kind": "v4-2x2x1"}
        server.put(WEST, f"left-{number}", labels)
    server.quota(EAST, 0)
    server.quota(WEST, 2)
    server.down(6)


@pytest.mark.parametrize(
    "faults",
    [
        stockout_and_a_slow_api,
        preempted_while_provisioning_and_lost_answers,
        quota_held_by_a_dead_run_and_the_api_down,
    ],
)
def test_with_faults_of_the_service(
    faults: Callable[[QueuedServer], None],
    fleet: QueuedResourceFleet,
    server: QueuedServer,
    client: SyncPrefectClient,
    tmp_path: Path,
) -> None:
    """The run waits, and trains in one attempt; two slices were up, in the second zone; closing deletes them."""
    faults(server)
    story = train(runner(fleet, tmp_path), tmp_path, client)
    is_trained(story)
    assert story.run.run_count == 1
    fleet.close()
    server.until(lambda: not server.states())
    used = [one for one in server.deleted if "ACTIVE" in one.history and one.id.startswith("training-")]
    assert [one.zone for one in used] == [WEST, WEST]


@pytest.mark.parametrize(("fault", "words"), [("quota", "IAM & Admin, Quotas"), ("deny", "roles/tpu.admin")])
def test_what_waiting_does_not_mend(
    fault: str, words: str, fleet: QueuedResourceFleet, server: QueuedServer, client: SyncPrefectClient, tmp_path: Path
) -> None:
    """Fails at once, with the reason and what to do; nothing was created."""
    if fault == "quota":
        server.quota(EAST, 0)
        server.quota(WEST, 0)
    else:
        server.deny()
    story = train(runner(fleet, tmp_path), tmp_path, client)
    assert story.state.is_failed()
    error = story.state.result(raise_on_failure=False)
    assert isinstance(error, ProvisioningError)
    assert words in str(error)
    assert story.run.run_count == 1
    assert not server.deleted
    server.allow()


PROCESS = """
import json, sys, time
from prefect_tpu import QueuedResourceFleet
from prefect_tpu.cluster.tpu import resolve_shape
address, endpoint, how, access = sys.argv[1:]
fleet = QueuedResourceFleet(
    "my-project", ("us-east5-b",), address, name="training", endpoint=endpoint, poll_seconds=0.1, **json.loads(access)
)
fleet.connect()
demand = fleet.demand(resolve_shape("v4", "2x2x1"), 2, "run", print)
while "2 ACTIVE" not in demand.describe():
    time.sleep(0.1)
print("up", flush=True)
if how == "raises":
    raise ValueError("as asked")
if how.startswith("is "):
    time.sleep(100)
"""


@pytest.mark.parametrize("how", ["ends", "raises", "is killed", "is told to end", "is killed with its janitor"])
def test_how_a_process_ends(how: str, machines: LocalFleet, server: QueuedServer, fleet: QueuedResourceFleet) -> None:
    """What it has created goes with it, whatever the signal; if its janitor is gone, with the next that connects."""
    server.boot(works=False)
    process = subprocess.Popen(
        [sys.executable, "-c", PROCESS, machines.address, server.endpoint, how, json.dumps(access())],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=os.environ | machines.access(),
    )  # fmt: skip
    assert process.stdout is not None
    lines = iter(process.stdout.readline, "")
    assert "up\n" in lines
    assert len(server.active()) == 2
    below = descendants(process.pid)
    if how == "is killed with its janitor":
        (janitor,) = [pid for pid, command in alive(below).items() if "sidecars.cloud_janitor" in command]
        os.kill(janitor, signal.SIGKILL)
    if how.startswith("is killed"):
        process.kill()
    elif how == "is told to end":
        process.terminate()
    process.wait(30)
    process.stdout.close()
    if how == "is killed with its janitor":
        time.sleep(0.5)
        assert len(server.active()) == 2
        fleet.connect()
        fleet.demand(resolve_shape("v4", "2x2x1"), 1, "run", print)
        server.until(lambda: len(server.deleted) == 2)
        fleet.close()
    server.until(lambda: not server.states())
    assert_gone(below, 20)
