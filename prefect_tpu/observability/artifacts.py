"""What a task run leaves in Prefect for people to look at: slice table, run summary, progress."""

from __future__ import annotations

import re
from collections.abc import Sequence
from uuid import UUID

from prefect_tpu.core.report import AttemptReport
from prefect_tpu.observability import run_summary
from prefect_tpu.observability.markdown import plain
from prefect_tpu.observability.publisher import Publisher, Slot, Version
from prefect_tpu.observability.slices_table import table_of

MAX_KEY_CHARS = 200

_publisher = Publisher()
flush = _publisher.flush
publish = _publisher.publish


def artifact_key(kind: str, task_name: str) -> str:
    """The same for every run of a task; Prefect allows lower case letters, digits and dashes."""
    name = re.sub(r"[^a-z0-9]+", "-", task_name.lower()).strip("-")[:MAX_KEY_CHARS].strip("-")
    return f"tpu-{kind}-{name or 'task'}"


class RunArtifacts:
    """The artifacts of one task run; each has one version in Prefect, the newest. Never waits, never raises."""

    def __init__(self, task_name: str, task_run_id: UUID, flow_run_id: UUID | None) -> None:
        self.task_name = task_name
        self._table = Slot(artifact_key("slices", task_name), "table", task_run_id, flow_run_id)
        self._summary = Slot(artifact_key("summary", task_name), "markdown", task_run_id, flow_run_id)
        self._progress = Slot(artifact_key("progress", task_name), "progress", task_run_id, flow_run_id)

    def attempts(self, reports: Sequence[AttemptReport], *, ended: bool, budgets: str) -> None:
        """The table with one row per slice of every attempt, and the summary.

        Args:
            reports: of all attempts that have ended.
            ended: whether there will be no other one.
            budgets: what is spent, in words.
        """
        kept = tuple(reports)
        name = self.task_name

        def table() -> Version:
            rows, left_out = table_of(kept)
            older = f" The oldest {left_out} rows have no room here." if left_out else ""
            return Version(rows, f"Slices of every attempt of task {plain(name)}.{older}")

        def summary() -> Version:
            return Version(
                run_summary.render(run_summary.RunFacts(name, kept, ended, budgets)),
                f"What happened to task {plain(name)}, and what it cost.",
            )

        _publisher.publish(self._table, table)
        _publisher.publish(self._summary, summary)

    def progress(self, percent: float, text: str) -> None:
        """How far it is: 0 to 100, and a phrase."""
        _publisher.publish(self._progress, lambda: Version(percent, f"{plain(self.task_name)}: {plain(text)}"))
