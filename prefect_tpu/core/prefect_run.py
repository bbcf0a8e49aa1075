"""What a host is told of its task run and flow run in Prefect, and what it may hand over for them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class PrefectRun:
    """A task run as it is in the driver when an attempt begins. Plain values: a host may have another Prefect.

    Attributes:
        task: fields of the task run by name, and "task_name".
        flow: fields of the flow run by name, "flow_name", "flow_version", "has_job_variables"; None outside a flow.
        tags: that `prefect.tags` has around the call.
        links: URLs by "task_run.api_url" and the like.
        assets: keys of what `materialize` makes.
        flow_parameters: the flow's, pickled; None if they do not travel.
        why_no_flow_parameters: in words.
        items_per_second, burst_items: events and artifacts that a host may hand over; others are dropped.
        item_bytes: the biggest of them.
    """

    task: dict[str, Any]
    flow: dict[str, Any] | None = None
    tags: tuple[str, ...] = ()
    links: dict[str, str | None] = field(default_factory=dict)
    assets: tuple[str, ...] = ()
    flow_parameters: tuple[bytes, ...] | None = field(default=None, repr=False)
    why_no_flow_parameters: str = ""
    items_per_second: float = float("inf")
    burst_items: float = float("inf")
    item_bytes: float = float("inf")

    @classmethod
    def unknown(cls, run_id: str) -> PrefectRun:
        """Where nothing but the task run's id is known."""
        return cls({"id": run_id, "name": "gang", "task_key": "gang", "dynamic_key": "0", "task_name": "gang"})
