"""One attempt as a state machine: PENDING, LEASING, LAUNCHING, RUNNING, (DRAINING,) STOPPING, ENDED."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

from prefect_tpu.core.kinds import Kind


class Phase(StrEnum):
    """Where an attempt is."""

    PENDING = "PENDING"
    LEASING = "LEASING"
    LAUNCHING = "LAUNCHING"
    RUNNING = "RUNNING"
    DRAINING = "DRAINING"
    STOPPING = "STOPPING"
    ENDED = "ENDED"


_NEXT = {
    Phase.PENDING: (Phase.LEASING,),
    Phase.LEASING: (Phase.LAUNCHING,),
    Phase.LAUNCHING: (Phase.RUNNING,),
    Phase.RUNNING: (),
    Phase.DRAINING: (),
    Phase.STOPPING: (Phase.ENDED,),
    Phase.ENDED: (),
}


@dataclass(frozen=True, slots=True)
class Attempt:
    """An attempt's state. Every method returns the next one and refuses what cannot follow.

    Attributes:
        number: counted from 1.
        phase: where it is.
        outcome: what it ends with, known from STOPPING on; decided once.
        deadline_seconds: while DRAINING, when the host goes away, on the caller's clock.
    """

    number: int
    phase: Phase = Phase.PENDING
    outcome: Kind | None = None
    deadline_seconds: float | None = None

    def lease(self) -> Attempt:
        """Start to look for slices."""
        return self._go(Phase.LEASING)

    def launch(self) -> Attempt:
        """Slices are reserved; start the host processes."""
        return self._go(Phase.LAUNCHING)

    def run(self) -> Attempt:
        """Every host process is up."""
        return self._go(Phase.RUNNING)

    def notice(self, deadline_seconds: float) -> Attempt:
        """A host will go away. The earliest deadline of several wins; a notice never undoes an outcome."""
        if self.phase not in (Phase.RUNNING, Phase.DRAINING):
            return self
        earliest = min(deadline_seconds, self.deadline_seconds or deadline_seconds)
        return replace(self, phase=Phase.DRAINING, deadline_seconds=earliest)

    def stop(self, outcome: Kind) -> Attempt:
        """Everybody returned, somebody failed, or it was cancelled. The first outcome stands."""
        if self.phase in (Phase.STOPPING, Phase.ENDED):
            return self
        if outcome is Kind.UNPROVISIONED and self.phase is not Phase.LEASING:
            raise ValueError(f"only LEASING can end UNPROVISIONED, not {self.phase.value}")
        if outcome is Kind.SUCCEEDED and self.phase not in (Phase.RUNNING, Phase.DRAINING):
            raise ValueError(f"cannot succeed in {self.phase.value}")
        return replace(self, phase=Phase.STOPPING, outcome=outcome)

    def end(self) -> Attempt:
        """Every process of this attempt is known to be dead."""
        return self._go(Phase.ENDED)

    def _go(self, phase: Phase) -> Attempt:
        if phase not in _NEXT[self.phase]:
            raise ValueError(f"an attempt cannot go from {self.phase.value} to {phase.value}")
        return replace(self, phase=phase)
