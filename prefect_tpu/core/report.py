"""What is kept of an attempt after it has ended."""

from __future__ import annotations

from dataclasses import dataclass

from prefect_tpu.core.evidence import HostEvidence
from prefect_tpu.core.gang import Gang
from prefect_tpu.core.kinds import Kind
from prefect_tpu.core.text import CleanText
from prefect_tpu.core.verdict import Verdict


@dataclass(frozen=True, slots=True)
class AttemptReport(CleanText):
    """One attempt, ended.

    Attributes:
        number: counted from 1.
        gang: who took part; None if no slices were found.
        evidence: one entry per host process, in process-id order.
        verdict: why it ended.
        lease_seconds, launch_seconds, run_seconds: waiting for slices; from there until the function was
            entered on every host; from there to the end.
        drain_seconds: of these, from the first notice to the end.
        began_seconds: when it began to look for slices, on the driver's monotonic clock, the same for all attempts.
        began_unix_seconds: the same as a time of day, for people: it may jump, and nothing is counted from it.
        summaries: short text of each host's result, in process-id order.
        budgets: what the task run has spent by then, in words.
        found_checkpoint: when it began, `checkpoint_dir` had a finished checkpoint that no attempt before has found:
            the one before has made it, or another before that. None if that was not told.
    """

    number: int
    gang: Gang | None
    evidence: tuple[HostEvidence, ...]
    verdict: Verdict
    lease_seconds: float
    launch_seconds: float
    run_seconds: float
    drain_seconds: float = 0.0
    began_seconds: float = 0.0
    began_unix_seconds: float = 0.0
    summaries: tuple[str, ...] = ()
    budgets: str = ""
    found_checkpoint: bool | None = None

    @classmethod
    def without_slices(
        cls, number: int, cause: str, began_seconds: float, began_unix_seconds: float, now_seconds: float
    ) -> AttemptReport:
        """An attempt that found no slices; `now_seconds` is on the monotonic clock."""
        return cls(
            number=number,
            gang=None,
            evidence=(),
            verdict=Verdict(Kind.UNPROVISIONED, cause),
            lease_seconds=now_seconds - began_seconds,
            launch_seconds=0.0,
            run_seconds=0.0,
            began_seconds=began_seconds,
            began_unix_seconds=began_unix_seconds,
        )

    @property
    def step(self) -> int | None:
        """The step that every host that reported one has reached."""
        return min((host.step for host in self.evidence if host.step is not None), default=None)

    @property
    def restarts(self) -> bool:
        """The function counts its steps anew now and then, in each epoch perhaps: they do not say how far it got."""
        return any(host.restarts for host in self.evidence)

    @property
    def first_step(self) -> int | None:
        """The step that it went on from: the first that was reported."""
        return min((host.first_step for host in self.evidence if host.first_step is not None), default=None)

    @property
    def crashed(self) -> bool:
        """The function did what is no Exception, on the first host that is to blame for the end."""
        raised = next((host.raised for host in self.evidence if host.process_id in self.verdict.culprits), None)
        return self.verdict.kind is Kind.USER_ERROR and raised is not None and raised.crash

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
