"""What a benchmark found: rows, JSON, tables, and a plot."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

REFERENCE = "prefect_tpu"
TITLES = {
    "first": "first call, up to the first collective on all hosts",
    "warm": "the same call again",
    "noop": "a task that does nothing, from submit to result",
    "host_killed": "a host is lost: until the function runs on all hosts again",
    "verdict": "a host is lost: until the driver says what happened",
    "user_error": "the function raises on one host: until it runs on all hosts again",
}


@dataclass(slots=True)
class Row:
    """One system in one case. `skipped` says why it has no runs; both are set if it failed half way."""

    case: str
    system: str
    seconds: list[float] = field(default_factory=list)
    phases: list[dict[str, float]] = field(default_factory=list)
    skipped: str = ""

    @property
    def median(self) -> float:
        """Of all runs."""
        return statistics.median(self.seconds)

    def ratio(self, rows: Sequence[Row]) -> float | None:
        """How many times as long as prefect_tpu."""
        reference = next((one for one in rows if (one.case, one.system) == (self.case, REFERENCE)), None)
        return self.median / reference.median if reference and reference.seconds and self.seconds else None

    def as_json(self, rows: Sequence[Row]) -> dict[str, Any]:
        """JSON-able."""
        found: dict[str, Any] = {"case": self.case, "system": self.system}
        if self.skipped:
            found["skipped"] = self.skipped
        if self.seconds:
            found |= {
                "seconds": self.seconds,
                "median_seconds": self.median,
                "ratio_to_prefect_tpu": self.ratio(rows),
            }
        if self.phases:
            found["phases"] = self.median_phases()
        return found

    def median_phases(self) -> dict[str, float]:
        """Of every phase, over the runs."""
        return {name: statistics.median(one[name] for one in self.phases) for name in self.phases[0]}


def beyond_thread_pool_seconds(rows: Sequence[Row]) -> float | None:
    """What a no-op gang costs beyond a no-op on Prefect's own runner; None if one of them was not measured."""
    noops = {row.system: row.median for row in rows if row.case == "noop" and row.seconds}
    if REFERENCE not in noops or "thread_pool" not in noops:
        return None
    return noops[REFERENCE] - noops["thread_pool"]


def print_tables(title: str, rows: Sequence[Row], memory: Sequence[dict[str, Any]], console: Console) -> None:
    """Times, phases, memory."""
    table = Table(title=title)
    for name in ("case", "system"):
        table.add_column(name)
    for name in ("median s", "min .. max s", "runs", "x prefect_tpu"):
        table.add_column(name, justify="right")
    for row in rows:
        if not row.seconds:
            table.add_row(row.case, row.system, "skipped", "", "0", "")
            continue
        ratio = row.ratio(rows)
        table.add_row(
            row.case,
            row.system,
            f"{row.median:.3f}",
            f"{min(row.seconds):.3f} .. {max(row.seconds):.3f}",
            str(len(row.seconds)) + (" (then failed)" if row.skipped else ""),
            "" if ratio is None else f"{ratio:.2f}",
            end_section=row.case != getattr(_after(rows, row), "case", row.case),
        )
    console.print(table)
    for row in rows:
        if row.skipped:
            console.print(f"{row.system}, {row.case}: {row.skipped.splitlines()[0]}", markup=False, soft_wrap=True)
    beyond = beyond_thread_pool_seconds(rows)
    if beyond is not None:
        console.print(f"A no-op gang takes {beyond:.3f} s beyond a no-op on ThreadPoolTaskRunner.")
    for row in rows:
        if row.phases and row.phases[0]:
            parts = ", ".join(f"{name} {seconds:.2f}" for name, seconds in row.median_phases().items())
            console.print(f"phases of {row.system}, {row.case} (median s): {parts}", soft_wrap=True)
    for host in memory:
        console.print(
            f"idle memory on {host['slice']} host {host['host']} (MiB, pss / rss): "
            f"agent {_mib(host, 'agent_pss_bytes')} / {_mib(host, 'agent_rss_bytes')}, "
            f"zygote {_mib(host, 'zygote_pss_bytes')} / {_mib(host, 'zygote_rss_bytes')}",
            soft_wrap=True,
        )


def _after(rows: Sequence[Row], row: Row) -> Row | None:
    following = list(rows).index(row) + 1
    return rows[following] if following < len(rows) else None


def _mib(host: dict[str, Any], name: str) -> str:
    return f"{host[name] / 1024**2:.0f}"


def plot(rows: Sequence[Row], path: Path, note: str) -> None:
    """A bar for every row that has runs, one panel per case, seconds on a logarithmic axis."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    cases = [case for case in TITLES if any(row.case == case and row.seconds for row in rows)]
    shown = {case: [row for row in rows if row.case == case and row.seconds] for case in cases}
    heights = [len(shown[case]) + 1 for case in cases]
    figure = Figure(figsize=(9, 1.0 + 0.45 * sum(heights)), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(cases), 1, squeeze=False, sharex=True, height_ratios=heights)[:, 0]
    everything = [value for row in rows for value in row.seconds]
    for case, panel in zip(cases, panels, strict=True):
        bars = shown[case][::-1]
        medians = [row.median for row in bars]
        spread = [
            [row.median - min(row.seconds) for row in bars],
            [max(row.seconds) - row.median for row in bars],
        ]
        colors = ["#1f6feb" if row.system == REFERENCE else "#9aa4b2" for row in bars]
        panel.barh([row.system for row in bars], medians, xerr=spread, color=colors, height=0.6, capsize=3)
        for index, row in enumerate(bars):
            ratio = row.ratio(rows)
            text = f"{row.median:.2f} s" if row.median >= 1 else f"{row.median:.3f} s"
            if ratio is not None and row.system != REFERENCE:
                text += f"  ({ratio:.1f}x)" if ratio >= 1 else f"  ({ratio:.2f}x)"
            panel.annotate(text, (max(row.seconds), index), xytext=(6, 0), textcoords="offset points", va="center")
        panel.set_xscale("log")
        panel.set_title(TITLES[case], loc="left", fontsize=11)
        panel.grid(axis="x", which="major", alpha=0.3)
        panel.set_axisbelow(True)
        for side in ("top", "right"):
            panel.spines[side].set_visible(False)
    panels[-1].set_xlim(min(everything) / 2, max(everything) * 5)  # room for the words beside the longest bar
    panels[-1].xaxis.set_major_formatter("{x:g}")
    panels[-1].set_xlabel(f"seconds, logarithmic; median, with the shortest and the longest run\n{note}")
    figure.savefig(path, dpi=130)
