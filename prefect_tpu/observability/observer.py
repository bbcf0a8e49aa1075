"""Takes in what happens to a gang and puts it where people see it: logs, progress, events, artifacts."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from prefect_tpu.core.gang import Gang, Member
from prefect_tpu.core.messages import Carried, Progress
from prefect_tpu.core.report import AttemptReport
from prefect_tpu.core.text import cut
from prefect_tpu.observability import artifacts, states
from prefect_tpu.observability.artifacts import RunArtifacts
from prefect_tpu.observability.carried import CarriedItems
from prefect_tpu.observability.events import GangEvents
from prefect_tpu.observability.logs import RunLog
from prefect_tpu.observability.progress import RunProgress
from prefect_tpu.observability.slice_bars import SliceBars

if TYPE_CHECKING:
    from prefect.client.schemas.objects import TaskRun

log = logging.getLogger("prefect_tpu.observer")


SETTLE_SECONDS = 6.0
"""How long the end of a flow that is cancelled or fails may wait until Prefect has states, and artifacts."""


def settle() -> None:
    """Wait, not for long, until Prefect has what waits for it; the process may be ended by a signal right after."""
    states.flush(SETTLE_SECONDS)
    artifacts.flush(SETTLE_SECONDS)


class RunObserver:
    """For one task run, over all its attempts. Nothing here waits for Prefect's API, raises, or fails a run."""

    def __init__(self, run_log: RunLog, task_name: str, task_run: TaskRun, *, slice_bars: bool) -> None:
        """`slice_bars`: a nested task run for each slice of each attempt, which gets the logs of its hosts."""
        self._log = run_log
        self.log, self.dropped, self.say, self.flush = run_log.log, run_log.dropped, run_log.say, run_log.flush
        self._artifacts = RunArtifacts(task_name, task_run.id, task_run.flow_run_id)
        self._carried = CarriedItems(task_run.id, task_run.flow_run_id)
        self._events = GangEvents(task_run.id, task_run.name, task_run.flow_run_id)
        self._bars = SliceBars(task_run) if slice_bars else None
        if self._bars is not None:
            run_log.extra_of = self._bars.log_extra
        self._progress = RunProgress(self._artifacts.progress)
        self._complained = False
        self._said_ended = True

    # -- while an attempt runs

    def waiting(self, number: int, text: str) -> None:
        """An attempt has no slices yet, and why."""
        self._log.say(text)
        self._try(lambda: self._progress.waiting(number, text))

    def started(self, number: int, gang: Gang) -> None:
        """An attempt has its slices."""
        bars = self._bars
        if bars is not None:
            self._try(lambda: bars.started(number, gang))
        self._try(lambda: self._events.started(number, gang))
        self._try(lambda: self._progress.started(number, gang))

    def entered(self, member: Member) -> None:  # noqa: ARG002 - the protocol has it
        """A host is in the function."""
        self._try(self._progress.entered)

    def progress(self, member: Member, report: Progress) -> None:
        """A host has reported."""
        self._log.progress(member, report)
        if member.process_id == 0:
            self._try(lambda: self._progress.progress(report))

    def carried(self, member: Member, item: Carried) -> None:
        """A host has something for Prefect."""
        try:
            self._carried.take(item)
        except Exception as error:  # noqa: BLE001 - observability must never fail a run
            self._log.logger.warning("[%s] Prefect does not take its %s: %s", member.label, item.kind, cut(repr(error)))

    # -- between attempts

    def ended(self, reports: Sequence[AttemptReport], *, again: bool, budgets: str) -> None:
        """An attempt has ended.

        Args:
            reports: of all attempts so far.
            again: whether another one is expected to follow.
            budgets: what is spent, in words.
        """
        report, bars = reports[-1], self._bars
        self._said_ended = not again
        if bars is not None:
            self._try(lambda: bars.finished(report))
        self._try(lambda: self._artifacts.attempts(reports, ended=not again, budgets=budgets))
        self._try(lambda: self._progress.ended(report.verdict.kind, again=again))
        self._try(lambda: self._events.finished(report))

    def closed(self, reports: Sequence[AttemptReport], budgets: str) -> None:
        """No attempt will follow, whatever was expected."""
        if not self._said_ended and reports:
            self._said_ended = True
            self._try(lambda: self._artifacts.attempts(reports, ended=True, budgets=budgets))
            self._try(lambda: self._progress.ended(reports[-1].verdict.kind, again=False))

    def _try(self, do: Callable[[], None]) -> None:
        try:
            do()
        except Exception as error:  # noqa: BLE001 - observability must never fail a run
            log.log(logging.DEBUG if self._complained else logging.WARNING, "could not show what happens: %r", error)
            self._complained = True
