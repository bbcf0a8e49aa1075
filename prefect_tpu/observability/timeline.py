"""One picture of a task run: a bar for each slice, its phases in colour, losses marked. SVG by matplotlib."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from prefect_tpu.core.gang import numeric_key
from prefect_tpu.core.ledger import Entry, Ledger
from prefect_tpu.core.text import visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_ROWS = 64
"""Slices in one picture; of more, those that were used last."""
MAX_SEGMENTS = 2_500
"""Coloured pieces in one picture; beyond that what is narrower than a bin is merged into its neighbours."""
MAX_NAME_CHARS = 24
WIDTH_INCHES = 9.0
ROW_INCHES = 0.24
FRAME_INCHES = 1.3
BAR = 0.72
"""Of the height of a row."""
PHASES = {
    "leasing": "#d0d4da",
    "launching": "#f2b84b",
    "running": "#2f9e63",
    "done again": "#a9d8be",
    "draining": "#e8743b",
}
"""In the order in which they are in the legend. "done again": running whose steps were lost."""
BOX = "□"
LOST_COLOUR = "#c92a2a"
HOUR_SECONDS, MINUTE_SECONDS = 3_600.0, 60.0


@dataclass(frozen=True, slots=True)
class Segment:
    """One phase of one slice, in seconds from the start of the run."""

    begin: float
    end: float
    phase: str


def draw(ledger: Ledger, title: str) -> str:
    """The picture as SVG text, with a white ground of its own; about 30 to 300 kB.

    Args:
        ledger: attempts that have ended; at least one of them has slices.
        title: above it.
    """
    from matplotlib.figure import Figure  # no pyplot: this is not the main thread

    rows = slice_names(ledger.entries)
    unit, unit_seconds = _unit(ledger.seconds)
    height = FRAME_INCHES + ROW_INCHES * len(rows)
    figure = Figure(figsize=(WIDTH_INCHES, height), facecolor="white", layout="constrained")
    axes = figure.subplots()
    marks = []
    for position, name in enumerate(rows):
        segments, losses = row(ledger.entries, name)
        width = max(1, MAX_SEGMENTS // len(rows))
        for one in merged(segments, ledger.seconds / width, width):
            axes.broken_barh(
                [(one.begin / unit_seconds, (one.end - one.begin) / unit_seconds)],
                (position - BAR / 2, BAR),
                facecolors=PHASES[one.phase],
            )
        marks += [(at / unit_seconds, position) for at in losses[-width:]]
    if marks:
        seconds, rows_of = zip(*marks, strict=True)
        axes.scatter(seconds, rows_of, marker="X", s=42, color=LOST_COLOUR, edgecolors="white", zorder=3)
    axes.set_xlim(0, max(ledger.seconds / unit_seconds, 1e-3))
    _dress(axes, rows, f"{unit} since {_clock(ledger.began_unix_seconds)}", title, bool(marks))
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    return text.getvalue()


def slice_names(entries: Sequence[Entry]) -> list[str]:
    """Those that were used last, in numeric order."""
    used: dict[str, None] = {}
    for entry in reversed(entries):
        used |= dict.fromkeys(entry.slices)
    return sorted(list(used)[:MAX_ROWS], key=numeric_key)


def row(entries: Sequence[Entry], name: str) -> tuple[list[Segment], list[float]]:
    """The phases of one slice, and when it was lost."""
    segments, losses = [], []
    for entry in entries:
        if name not in entry.slices:
            continue
        segments += list(_phases(entry))
        if entry.slices.index(name) in entry.lost_slices:
            losses.append(entry.ended)
    return segments, losses


def _phases(entry: Entry) -> Iterator[Segment]:
    at = entry.began
    running = entry.running + entry.draining
    again = min(entry.lost, running)
    # What was lost is the end of the running time; the drain is drawn over it.
    plan = [("leasing", entry.leasing), ("launching", entry.launching), ("running", running - again)]
    plan += [("done again", again - min(again, entry.draining)), ("draining", min(running, entry.draining))]
    end = entry.ended
    for phase, seconds in plan:
        length = min(seconds, end - at)
        if length > 0:
            yield Segment(at, at + length, phase)
            at += length


def merged(segments: Sequence[Segment], bin_seconds: float, limit: int) -> list[Segment]:
    """The segments as they are if there are few; else one colour, the one with most of the time, for each bin."""
    if len(segments) <= limit or bin_seconds <= 0:
        return list(segments)
    bins: dict[int, dict[str, float]] = {}
    for one in segments:
        for index in range(int(one.begin / bin_seconds), int(one.end / bin_seconds) + 1):
            inside = min(one.end, (index + 1) * bin_seconds) - max(one.begin, index * bin_seconds)
            if inside > 0:
                shares = bins.setdefault(index, {})
                shares[one.phase] = shares.get(one.phase, 0.0) + inside
    found: list[Segment] = []
    for index in sorted(bins):
        phase = max(bins[index], key=lambda name: bins[index][name])
        begin, end = index * bin_seconds, (index + 1) * bin_seconds
        if found and found[-1].phase == phase and found[-1].end >= begin - bin_seconds / 1000:
            found[-1] = Segment(found[-1].begin, end, phase)
        else:
            found.append(Segment(begin, end, phase))
    return found


def _dress(axes: Axes, rows: Sequence[str], label: str, title: str, losses: bool) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    axes.set_yticks(range(len(rows)), [_drawable(shortened(name)) for name in rows], fontsize=8, parse_math=False)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlabel(label, fontsize=8)
    axes.tick_params(axis="x", labelsize=8)
    axes.set_title(_drawable(title), fontsize=10, loc="left", parse_math=False)  # a $ is a $
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    handles: list[Any] = [Patch(color=colour, label=phase) for phase, colour in PHASES.items()]
    if losses:
        handles.append(Line2D([], [], marker="X", linestyle="", color=LOST_COLOUR, label="lost"))
    axes.figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=8, frameon=False)


def _unit(seconds: float) -> tuple[str, float]:
    if seconds >= 3 * HOUR_SECONDS:
        return "hours", HOUR_SECONDS
    return ("minutes", MINUTE_SECONDS) if seconds >= 3 * MINUTE_SECONDS else ("seconds", 1.0)


def _clock(unix_seconds: float) -> str:
    return f"{datetime.fromtimestamp(unix_seconds, UTC):%Y-%m-%d %H:%M:%S} UTC"


def _drawable(text: str) -> str:
    """With a box for what the font has no shape for: matplotlib draws one too, and warns of each on stderr."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    font = get_font(findfont(FontProperties()))
    return "".join(one if font.get_char_index(ord(one)) else BOX for one in text)


def shortened(name: str, limit: int = MAX_NAME_CHARS) -> str:
    """All of it visible, on one line, and its middle left out if it is too long."""
    name = visible(" ".join(name.split()))
    return name if len(name) <= limit else f"{name[: limit // 2 - 1]}…{name[-limit // 2 :]}"
