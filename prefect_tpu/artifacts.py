"""The table that each attempt leaves on its task run: one row per slice. Best effort, in the background."""

from __future__ import annotations

import atexit
import logging
import queue
import re
import threading
import time
from contextvars import Context, copy_context
from dataclasses import dataclass
from uuid import UUID

from prefect_tpu.core.report import AttemptReport

log = logging.getLogger("prefect_tpu.artifacts")

MAX_QUEUED = 100
EXIT_FLUSH_SECONDS = 5.0
"""How long the end of the process waits for tables that are not written yet."""
REQUEST_TIMEOUT_SECONDS = 10.0
"""For one call to Prefect's API."""
MAX_ROWS = 1_000
"""Newest rows kept in one table: 500 attempts of two slices, far below Prefect's limit for an artifact."""


@dataclass(frozen=True, slots=True)
class TableTarget:
    """Where the table goes: a key that is the same for every run of the task, and the run it belongs to."""

    key: str
    task_name: str
    task_run_id: UUID
    flow_run_id: UUID | None


def table_key(task_name: str) -> str:
    """Artifact key of a task's slice table; Prefect allows lower case letters, digits and dashes."""
    return "tpu-slices-" + (re.sub(r"[^a-z0-9]+", "-", task_name.lower()).strip("-") or "task")


class _Publisher:
    """One daemon thread that talks to Prefect's API, so that no gang ever waits for it."""

    def __init__(self) -> None:
        self._queue: queue.Queue[tuple[Context, TableTarget, list[AttemptReport]]] = queue.Queue(MAX_QUEUED)
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._complained = False

    def publish(self, target: TableTarget, reports: list[AttemptReport]) -> None:
        with self._lock:
            if self._thread is None:
                # Not at import: this must run before Prefect's temporary server, started meanwhile, is stopped.
                atexit.register(self.flush, EXIT_FLUSH_SECONDS)
                self._thread = threading.Thread(target=self._work, name="prefect-tpu-artifacts", daemon=True)
                self._thread.start()
        try:
            self._queue.put_nowait((copy_context(), target, list(reports)))
        except queue.Full:
            self._complain("too many artifacts wait for Prefect's API; the newest was dropped")

    def flush(self, timeout_seconds: float) -> None:
        """Wait until what is queued is written, but not longer than `timeout_seconds`."""
        deadline = time.monotonic() + timeout_seconds
        while self._queue.unfinished_tasks and time.monotonic() < deadline:
            time.sleep(0.02)

    def _work(self) -> None:
        while True:
            context, target, reports = self._queue.get()
            try:
                context.run(_create, target, reports)
            except Exception as error:  # noqa: BLE001 - observability must never fail a run
                self._complain(f"could not write the slice table to Prefect: {error!r}")
            finally:
                self._queue.task_done()
                del context, target, reports  # the context holds the task run's parameters

    def _complain(self, text: str) -> None:
        log.log(logging.DEBUG if self._complained else logging.WARNING, "%s", text)
        self._complained = True


def _create(target: TableTarget, reports: list[AttemptReport]) -> None:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import ArtifactCreate

    rows = [row for report in reports for row in report.rows()][-MAX_ROWS:]
    # Settings of its own: without, it would be the client of the task run, which may be closed by now.
    with get_client(httpx_settings={"timeout": REQUEST_TIMEOUT_SECONDS}, sync_client=True) as client:
        client.create_artifact(
            ArtifactCreate(
                key=target.key,
                type="table",
                description=f"Slices of every attempt of task `{target.task_name}`.",
                data=_json(rows),
                task_run_id=target.task_run_id,
                flow_run_id=target.flow_run_id,
            )
        )


def _json(rows: list[dict[str, str | int | float]]) -> str:
    import json

    return json.dumps(rows)


_publisher = _Publisher()
publish = _publisher.publish
flush = _publisher.flush
