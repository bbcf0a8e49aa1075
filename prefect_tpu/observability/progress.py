"""The progress artifact: how far the newest attempt is, while slices come up and steps advance."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from prefect_tpu.core.gang import Gang
from prefect_tpu.core.kinds import Kind
from prefect_tpu.core.messages import Progress

INTERVAL_SECONDS = 5.0
"""Between two versions while steps advance; what else changes is told at once."""
FULL = 100.0


class RunProgress:
    """What the newest attempt does, in one phrase and as a percentage. Used by one thread at a time."""

    def __init__(self, publish: Callable[[float, str], None]) -> None:
        """`publish` is given percent and phrase; it must not wait."""
        self._publish = publish
        self._percent = 0.0
        self._number = 0
        self._hosts = 0
        self._entered = 0
        self._told_at = -math.inf

    def waiting(self, number: int, text: str) -> None:
        """An attempt has no slices yet."""
        self._number = number
        self._tell(text)

    def started(self, number: int, gang: Gang) -> None:
        """An attempt has its slices. The bar stays where the attempt before has left it."""
        self._number, self._hosts, self._entered = number, gang.num_processes, 0
        self._tell(f"{gang.num_slices} slices reserved, {self._hosts} hosts start")

    def entered(self) -> None:
        """One more host is in the function."""
        self._entered += 1
        if self._entered == self._hosts:
            self._tell(f"all {self._hosts} hosts run")
        else:
            self._tell_now_and_then(f"{self._entered} of {self._hosts} hosts run")

    def progress(self, report: Progress) -> None:
        """The function has reported."""
        if report.step is None:
            return
        if report.total_steps:
            self._percent = min(FULL, max(0.0, FULL * report.step / report.total_steps))
            self._tell_now_and_then(f"step {report.step} of {report.total_steps}")
        else:
            self._tell_now_and_then(f"step {report.step}")

    def ended(self, kind: Kind, *, again: bool) -> None:
        """The attempt has ended."""
        if kind is Kind.SUCCEEDED:
            self._percent = FULL
        self._tell(kind.value + ("; the next attempt follows" if again else ""))

    def _tell_now_and_then(self, text: str) -> None:
        if time.monotonic() - self._told_at >= INTERVAL_SECONDS:
            self._tell(text)

    def _tell(self, text: str) -> None:
        self._told_at = time.monotonic()
        self._publish(round(self._percent, 1), f"attempt {self._number}: {text}")
