"""What is told of a task run, and where what its hosts print goes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefect.context import FlowRunContext

from prefect_tpu.core.rate import RateLimit
from prefect_tpu.observability.logs import Logger, RunLog
from prefect_tpu.observability.observer import RunObserver

if TYPE_CHECKING:
    from prefect.client.schemas.objects import TaskRun

    from prefect_tpu.options.tuning import Tuning
    from prefect_tpu.task_run.retries import RetryFields


def observe(task: RetryFields, task_run: TaskRun, logger: Logger, tuning: Tuning) -> RunObserver:
    """The observer of all attempts of a task run; to be called in its context."""
    lines = tuning.gang_log_lines_per_second
    run_log = RunLog(logger, RateLimit(lines, lines * tuning.log_burst_seconds), prints=prints_are_logged(task))
    return RunObserver(run_log, task.name, task_run, slice_bars=tuning.slice_bars)


def prints_are_logged(task: RetryFields) -> bool:
    """Unless the task, or else its flow, says that they are not."""
    flow = FlowRunContext.get()
    of_flow = None if flow is None or flow.flow is None else flow.flow.log_prints
    return (of_flow if task.log_prints is None else task.log_prints) is not False
