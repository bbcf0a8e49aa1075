"""The slices table: its columns, and what stands in them. One row for each slice of each attempt."""

from __future__ import annotations

from collections.abc import Sequence

from prefect_tpu.core.evidence import HostEvidence
from prefect_tpu.core.gang import Gang
from prefect_tpu.core.kinds import KINDS
from prefect_tpu.core.report import AttemptReport

MAX_RESULT_CHARS = 200

Row = dict[str, str | int | float]


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
        "name": one.name,
        "hosts": len(one.hosts),
        "outcome": _outcome(report, mine),
        "charged to": report.verdict.charge if any(host.process_id in culprits[:1] for host in mine) else "",
        "step": min((host.step for host in mine if host.step is not None), default=""),
        "lease seconds": round(report.lease_seconds, 2),
        "launch seconds": round(report.launch_seconds, 2),
        "run seconds": round(report.run_seconds, 2),
        "cause": report.verdict.cause if any(host.process_id in culprits for host in mine) else "",
        "result": result[:MAX_RESULT_CHARS],
    }


def _outcome(report: AttemptReport, hosts: Sequence[HostEvidence]) -> str:
    kind = report.verdict.kind
    if KINDS[kind].of_all_slices or any(host.process_id in report.verdict.culprits for host in hosts):
        return kind.value
    return "RETURNED" if all(host.returned for host in hosts) else "COLLATERAL"
