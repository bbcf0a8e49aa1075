"""Each slice of each attempt as a task run of its own, inside the gang's: bars on the timeline of the flow run."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

from prefect.client.schemas.objects import State, StateType, TaskRun, TaskRunResult

from prefect_tpu import prefect_api
from prefect_tpu.core.gang import Gang
from prefect_tpu.core.kinds import KINDS, Kind
from prefect_tpu.core.report import AttemptReport
from prefect_tpu.core.text import cut
from prefect_tpu.observability import states
from prefect_tpu.observability.slices_table import MAX_NAME_CHARS, rows_of

MAX_BARS = 64
"""Slices of one attempt; of more none is shown."""
BYSTANDERS = {"RETURNED": ("COMPLETED", "Returned"), "COLLATERAL": ("CANCELLED", "Collateral")}
"""What the bar of a slice ends with that had no part in how the attempt ended; of others the kind decides."""


class SliceBars:
    """The bars of one task run's gang; best effort."""

    def __init__(self, task_run: TaskRun) -> None:
        """`task_run`: the gang's."""
        self._parent = task_run
        self._runs: list[TaskRun] = []

    def started(self, number: int, gang: Gang) -> None:
        """An attempt has its slices."""
        self._runs = []
        if gang.num_slices > MAX_BARS:
            return
        for index, one in enumerate(gang.slices):
            run = self._make(number, index, one.name)
            self._runs.append(run)
            assert run.state is not None
            states.emit_transition(run, None, run.state)

    def log_extra(self, slice_index: int) -> dict[str, str] | None:
        """What puts a log record of a host onto its slice's task run."""
        if slice_index >= len(self._runs):
            return None
        run = self._runs[slice_index]
        return {"task_run_id": str(run.id), "task_run_name": run.name}

    def finished(self, report: AttemptReport) -> None:
        """The attempt has ended."""
        for run, row in zip(self._runs, rows_of(report), strict=False):
            outcome = str(row["outcome"])
            kind, name = BYSTANDERS.get(outcome) or KINDS[Kind(outcome)].bar
            before = run.state
            assert before is not None
            run.state = State(type=StateType(kind), name=name, message=str(row["cause"]) or None)
            ended: Any = run.state.timestamp
            run.end_time = ended
            run.total_run_time = ended - before.timestamp
            states.emit_transition(run, before, run.state)

    def _make(self, number: int, index: int, slice_name: str) -> TaskRun:
        began = datetime.now(UTC)
        state: State[None] = State(type=StateType.RUNNING, name="Running", timestamp=began)
        return TaskRun(
            id=uuid4(),
            name=f"{cut(slice_name, limit=MAX_NAME_CHARS)} attempt {number}",
            flow_run_id=self._parent.flow_run_id,
            task_key=f"prefect_tpu.slice.{self._parent.task_key}",
            dynamic_key=f"{self._parent.id}-{number}-{index}",
            tags=["tpu-slice"],
            task_inputs={prefect_api.PARENTS: [TaskRunResult(id=self._parent.id)]},
            state=state,
            run_count=1,
            expected_start_time=began,
            start_time=began,
        )
