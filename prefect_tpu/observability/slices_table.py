"""The slices table: its columns, and what stands in them. One row for each slice of each attempt.

Prefect's page takes the text of a cell for markdown, with pictures from elsewhere; so names and messages are escaped.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from prefect_tpu.core.evidence import HostEvidence
from prefect_tpu.core.gang import Gang
from prefect_tpu.core.kinds import KINDS
from prefect_tpu.core.report import AttemptReport
from prefect_tpu.observability.markdown import plain

MAX_NAME_CHARS = 200
MAX_CAUSE_CHARS = 1_000
MAX_RESULT_CHARS = 200
MAX_ROWS = 1_000
"""Newest rows kept in one table: 500 attempts of two slices."""
MAX_TABLE_BYTES = 1_000_000
"""Of all of it, as JSON: it is made, sent and stored anew after each attempt."""

Row = dict[str, str | int | float]


def table_of(reports: Sequence[AttemptReport]) -> tuple[str, int]:
    """The newest rows of all attempts as JSON, as many as there is room for; and how many older ones are left out."""
    kept: list[str] = []
    room, there_are = MAX_TABLE_BYTES, sum(0 if one.gang is None else one.gang.num_slices for one in reports)
    for row in (row for report in reversed(reports) for row in reversed(rows_of(report))):
        text = json.dumps(row)
        room -= len(text) + 2
        if room < 0 or len(kept) == MAX_ROWS:
            break
        kept.append(text)
    return f"[{', '.join(reversed(kept))}]", there_are - len(kept)


def rows_of(report: AttemptReport) -> list[Row]:
    """One row for each slice, JSON-able; none for an attempt that found no slices."""
    gang = report.gang
    return [] if gang is None else [_row(report, gang, index) for index in range(gang.num_slices)]


def _row(report: AttemptReport, gang: Gang, slice_index: int) -> Row:
    one = gang.slices[slice_index]
    mine = [host for host in report.evidence if host.slice_index == slice_index]
    culprits = report.verdict.culprits
    first = slice_index * gang.hosts_per_slice
    result = report.summaries[first] if len(report.summaries) > first else ""
    return {
        "attempt": report.number,
        "slice": slice_index,
        "name": plain(one.name, MAX_NAME_CHARS),
        "hosts": len(one.hosts),
        "outcome": _outcome(report, mine),
        "charged to": report.verdict.charge if any(host.process_id in culprits[:1] for host in mine) else "",
        "step": min((host.step for host in mine if host.step is not None), default=""),
        "lease seconds": round(report.lease_seconds, 2),
        "launch seconds": round(report.launch_seconds, 2),
        "run seconds": round(report.run_seconds, 2),
        "cause": plain(report.verdict.cause, MAX_CAUSE_CHARS)
        if any(host.process_id in culprits for host in mine)
        else "",
        "result": plain(result, MAX_RESULT_CHARS),
    }


def _outcome(report: AttemptReport, hosts: Sequence[HostEvidence]) -> str:
    kind = report.verdict.kind
    if KINDS[kind].of_all_slices or any(host.process_id in report.verdict.culprits for host in hosts):
        return kind.value
    return "RETURNED" if all(host.returned for host in hosts) else "COLLATERAL"
