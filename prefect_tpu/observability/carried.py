"""What the user's function gave to Prefect on a host, handed over here: events, artifacts, metadata of assets."""

from __future__ import annotations

import json
from typing import Any
from uuid import UUID

from prefect.context import AssetContext

from prefect_tpu import prefect_api
from prefect_tpu.core.messages import Carried
from prefect_tpu.observability import artifacts
from prefect_tpu.observability.publisher import Slot, Version


class CarriedItems:
    """Of one task run. `take` runs in its context; it never waits for Prefect's API."""

    def __init__(self, task_run_id: UUID, flow_run_id: UUID | None) -> None:
        self._runs = task_run_id, flow_run_id

    def take(self, item: Carried) -> None:
        """Hand it over; raises what Prefect says of its contents."""
        body: dict[str, Any] = json.loads(item.body)
        match item.kind:
            case "event":
                prefect_api.send_event(body)
            case "artifact":
                self._publish(body)
            case "asset":
                context = AssetContext.get()
                if context is not None:
                    context.add_asset_metadata(body["key"], body["metadata"])

    def _publish(self, body: dict[str, Any]) -> None:
        number, made_here = UUID(body["number"]), body["made_here"]
        slot = Slot(
            body.get("key"),
            body.get("type"),
            *self._runs,
            number=number if made_here else None,
            known_id=None if made_here else number,
        )
        artifacts.publish(slot, lambda: Version(body.get("data"), body.get("description")))
