"""Threads for gangs submitted in a flow with another task runner, or outside any flow."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from typing import TYPE_CHECKING, Any
from uuid import UUID

from prefect_tpu.observability.logs import keep_lines_clean
from prefect_tpu.observability.observer import settle
from prefect_tpu.task_run.runner import GangRunner

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from prefect.client.schemas.objects import FlowRun, State
    from prefect.context import FlowRunContext
    from prefect.flows import Flow

_lock = threading.Lock()
_runners: dict[UUID | None, GangRunner] = {}
_hooked: Counter[int] = Counter()
"""Runs that have not ended, by the id of their flow object."""
_HOOKS = ("on_completion_hooks", "on_failure_hooks", "on_cancellation_hooks", "on_crashed_hooks")


def threads_for(context: FlowRunContext | None) -> GangRunner:
    """A started runner whose threads gangs of this flow run use.

    The flow's own task runner if it is one of ours. Else one per flow run, which a hook on the flow joins
    when the flow run completes, and cancels when it ends in any other way; outside a flow one per process,
    whose threads Python joins when the process ends.
    """
    if context is not None and isinstance(context.task_runner, GangRunner):
        return context.task_runner
    flow_run_id = context.flow_run.id if context is not None and context.flow_run is not None else None
    flow = context.flow if context is not None and flow_run_id is not None else None
    with _lock:
        runner = _runners.get(flow_run_id)
        if runner is None:
            runner = _runners[flow_run_id] = GangRunner().__enter__()
            if flow is not None:
                _hook(flow)
    return runner


def _hook(flow: Flow[Any, Any]) -> None:
    """Have the flow's run end with `prefect_tpu_ends_gangs`. The lists are replaced: flows may share one."""
    keep_lines_clean()
    _hooked[id(flow)] += 1
    for name in _HOOKS:
        hooks = getattr(flow, name)
        if prefect_tpu_ends_gangs not in hooks:
            setattr(flow, name, [*hooks, prefect_tpu_ends_gangs])


def _unhook(flow: Flow[Any, Any]) -> None:
    """Once the last of its runs that needs it is over."""
    _hooked[id(flow)] -= 1
    if _hooked[id(flow)] > 0:
        return
    del _hooked[id(flow)]
    for name in _HOOKS:
        setattr(flow, name, [one for one in getattr(flow, name) if one is not prefect_tpu_ends_gangs])


def prefect_tpu_ends_gangs(flow: Flow[Any, Any], flow_run: FlowRun, state: State[Any]) -> Awaitable[None] | None:
    """End-of-flow hook: join gangs that nobody waited for, or cancel them if the flow run did not complete.

    What Prefect logs of it is left out by its name: see OWN_HOOK in observability/logs.py.
    """
    with _lock:
        runner = _runners.pop(flow_run.id, None)
        if runner is not None:
            _unhook(flow)
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
