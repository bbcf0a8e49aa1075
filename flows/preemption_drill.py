"""Lose a slice, lose a host, raise once: training ends with the same parameters as without any of that.

Run it: `python flows/preemption_drill.py`. It trains the quickstart's network twice on two of three simulated
slices, the second time with faults, compares the parameters, and prints what happened to every attempt.
"""

from __future__ import annotations

import json
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterTaskRunId, ArtifactFilterType
from prefect.client.schemas.objects import State
from quickstart import PRELOAD, train_to
from rich.console import Console
from rich.table import Table

import prefect_tpu
from prefect_tpu import LocalFleet, TpuMultisliceRunner, artifacts, runtime

STEPS = 60
CHECKPOINT_EVERY_STEPS = 10
LOSE_SLICE_AT, LOSE_HOST_AT, RAISE_AT = 15, 33, 50
TOLERANCE = 1e-5
"""Largest difference of a parameter. The data of a step depend on its number alone, so the order is the same."""
WAIT_SECONDS = 300.0
ARTIFACT_SECONDS = 10.0

FLEET = LocalFleet(slices=3, accelerator_type="v4", topology="2x2x2")


class DrillError(Exception):
    """Raised once, on purpose."""


@prefect_tpu.task(task_runner=TpuMultisliceRunner(pool=FLEET, num_slices=2, preload=PRELOAD), retries=1)
def train(steps: int, folder: str | None) -> dict[str, Any]:
    """On every host. In `folder` each fault is announced once, when its step is done; None: no faults."""

    def after_step(step: int, loss: float) -> None:  # noqa: ARG001
        assert folder is not None
        ctx = runtime.current()
        announced = Path(folder, str(step))
        if step not in (LOSE_SLICE_AT, LOSE_HOST_AT, RAISE_AT) or announced.exists():
            return
        if step == RAISE_AT and ctx.process_id == 1:
            announced.touch()
            raise DrillError("once, on purpose")
        if step != RAISE_AT and ctx.process_id == 0:
            announced.with_suffix(".new").write_text(ctx.slice_name)
            announced.with_suffix(".new").rename(announced)
        time.sleep(WAIT_SECONDS)  # the fault comes now

    return train_to(steps, CHECKPOINT_EVERY_STEPS, after_step if folder is not None else None)


def make_faults(folder: str) -> None:
    """In the driver: take the slice that process 0 runs on, then one host of it; new ones come up later."""
    for step, host in ((LOSE_SLICE_AT, ""), (LOSE_HOST_AT, "/1")):
        announced, give_up = Path(folder, str(step)), time.monotonic() + WAIT_SECONDS
        while not announced.exists():
            if time.monotonic() > give_up:
                return
            time.sleep(0.1)
        lost = announced.read_text() + host
        FLEET.preempt(lost)
        FLEET.restore(lost)  # a new machine comes up in its place, for the next loss


def print_ledger(task_run_id: Any) -> None:
    """The table of all attempts, as it is on the task run in Prefect."""
    artifacts.flush(ARTIFACT_SECONDS)
    on_this_run = ArtifactFilter(
        task_run_id=ArtifactFilterTaskRunId(any_=[task_run_id]), type=ArtifactFilterType(any_=["table"])
    )
    with get_client(sync_client=True) as client:
        (found,) = client.read_artifacts(artifact_filter=on_this_run)
    rows = found.data if isinstance(found.data, list) else json.loads(str(found.data))
    columns = ("attempt", "slice", "name", "outcome", "charged to", "step", "run seconds")
    table = Table(*columns, title="What happened to every slice of every attempt")
    for row in rows:
        table.add_row(*(str(row[name]) for name in columns))
    console = Console()
    console.print(table)
    for row in rows:
        if row["charged to"]:
            console.print(f"attempt {row['attempt']}: {row['cause']}", soft_wrap=True)


@flow
def preemption_drill(steps: int = STEPS) -> float:
    """Train undisturbed, then with faults; the largest difference of a parameter."""
    undisturbed = train(steps, None)
    with tempfile.TemporaryDirectory() as folder:
        thread = threading.Thread(target=make_faults, args=(folder,))
        thread.start()
        state: State[Any] = train(steps, folder, return_state=True)
        thread.join()
    print_ledger(state.state_details.task_run_id)
    disturbed: Any = state.result()
    difference = max(
        float(np.abs(one["params"] - other["params"]).max()) for one, other in zip(undisturbed, disturbed, strict=True)
    )
    if difference > TOLERANCE:
        raise ValueError(f"the parameters differ by {difference:g}, more than {TOLERANCE:g}")
    return difference


if __name__ == "__main__":
    with FLEET:
        print(f"largest difference of a parameter: {preemption_drill():g}")
