"""Every name of Prefect that it does not promise to keep. Runs: driver.

On hosts `host/process/prefect_context.py` and `prefect_stand_ins.py` are those for that. A new release of Prefect is
read against these three.
"""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from contextvars import Token
from typing import TYPE_CHECKING, Any, cast

from prefect._internal.compatibility.async_dispatch import async_dispatch
from prefect.task_engine import TaskRunTimeoutError

if TYPE_CHECKING:
    from uuid import UUID

    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.objects import FlowRun, State, TaskRun
    from prefect.context import FlowRunContext
    from prefect.task_runners import ThreadPoolTaskRunner
    from prefect.tasks import Task

PARENTS = "__parents__"
"""The key of a task run's inputs under which Prefect's UI looks for the run that it is nested in."""
TASK_ATTRIBUTES = {
    "on_completion": "on_completion_hooks",
    "on_failure": "on_failure_hooks",
    "on_running": "on_running_hooks",
    "on_rollback": "on_rollback_hooks",
    "on_commit": "on_commit_hooks",
    "persist_result": "_user_persist_result",
    "cache_policy": "_user_cache_policy",
}
"""Where a Prefect task keeps an option that is not kept under its own name."""


def waited_for(call: Callable[..., Any], *args: Any) -> Any:
    """The result of a method that is awaitable in async code, even if this is called in async code."""
    return call(*args, _sync=True)


def copy_attributes(task: Task[..., Any], into: Task[..., Any]) -> None:
    """Make `into`, of a class of its own, the same task."""
    into.__dict__.update(task.__dict__)


def join_threads(runner: ThreadPoolTaskRunner[Any]) -> None:
    """Wait until every thread of a task runner has ended; it takes nothing more. Nothing if it was never started."""
    executor = runner._executor
    if executor is not None:
        executor.shutdown(wait=True)


def dynamic_keys(flow_run: FlowRunContext) -> MutableMapping[str, Any]:
    """How often the flow run has called a task, by the task's key; starts anew with each retry of the flow run."""
    return flow_run.task_run_dynamic_keys


def parent_of(flow_run: FlowRunContext) -> FlowRunContext | None:
    """The flow run of this process that has called this one."""
    before = None if flow_run._token is None else flow_run._token.old_value
    return None if before is None or before is Token.MISSING else cast("FlowRunContext", before)


def keep_binding(of: Callable[..., Any], into: Callable[..., Any]) -> None:
    """A task's function that is a method remembers its object, or its class, so that calls pass it."""
    for name in ("__prefect_self__", "__prefect_cls__"):
        if hasattr(of, name):
            setattr(into, name, getattr(of, name))


def deployment_of(flow_run: FlowRun) -> UUID | None:
    """The deployment that the flow run, or the one that it is nested in, is a run of."""
    import prefect.context

    of_parent = getattr(prefect.context, "_deployment_id", None)
    return (of_parent.get() if of_parent is not None else None) or flow_run.deployment_id


def refuse_visualization(text: str) -> None:
    """Raise inside `flow.visualize()`, as Prefect does with what it cannot draw."""
    from prefect.utilities.visualization import VisualizationUnsupportedError, get_task_viz_tracker

    if get_task_viz_tracker():
        raise VisualizationUnsupportedError(text)


def emit_state_change(task_run: TaskRun, before: State[Any] | None, after: State[Any]) -> None:
    """Tell Prefect's server of a new state of a task run, as its engine does."""
    from prefect.utilities.engine import emit_task_run_state_change_event

    emit_task_run_state_change_event(task_run=task_run, initial_state=before, validated_state=after)


def send_event(fields: dict[str, Any]) -> None:
    """Emit an event that was made elsewhere, as it is; with the runs of this context as related resources."""
    from prefect.events import Event
    from prefect.events.worker import EventsWorker, should_emit_events

    if should_emit_events():
        EventsWorker.instance().send(Event.model_validate(fields))


def wait_for_events() -> None:
    """Wait until Prefect has sent what it was told, states of task runs among it."""
    from prefect.events.worker import EventsWorker

    EventsWorker.instance().wait_until_empty()


def health(client: SyncPrefectClient) -> Any:
    """The answer of Prefect's API to who asks whether it is well, as httpx gives it: the client hides its headers."""
    http = client._client
    return http.send(http.build_request("GET", "/health"))


__all__ = [
    "PARENTS",
    "TASK_ATTRIBUTES",
    "TaskRunTimeoutError",
    "async_dispatch",
    "copy_attributes",
    "deployment_of",
    "dynamic_keys",
    "emit_state_change",
    "health",
    "join_threads",
    "keep_binding",
    "parent_of",
    "refuse_visualization",
    "send_event",
    "wait_for_events",
    "waited_for",
]
