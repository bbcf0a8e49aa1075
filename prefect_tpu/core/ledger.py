"""What all attempts of a task run came to: seconds of each phase, steps lost, goodput."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from prefect_tpu.core.kinds import Charge, Kind
from prefect_tpu.core.report import AttemptReport


@dataclass(frozen=True, slots=True)
class Entry:
    """One attempt. Times in seconds.

    Attributes:
        number: counted from 1.
        slices: names, in gang order.
        lost_slices: indices of those that were lost in it.
        kind: what it ended with.
        culprits: labels of the hosts at the root of it.
        charge: the budget that it was charged to.
        cause: one sentence, "" for success.
        began: from the start of the first attempt.
        leasing, launching, running, draining: its phases; draining is the end of running, from the first notice.
        lost: of running, what a later attempt had to do again, or nobody used.
        first_step, last_step: reported, None if none was.
        lost_steps: that a later attempt did again; None if that is not known (yet).
        slices_before: how many the attempt before had, if it was another number; else None.
    """

    number: int
    slices: tuple[str, ...]
    lost_slices: tuple[int, ...]
    kind: Kind
    culprits: tuple[str, ...]
    charge: Charge
    cause: str
    began: float
    leasing: float
    launching: float
    running: float
    draining: float
    lost: float
    first_step: int | None
    last_step: int | None
    lost_steps: int | None
    slices_before: int | None = None

    @property
    def ended(self) -> float:
        """From the start of the first attempt."""
        return self.began + self.leasing + self.launching + self.running + self.draining


@dataclass(frozen=True, slots=True)
class Ledger:
    """All attempts of one task run that have ended.

    Attributes:
        entries: in order.
        began_unix_seconds: start of the first attempt, as a time of day; all other times are counted from it by a
            clock that does not jump.
    """

    entries: tuple[Entry, ...]
    began_unix_seconds: float

    @property
    def seconds(self) -> float:
        """From the start of the first attempt to the end of the last."""
        return max((entry.ended for entry in self.entries), default=0.0)

    @property
    def goodput(self) -> float | None:
        """Share of slice-seconds in useful steps, 0 to 1; waiting counts too. None before anything has run.

        The slice-seconds are those of each attempt's own number of slices, until the next one begins.

        A step is useful if a later attempt went on from it, or if the attempt that did it succeeded. An attempt
        whose function reports no steps is useful if it succeeded.
        """
        most = max((len(entry.slices) for entry in self.entries), default=0)
        ends = [*(entry.began for entry in self.entries[1:]), self.seconds]
        there_were = sum(
            max(0.0, end - entry.began) * (len(entry.slices) or most)
            for entry, end in zip(self.entries, ends, strict=False)
        )
        if not there_were:
            return None
        useful = sum(
            (entry.running + entry.draining - entry.lost) * len(entry.slices) for entry in self.entries if entry.slices
        )
        return min(1.0, max(0.0, useful / there_were))  # sums of floats

    @property
    def lost_steps(self) -> int:
        """Of all attempts, as far as it is known."""
        return sum(entry.lost_steps or 0 for entry in self.entries)


def make_ledger(reports: Sequence[AttemptReport]) -> Ledger:
    """Join the reports of all attempts, in order.

    What an attempt lost shows only in the next one that reports a step: it went on from the first step that it
    reported. Until then all of it counts as lost. Where steps begin anew now and then, they do not say that: an
    attempt is useful if a later one has found a checkpoint that it has made.
    """
    if not reports:
        return Ledger((), 0.0)
    start, size = reports[0].began_seconds, 0
    sizes_before: list[int | None] = []
    for report in reports:
        now = report.gang.num_slices if report.gang is not None else size
        sizes_before.append(size if size and now != size else None)
        size = now
    restarts = any(report.restarts for report in reports)
    went_on_from: int | None = None
    found_later = False
    backwards = []
    for report in reversed(reports):
        entry = _entry(report, start, None if restarts else went_on_from)
        if restarts and found_later:
            entry = replace(entry, lost=0.0)
        backwards.append(entry)
        if report.found_checkpoint is not None:
            found_later = report.found_checkpoint
        if report.first_step is not None:
            # Two losses in a row: what an earlier attempt did is of use only up to where a later one went on from.
            went_on_from = report.first_step if went_on_from is None else min(went_on_from, report.first_step)
    entries = zip(reversed(backwards), sizes_before, strict=True)
    return Ledger(
        tuple(replace(entry, slices_before=before) for entry, before in entries), reports[0].began_unix_seconds
    )


def _entry(report: AttemptReport, start: float, went_on_from: int | None) -> Entry:
    first, last = report.first_step, report.step
    lost_steps: int | None = None
    lost = report.run_seconds
    if report.verdict.kind is Kind.SUCCEEDED:
        lost, lost_steps = 0.0, None if last is None else 0
    elif first is not None and last is not None and went_on_from is not None:
        lost_steps = max(0, last - max(went_on_from, first))
        lost = report.run_seconds * (lost_steps / (last - first) if last > first else 1.0)
    guilty = set(report.verdict.culprits)
    drain = min(report.drain_seconds, report.run_seconds)
    return Entry(
        number=report.number,
        slices=tuple(one.name for one in report.gang.slices) if report.gang is not None else (),
        lost_slices=report.lost_slices,
        kind=report.verdict.kind,
        culprits=tuple(host.label for host in report.evidence if host.process_id in guilty),
        charge=report.verdict.charge,
        cause=report.verdict.cause,
        began=max(0.0, report.began_seconds - start),
        leasing=report.lease_seconds,
        launching=report.launch_seconds,
        running=report.run_seconds - drain,
        draining=drain,
        lost=lost,
        first_step=first,
        last_step=last,
        lost_steps=lost_steps,
    )
