"""The function that Prefect's engine calls in place of the user's."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from prefect.context import TaskRunContext

from prefect_tpu.core.errors import ConfigurationError
from prefect_tpu.task_run.gang_task_run import GangLaunch


def current_launch(body: Callable[..., Any]) -> GangLaunch | None:
    """The launch that the running task run belongs to; None where `fn` is called as a plain function."""
    context = TaskRunContext.get()
    if context is None or getattr(context.task, "body", None) is not body:
        return None
    task: Any = context.task
    if task.launch is None:
        raise ConfigurationError(
            f"Task {task.name!r} runs as a gang and was started past prefect_tpu (by a task worker, or given to "
            "another task runner's submit). Call it, or use its own .submit() or .map()."
        )
    launch: GangLaunch = task.launch
    return launch


def make_launcher(body: Callable[..., Any]) -> Callable[..., Any]:
    """The function that Prefect's engine calls in place of `body`.

    Called outside a task run it is `body` itself, as `task.fn(...)` is in Prefect.
    """
    if inspect.iscoroutinefunction(body):

        @functools.wraps(body)
        async def launch_async(*args: Any, **kwargs: Any) -> Any:
            launch = current_launch(body)
            if launch is None:
                return await body(*args, **kwargs)
            return await launch.call_async(body, args, kwargs)

        return launch_async

    @functools.wraps(body)
    def launch_sync(*args: Any, **kwargs: Any) -> Any:
        launch = current_launch(body)
        if launch is None:
            return body(*args, **kwargs)
        return launch.call(body, args, kwargs)

    return launch_sync
