"""Which notices stand that hosts of a gang will be taken away, and what follows from them for the gang."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

Source = Literal["preemption", "maintenance", "drain"]
"""Who says so: the cloud, in two ways, or Ray. Each has one notice for a host at a time."""


@dataclass(frozen=True, slots=True)
class Standing:
    """One notice that has not been taken back.

    Attributes:
        process_id: of the host that will be taken away.
        slice_name: of its slice, which goes with it.
        source: who says so.
        text: the same in words.
        deadline_seconds: when, on the clock of whoever keeps the notices; None if that is not known.
    """

    process_id: int
    slice_name: str
    source: Source
    text: str
    deadline_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Notices:
    """All that stand, in the order in which they came. `add` and `take_back` return the next state."""

    standing: tuple[Standing, ...] = ()

    def find(self, process_id: int, source: Source) -> Standing | None:
        """What this source says of this host."""
        return next((one for one in self.standing if (one.process_id, one.source) == (process_id, source)), None)

    def add(self, notice: Standing) -> Notices:
        """One more; of one host and source the earlier deadline stays."""
        known = self.find(notice.process_id, notice.source)
        if known is None:
            return Notices((*self.standing, notice))
        earliest = replace(known, deadline_seconds=_earliest([known, notice]))
        return Notices(tuple(earliest if one is known else one for one in self.standing))

    def take_back(self, process_id: int, source: Source) -> Notices:
        """One less; the others stand."""
        gone = self.find(process_id, source)
        return Notices(tuple(one for one in self.standing if one is not gone))

    @property
    def draining(self) -> frozenset[str]:
        """Names of the slices that will be taken away: a slice without a host is none."""
        return frozenset(one.slice_name for one in self.standing)

    @property
    def deadline_seconds(self) -> float | None:
        """When the first host will be gone, None while nobody knows."""
        return _earliest(self.standing)

    def due(self, now_seconds: float) -> frozenset[str]:
        """Names of the slices that ought to be gone by now, each by its own earliest deadline."""
        return frozenset(
            one.slice_name
            for one in self.standing
            if one.deadline_seconds is not None and one.deadline_seconds <= now_seconds
        )

    def text(self, slice_name: str) -> str:
        """The first words that stand for a slice, "" if there are none."""
        return next((one.text for one in self.standing if one.slice_name == slice_name), "")


def _earliest(notices: tuple[Standing, ...] | list[Standing]) -> float | None:
    return min((one.deadline_seconds for one in notices if one.deadline_seconds is not None), default=None)
