"""Threads for gangs submitted in a flow with another task runner, or outside any flow."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any
from uuid import UUID

from prefect_tpu.observability.observer import settle
from prefect_tpu.task_run.runner import GangRunner

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from prefect.client.schemas.objects import FlowRun, State
    from prefect.context import FlowRunContext
    from prefect.flows import Flow

_lock = threading.Lock()
_runners: dict[UUID | None, GangRunner] = {}


def threads_for(context: FlowRunContext | None) -> GangRunner:
    """A started runner whose threads gangs of this flow run use.

    The flow's own task runner if it is one of ours. Else one per flow run, which a hook on the flow joins
    when the flow run completes, and cancels when it ends in any other way; outside a flow one per process,
    whose threads Python joins when the process ends.
    """
    if context is not None and isinstance(context.task_runner, GangRunner):
        return context.task_runner
    flow_run_id = context.flow_run.id if context is not None and context.flow_run is not None else None
    with _lock:
        runner = _runners.get(flow_run_id)
        if runner is None:
            runner = _runners[flow_run_id] = GangRunner().__enter__()
        if context is not None and context.flow is not None:
            _add_hooks(context.flow)
    return runner


def _add_hooks(flow: Flow[Any, Any]) -> None:
    for hooks in (
        flow.on_completion_hooks,
        flow.on_failure_hooks,
        flow.on_cancellation_hooks,
        flow.on_crashed_hooks,
    ):
        if finish_gangs not in hooks:
            hooks.append(finish_gangs)


def finish_gangs(flow: Flow[Any, Any], flow_run: FlowRun, state: State[Any]) -> Awaitable[None] | None:
    """End-of-flow hook: join gangs that nobody waited for, or cancel them if the flow run did not complete."""
    with _lock:
        runner = _runners.pop(flow_run.id, None)
    if runner is None:
        return None
    if flow.isasync:
        return asyncio.to_thread(_finish, runner, state)
    _finish(runner, state)
    return None


def _finish(runner: GangRunner, state: State[Any]) -> None:
    if state.is_completed():
        runner.__exit__(None, None, None)
    else:
        runner.cancel_all()
        runner.__exit__(None, None, None)
        settle()
