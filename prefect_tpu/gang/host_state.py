"""What an attempt knows of each host while it runs, and what it leaves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from prefect_tpu.core.attempt import HostFacts
from prefect_tpu.core.evidence import HostEvidence
from prefect_tpu.core.gang import Member
from prefect_tpu.core.kinds import Kind
from prefect_tpu.core.messages import Exited, Progress, Raised, Returned


@dataclass(slots=True, eq=False)
class HostState:
    """What is known of one host process while the attempt runs."""

    member: Member
    agent: Any
    launched: bool = False
    entered: bool = False
    stopping: bool = False
    killed: bool = False
    cursor: int = 0
    dropped_lines: int = 0
    ended: bool = False
    cut: bool = False
    returned: Returned | None = None
    raised: Raised | None = None
    exited: Exited | None = None
    lost: str | None = None
    gone: bool = False
    preempted: bool = False
    notice: str = ""
    hung: bool = False
    first_step: int | None = None
    step: int | None = None
    restarts: bool = False
    reported_at: float | None = None
    buffers: list[Any] | None = None

    @property
    def result_bytes(self) -> int:
        return self.returned.result_bytes if self.returned is not None else 0

    @property
    def failed(self) -> bool:
        if self.raised is not None or self.lost is not None:
            return True
        return self.exited is not None and self.returned is None

    @property
    def fell(self) -> bool:
        """It has failed, so what others say from now on may come of that: not one that ends as it was told to."""
        ends_well = self.stopping and self.lost is None and (self.exited is None or self.exited.signal is None)
        return self.failed and not ends_well

    def facts(self, *, gone: bool = False) -> HostFacts:
        """What the decision whether to go on needs to know; `gone`: its slice is, as it was told."""
        returned = self.returned is not None
        if not self.failed:
            return HostFacts(returned=returned, entered=self.entered, gone=gone)
        evidence = self.evidence()
        return HostFacts(
            returned=returned,
            entered=self.entered,
            failed=True,
            failed_clearly=self.lost is not None or (self.raised is not None and not evidence.raised_by_peer_loss),
            left=self.left,
            left_to_resize=evidence.left_to_resize,
            gone=gone,
        )

    def progress(self, report: Progress, now: float) -> None:
        """The function has reported."""
        self.first_step, self.step, self.restarts = report.first_step, report.highest_step, report.restarts
        self.reported_at = now

    @property
    def over(self) -> bool:
        return not self.launched or self.exited is not None or self.lost is not None

    @property
    def left(self) -> bool:
        """By `runtime.leave()` or at a resize point."""
        return self.raised is not None and self.raised.left != ""

    def lose(self, why: str, *, preempted: bool = False) -> None:
        if self.lost is None:
            self.lost, self.preempted = why, preempted

    def evidence(self) -> HostEvidence:
        return HostEvidence(
            process_id=self.member.process_id,
            slice_index=self.member.slice_index,
            host_index=self.member.host_index,
            slice_name=self.member.slice_name,
            returned=self.buffers is not None or (self.returned is not None and not self.failed),
            raised=self.raised,
            exit_code=self.exited.exit_code if self.exited else None,
            signal=self.exited.signal if self.exited else None,
            stopped_by_us=self.stopping,
            lost=self.lost,
            gone=self.gone,
            preempted=self.preempted,
            notice=self.notice,
            hung=self.hung,
            first_step=self.first_step,
            step=self.step,
            restarts=self.restarts,
            last_stderr=self.exited.last_stderr if self.exited else (),
        )


@dataclass(frozen=True, slots=True)
class AttemptEnd:
    """What an attempt left.

    Attributes:
        outcome: set if it was ended from outside (CANCELLED, TIMED_OUT) or all results are here (SUCCEEDED); None: the
            evidence decides.
        evidence: one entry per host process, in process-id order.
        buffers: pickled results in process-id order, None for those not fetched.
        summaries: short text of each result, in process-id order.
        checkpoints: names of those that were there when it began; None if that was not told.
        launch_seconds, run_seconds: until the function was entered everywhere; from there to the end.
        drain_seconds: of these, from the first notice to the end.
    """

    outcome: Kind | None
    evidence: tuple[HostEvidence, ...]
    buffers: tuple[list[Any] | None, ...]
    summaries: tuple[str, ...]
    checkpoints: frozenset[str] | None
    launch_seconds: float
    run_seconds: float
    drain_seconds: float = 0.0
