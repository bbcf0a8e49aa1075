"""What hosts are told of a task run in Prefect, so that `prefect.runtime` there answers as it does here."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from prefect.context import AssetContext, FlowRunContext, TagsContext
from prefect.runtime import flow_run as runtime_flow_run
from prefect.runtime import task_run as runtime_task_run

from prefect_tpu import prefect_api
from prefect_tpu.core.prefect_run import PrefectRun
from prefect_tpu.core.text import clean, cut
from prefect_tpu.wire import pickling

if TYPE_CHECKING:
    from prefect.context import TaskRunContext

    from prefect_tpu.options.tuning import Tuning

log = logging.getLogger("prefect_tpu.task_run")

_OF_TASK_RUN = {
    "id", "name", "flow_run_id", "task_key", "dynamic_key", "task_version", "tags", "run_count", "flow_run_run_count",
    "expected_start_time", "start_time",
}  # fmt: skip
_OF_FLOW_RUN = {
    "id", "flow_id", "name", "tags", "run_count", "parent_task_run_id", "expected_start_time", "start_time",
    "auto_scheduled",
}  # fmt: skip


class RunForHosts:
    """Of one task run; parameters of its flow are pickled once."""

    def __init__(self, body: Callable[..., Any], tuning: Tuning) -> None:
        """`body`: the user's function."""
        self._body = body
        self._tuning = tuning
        self._flow_parameters: tuple[bytes, ...] | None = None
        self._why_none = ""
        self._pickled = False

    def now(self, context: TaskRunContext) -> PrefectRun:
        """As it is when an attempt begins; to be called in the task run's own context. Never raises."""
        try:
            return self._read(context)
        except Exception as error:  # noqa: BLE001 - names that are no texts: no reason to fail the run
            log.warning("hosts know little of task run %s: %r", context.task_run.id, error)
            return PrefectRun.unknown(str(context.task_run.id))

    def _read(self, context: TaskRunContext) -> PrefectRun:
        flow, tags, assets, tuning = FlowRunContext.get(), TagsContext.get(), AssetContext.get(), self._tuning
        run = context.task_run
        task = run.model_dump(mode="json", include=_OF_TASK_RUN)
        flow_run = None
        if flow is not None and flow.flow_run is not None:
            flow_run = flow.flow_run.model_dump(mode="json", include=_OF_FLOW_RUN) | {
                "deployment_id": _text(prefect_api.deployment_of(flow.flow_run)),
                "has_job_variables": bool(flow.flow_run.job_variables),
                "flow_name": flow.flow.name if flow.flow is not None else None,
                "flow_version": flow.flow.version if flow.flow is not None else None,
            }
            self._pickle(flow.parameters or {})
        return PrefectRun(
            task=task | {"task_name": context.task.name, "name": clean(run.name)},
            flow=flow_run,
            tags=tuple(sorted(tags.current_tags)),
            links={
                "task_run.api_url": runtime_task_run.api_url,
                "task_run.ui_url": runtime_task_run.ui_url,
                "flow_run.api_url": runtime_flow_run.api_url,
                "flow_run.ui_url": runtime_flow_run.ui_url,
            },
            assets=tuple(sorted(one.key for one in assets.downstream_assets)) if assets is not None else (),
            flow_parameters=self._flow_parameters,
            why_no_flow_parameters=self._why_none,
            items_per_second=tuning.host_prefect_items_per_second,
            burst_items=tuning.host_prefect_items_per_second * tuning.log_burst_seconds,
            item_bytes=tuning.host_prefect_item_bytes,
        )

    def _pickle(self, parameters: Mapping[str, Any]) -> None:
        if self._pickled:
            return
        self._pickled, limit = True, self._tuning.flow_parameters_bytes
        too_big = f"they are bigger than PREFECT_INTEGRATIONS_TPU_FLOW_PARAMETERS_BYTES={limit}"
        for value in parameters.values():
            # Before they are pickled: some are big arrays, which would be brought from their devices for it.
            if max(sys.getsizeof(value, 0), getattr(value, "nbytes", 0)) > limit:
                self._why_none = too_big
                return
        try:
            buffers = pickling.dumps(dict(parameters), project_root=pickling.project_root_of(self._body))
        except Exception as error:  # noqa: BLE001 - whatever the user's classes do; the run does not need them
            self._why_none = cut(f"they cannot be pickled: {error}", limit=2_000)
            return
        if sum(memoryview(one).nbytes for one in buffers) > limit:
            self._why_none = too_big
            return
        self._flow_parameters = tuple(bytes(one) for one in buffers)


def _text(value: Any) -> str | None:
    return None if value is None else str(value)
