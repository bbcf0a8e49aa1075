"""Events for Prefect's automations: what a gang does, with task run, flow run, slices and hosts as related resources.

| event | when | resource |
| --- | --- | --- |
| prefect-tpu.attempt.started | an attempt has its slices | the gang |
| prefect-tpu.attempt.finished | it has ended, whatever with | the gang |
| prefect-tpu.slice.preempted | a slice was taken away, or is about to be, and ended the attempt | the slice |
| prefect-tpu.gang.hung | an attempt was ended as it made no progress | the gang |
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any
from uuid import UUID

from prefect.events import emit_event

from prefect_tpu.core.evidence import HostEvidence
from prefect_tpu.core.gang import Gang
from prefect_tpu.core.kinds import KINDS
from prefect_tpu.core.report import AttemptReport
from prefect_tpu.core.text import cut

log = logging.getLogger("prefect_tpu.events")

MAX_RELATED = 60
"""Slices and hosts of one event; Prefect takes a hundred resources, and adds those of the run itself."""
MAX_TEXT_CHARS = 2_000
MAX_NAME_CHARS = 200
"""With these an event stays far below what Prefect takes (1.5 MB)."""


class GangEvents:
    """Emits the events of one task run; best effort, never raises, never waits."""

    def __init__(self, task_run_id: UUID, task_run_name: str, flow_run_id: UUID | None) -> None:
        self._gang = {
            "prefect.resource.id": f"prefect-tpu.gang.{task_run_id}",
            "prefect.resource.name": cut(task_run_name, limit=MAX_NAME_CHARS),
        }
        self._runs = [{"prefect.resource.id": f"prefect.task-run.{task_run_id}", "prefect.resource.role": "task-run"}]
        if flow_run_id is not None:
            self._runs.append(
                {"prefect.resource.id": f"prefect.flow-run.{flow_run_id}", "prefect.resource.role": "flow-run"}
            )
        self._complained = False

    def started(self, number: int, gang: Gang) -> None:
        """An attempt has its slices."""
        names = [one.name for one in gang.slices]
        self._emit(
            "attempt.started",
            self._gang,
            [_slice(name, related=True) for name in names],
            {"attempt": number, "num_slices": gang.num_slices, "num_hosts": gang.num_processes},
        )

    def finished(self, report: AttemptReport) -> None:
        """An attempt has ended; its losses and hangs are events of their own."""
        verdict = report.verdict
        guilty = [host for host in report.evidence if host.process_id in set(verdict.culprits)]
        payload = {
            "attempt": report.number,
            "outcome": verdict.kind.value,
            "charged_to": verdict.charge,
            "cause": cut(verdict.cause, limit=MAX_TEXT_CHARS),
            "resolution": cut(verdict.resolution, limit=MAX_TEXT_CHARS),
            "budgets": cut(report.budgets, limit=MAX_TEXT_CHARS),
            "lease_seconds": round(report.lease_seconds, 3),
            "launch_seconds": round(report.launch_seconds, 3),
            "run_seconds": round(report.run_seconds, 3),
            "step": report.step,
        }
        names = [one.name for one in report.gang.slices] if report.gang is not None else []
        hosts = [_host(host) for host in guilty]
        if slice_event := KINDS[verdict.kind].slice_event:
            for index in report.lost_slices:
                mine = [host for host in guilty if host.slice_index == index]
                self._emit(slice_event, _slice(names[index]), [_host(host) for host in mine], payload)
        hung = [host for host in guilty if host.hung]
        if hung:
            self._emit("gang.hung", self._gang, [_host(host) for host in hung], payload)
        self._emit("attempt.finished", self._gang, [*hosts, *(_slice(name, related=True) for name in names)], payload)

    def _emit(
        self, name: str, resource: dict[str, str], related: Iterable[dict[str, str]], payload: dict[str, Any]
    ) -> None:
        try:
            emit_event(
                event=f"prefect-tpu.{name}",
                resource=resource,
                related=[*self._runs, *list(related)[:MAX_RELATED]],
                payload=payload,
            )
        except Exception as error:  # noqa: BLE001 - observability must never fail a run
            log.log(logging.DEBUG if self._complained else logging.WARNING, "no event %r: %r", name, error)
            self._complained = True


def _slice(name: str, *, related: bool = False) -> dict[str, str]:
    name = cut(name, limit=MAX_NAME_CHARS)
    found = {"prefect.resource.id": f"prefect-tpu.slice.{name}", "prefect.resource.name": name}
    return found | {"prefect.resource.role": "slice"} if related else found


def _host(host: HostEvidence) -> dict[str, str]:
    name = cut(host.slice_name, limit=MAX_NAME_CHARS)
    return {
        "prefect.resource.id": f"prefect-tpu.host.{name}.{host.host_index}",
        "prefect.resource.name": f"{name} host {host.host_index}",
        "prefect.resource.role": "host",
    }
