"""The function that Prefect's engine calls in place of the user's."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from prefect.context import TaskRunContext

from prefect_tpu.core.errors import ConfigurationError
from prefect_tpu.task_run.gang_task_run import GangTaskRun


def current_task_run(body: Callable[..., Any]) -> GangTaskRun | None:
    """The gang's side of the running task run; None where `fn` is called as a plain function."""
    context = TaskRunContext.get()
    if context is None or getattr(context.task, "body", None) is not body:
        return None
    task: Any = context.task
    if task.gang_run is None:
        raise ConfigurationError(
            f"Task {task.name!r} runs as a gang and was started past prefect_tpu (by a task worker, or given to "
            "another task runner's submit). Call it, or use its own .submit() or .map()."
        )
    task_run: GangTaskRun = task.gang_run
    return task_run


def wrap(body: Callable[..., Any]) -> Callable[..., Any]:
    """The function that Prefect's engine calls in place of `body`.

    Called outside a task run it is `body` itself, as `task.fn(...)` is in Prefect.
    """
    if inspect.iscoroutinefunction(body):

        @functools.wraps(body)
        async def run_async(*args: Any, **kwargs: Any) -> Any:
            task_run = current_task_run(body)
            if task_run is None:
                return await body(*args, **kwargs)
            return await task_run.call_async(body, args, kwargs)

        return run_async

    @functools.wraps(body)
    def run_sync(*args: Any, **kwargs: Any) -> Any:
        task_run = current_task_run(body)
        if task_run is None:
            return body(*args, **kwargs)
        return task_run.call(body, args, kwargs)

    return run_sync
