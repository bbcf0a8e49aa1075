"""What is kept of an attempt after it has ended: the ledger's entry, and the rows of its table."""

from __future__ import annotations

from dataclasses import dataclass

from prefect_tpu.core.evidence import HostEvidence
from prefect_tpu.core.gang import Gang
from prefect_tpu.core.kinds import KINDS, Kind
from prefect_tpu.core.verdict import Verdict

MAX_SUMMARY_CHARS = 200


@dataclass(frozen=True, slots=True)
class AttemptReport:
    """One attempt, ended.

    Attributes:
        number: counted from 1.
        gang: who took part; None if no slices were found.
        evidence: one entry per host process, in process-id order.
        verdict: why it ended.
        lease_seconds, launch_seconds, run_seconds: waiting for slices; from there until the function was
            entered on every host; from there to the end.
        drain_seconds: of these, from the first notice to the end.
        began_unix_seconds: when it began to look for slices.
        summaries: short text of each host's result, in process-id order.
        budgets: what the task run has spent by then, in words.
    """

    number: int
    gang: Gang | None
    evidence: tuple[HostEvidence, ...]
    verdict: Verdict
    lease_seconds: float
    launch_seconds: float
    run_seconds: float
    drain_seconds: float = 0.0
    began_unix_seconds: float = 0.0
    summaries: tuple[str, ...] = ()
    budgets: str = ""

    @classmethod
    def without_slices(cls, number: int, cause: str, began_unix_seconds: float, now: float) -> AttemptReport:
        """An attempt that found no slices."""
        return cls(
            number=number,
            gang=None,
            evidence=(),
            verdict=Verdict(Kind.UNPROVISIONED, cause),
            lease_seconds=now - began_unix_seconds,
            launch_seconds=0.0,
            run_seconds=0.0,
            began_unix_seconds=began_unix_seconds,
        )

    @property
    def step(self) -> int | None:
        """The step that every host that reported one has reached."""
        return min((host.step for host in self.evidence if host.step is not None), default=None)

    @property
    def first_step(self) -> int | None:
        """The step that it went on from: the first that was reported."""
        return min((host.first_step for host in self.evidence if host.first_step is not None), default=None)

    @property
    def lost_slices(self) -> tuple[int, ...]:
        """Indices of the slices that were taken away or of which a host was lost."""
        guilty = set(self.verdict.culprits)
        return tuple(
            sorted(
                {
                    host.slice_index
                    for host in self.evidence
                    if host.process_id in guilty and (host.lost is not None or host.notice or host.preempted)
                }
            )
        )

    def rows(self) -> list[dict[str, str | int | float]]:
        """One row per slice, JSON-able, for a table artifact."""
        if self.gang is None:
            return []
        return [self._row(index) for index in range(self.gang.num_slices)]

    def _row(self, slice_index: int) -> dict[str, str | int | float]:
        assert self.gang is not None
        one = self.gang.slices[slice_index]
        mine = [host for host in self.evidence if host.slice_index == slice_index]
        outcome = self._outcome(mine)
        first_culprit = next(iter(self.verdict.culprits), None)
        guilty = any(host.process_id in self.verdict.culprits for host in mine)
        first = slice_index * self.gang.hosts_per_slice
        result = self.summaries[first] if len(self.summaries) > first else ""
        return {
            "attempt": self.number,
            "slice": slice_index,
            "name": one.name,
            "hosts": len(one.hosts),
            "outcome": outcome,
            "charged to": self.verdict.charge if first_culprit in [host.process_id for host in mine] else "",
            "step": self._step(mine),
            "lease seconds": round(self.lease_seconds, 2),
            "launch seconds": round(self.launch_seconds, 2),
            "run seconds": round(self.run_seconds, 2),
            "cause": self.verdict.cause if guilty else "",
            "result": result[:MAX_SUMMARY_CHARS],
        }

    def _step(self, hosts: list[HostEvidence]) -> int | str:
        steps = [host.step for host in hosts if host.step is not None]
        return min(steps) if steps else ""

    def _outcome(self, hosts: list[HostEvidence]) -> str:
        if any(host.process_id in self.verdict.culprits for host in hosts):
            return self.verdict.kind.value
        if KINDS[self.verdict.kind].of_all_slices:
            return self.verdict.kind.value
        return "RETURNED" if all(host.returned for host in hosts) else "COLLATERAL"
