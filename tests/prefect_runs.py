"""What a run left, read through Prefect's API as a person's browser does."""

from __future__ import annotations

import json
from typing import Any
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterTaskRunId
from prefect.states import State

from prefect_tpu.observability import artifacts
from tests.waiting import eventually


def task_runs(client: SyncPrefectClient, flow_run_id: UUID, count: int = 1) -> list[Any]:
    """The flow run's task runs once Prefect has recorded all of them as ended."""
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId

    def look() -> list[Any]:
        runs = client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[flow_run_id])))
        return runs if len(runs) >= count and all(run.state and run.state.is_final() for run in runs) else []

    return list(eventually(look, f"{count} ended task runs"))


def artifact_rows(client: SyncPrefectClient, task_run_id: UUID) -> list[dict[str, Any]]:
    """Of the newest version of the slice table."""
    artifacts.flush(10)
    (table,) = eventually(lambda: artifacts_of(client, task_run_id, "table"), "a table of the task run")
    return list(table.data if isinstance(table.data, list) else json.loads(table.data))


def artifacts_of(client: SyncPrefectClient, task_run_id: UUID, kind: str) -> list[Any]:
    """Artifacts of this type on a task run."""
    wanted = ArtifactFilter(task_run_id=ArtifactFilterTaskRunId(any_=[task_run_id]))
    return [one for one in client.read_artifacts(artifact_filter=wanted) if one.type == kind]


def log_messages(client: SyncPrefectClient, task_run_id: UUID, *wanted: str) -> list[tuple[int, str]]:
    """Level and text of the task run's lines, once each of `wanted` is in one of them: they come in batches."""

    def look() -> list[tuple[int, str]]:
        logs = client.request(
            "POST", "/logs/filter", json={"logs": {"task_run_id": {"any_": [str(task_run_id)]}}, "limit": 200}
        ).json()
        found = [(one["level"], one["message"]) for one in logs]
        return found if all(any(text in message for _, message in found) for text in wanted) else []

    return list(eventually(look, f"log lines with {wanted}"))


def run_and_state(body: Any) -> tuple[UUID, State[Any]]:
    state = body(return_state=True)
    return state.state_details.flow_run_id, state
