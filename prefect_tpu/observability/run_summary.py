"""The run summary: what happened to every attempt, what it cost, and a picture of it, in markdown."""

from __future__ import annotations

import base64
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from prefect_tpu.core.kinds import Kind
from prefect_tpu.core.ledger import Entry, Ledger, make_ledger
from prefect_tpu.core.report import AttemptReport
from prefect_tpu.observability import timeline
from prefect_tpu.observability.markdown import MAX_NAME_CHARS, plain
from prefect_tpu.observability.timeline import shortened

log = logging.getLogger("prefect_tpu.artifacts")

MAX_ATTEMPTS = 60
"""Rows of the newest attempts; earlier ones are counted on one line."""
MAX_NAMED_SLICES = 4
MAX_PICTURE_BYTES = 400_000
"""Of SVG; a bigger picture is left out."""
PICTURE_FROM_SECONDS = 10.0
"""A run that succeeded at once within this time needs no picture."""
LEDGER_COLUMNS = ("Attempt", "Slices", "Outcome", "Culprit", "Charged to", "Steps")
TIME_COLUMNS = ("Attempt", "Leasing", "Launching", "Running", "Draining", "Lost")
"""A table of their own: Prefect's page has no room for more beside each other."""
_MINUTE, _HOUR = 60.0, 3_600.0


@dataclass(frozen=True, slots=True)
class RunFacts:
    """What a summary is made of.

    Attributes:
        task_name: of the task.
        reports: of all attempts that have ended.
        ended: whether there will be no other attempt.
        budgets: what is spent, in words.
    """

    task_name: str
    reports: tuple[AttemptReport, ...]
    ended: bool
    budgets: str


def render(facts: RunFacts) -> str:
    """The whole summary as markdown, at most about 600 kB. Safe for whatever names and messages contain."""
    ledger = make_ledger(facts.reports)
    parts = [_headline(facts, ledger), _table(ledger.entries), _picture(facts, ledger), _notes(ledger)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _headline(facts: RunFacts, ledger: Ledger) -> str:
    last = ledger.entries[-1]
    count = len(ledger.entries)
    attempts = f"{count} attempt{'' if count == 1 else 's'}"
    status = f"{last.kind.value} after {attempts}" if facts.ended else f"{attempts} ended, the next one follows"
    lines = [f"## {plain(facts.task_name, MAX_NAME_CHARS)}: {status}", ""]
    goodput = ledger.goodput
    steps = f"step {last.last_step}" if last.last_step is not None else "no steps reported"
    again = f", {ledger.lost_steps} done again" if ledger.lost_steps else ""
    share = "unknown" if goodput is None else f"{goodput:.0%}"
    cells = (f"**{share}**", _seconds(ledger.seconds), steps + again, plain(facts.budgets))
    lines += _rows(("Goodput", "Time", "Steps", "Budgets used"), [cells])
    return "\n".join(lines)


def _table(entries: Sequence[Entry]) -> str:
    shown = entries[-MAX_ATTEMPTS:]
    lines = []
    if earlier := entries[: -len(shown)]:
        counts = ", ".join(f"{number} {kind}" for kind, number in Counter(one.kind.value for one in earlier).items())
        lines += [f"Attempts {earlier[0].number} to {earlier[-1].number} are not in the table: {counts}.", ""]
    lines += _rows(LEDGER_COLUMNS, [_ledger_cells(entry) for entry in shown])
    lines += ["", *_rows(TIME_COLUMNS, [_time_cells(entry) for entry in shown])]
    causes = [entry for entry in shown if entry.cause]
    if causes:
        lines += ["", "**Causes**", ""]
        lines += [f"- attempt {entry.number}: {plain(entry.cause)}" for entry in causes]
    return "\n".join(lines)


def _rows(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (columns, ["---"] * len(columns), *rows)]


def _ledger_cells(entry: Entry) -> list[str]:
    steps = ""
    if entry.last_step is not None:
        steps = f"{entry.first_step} to {entry.last_step}" + (f", {entry.lost_steps} lost" if entry.lost_steps else "")
    more = "…" if len(entry.culprits) > MAX_NAMED_SLICES else ""
    return [
        str(entry.number),
        _slices(entry),
        entry.kind.value,
        plain(", ".join(entry.culprits[:MAX_NAMED_SLICES]) + more),
        "" if entry.charge == "nothing" else entry.charge,
        steps,
    ]


def _time_cells(entry: Entry) -> list[str]:
    times = (entry.leasing, entry.launching, entry.running, entry.draining, entry.lost)
    return [str(entry.number), *(_seconds(value) for value in times)]


def _slices(entry: Entry) -> str:
    names = [plain(name, MAX_NAME_CHARS) for name in entry.slices]
    before = "" if entry.slices_before is None else f"{entry.slices_before} → "
    if len(names) <= MAX_NAMED_SLICES:
        return (f"{before}{len(names)}: " if before else "") + ", ".join(names)
    lost = [names[index] for index in entry.lost_slices[: MAX_NAMED_SLICES - 2]]
    return f"{before}{len(names)}: {names[0]} … {names[-1]}" + (f", lost {', '.join(lost)}" if lost else "")


def _picture(facts: RunFacts, ledger: Ledger) -> str:
    only = ledger.entries[0]
    quick = len(ledger.entries) == 1 and only.kind is Kind.SUCCEEDED and ledger.seconds < PICTURE_FROM_SECONDS
    if quick or not any(entry.slices for entry in ledger.entries):
        return ""
    try:
        svg = timeline.draw(ledger, f"Slices of {shortened(facts.task_name, MAX_NAME_CHARS)}").encode()
    except Exception as error:  # noqa: BLE001 - the table is worth having without it
        log.debug("no picture of the slices: %r", error)
        return ""
    if len(svg) > MAX_PICTURE_BYTES:
        return f"The picture of the slices would be {len(svg) / 1e6:.1f} MB; it is left out."
    hidden = len({name for entry in ledger.entries for name in entry.slices}) - timeline.MAX_ROWS
    note = (
        f"\n\nThe {timeline.MAX_ROWS} slices that were used last; {hidden} others are not shown." if hidden > 0 else ""
    )
    return f"![Slices over time](data:image/svg+xml;base64,{base64.b64encode(svg).decode()}){note}"


def _notes(ledger: Ledger) -> str:
    text = (
        "Goodput is the share of slice-seconds, from the start of the first attempt to the end of the last, that were "
        "spent on steps which count: a later attempt went on from them, or the attempt succeeded. Lost is running time "
        "without such steps; it is known when the next attempt reports its first step."
    )
    if all(entry.last_step is None for entry in ledger.entries) and len(ledger.entries) > 1:
        text += (
            " The function reports no steps (`runtime.report(step=...)`), so all of an attempt that did not succeed "
            "counts as lost."
        )
    return f"*{text}*"


def _seconds(value: float) -> str:
    if value < 0.05:
        return ""
    if value < _MINUTE:
        return f"{value:.1f} s"
    if value < _HOUR:
        return f"{int(value // _MINUTE)} min {value % _MINUTE:.0f} s"
    return f"{int(value // _HOUR)} h {value % _HOUR / _MINUTE:.0f} min"
