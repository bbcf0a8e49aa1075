"""What the hosts say, in the task run's own logs."""

from __future__ import annotations

import logging
import time
from collections.abc import MutableMapping
from dataclasses import dataclass, field
from typing import Any

from prefect_tpu.core.gang import Member
from prefect_tpu.core.host import LogLine, LogRecord

Logger = logging.Logger | logging.LoggerAdapter[Any]

NOISE = ("[Gloo] Rank ", "Expected number of connected peer ranks is")
"""What the simulation's collectives print at every start; goes to DEBUG."""
PROGRESS_LOG_INTERVAL_SECONDS = 5.0


@dataclass(slots=True)
class RunLog:
    """Forwards lines, records and progress of every host to one logger. Never raises."""

    logger: Logger
    _last_progress: MutableMapping[int, float] = field(default_factory=dict)

    def log(self, member: Member, entry: LogLine | LogRecord, *, collateral: bool) -> None:
        """One line of a host. What a host says after another one failed is noise: DEBUG."""
        if isinstance(entry, LogRecord):
            level, text = entry.level, entry.message
        else:
            level, text = logging.INFO, entry.text
        if collateral or any(noise in text for noise in NOISE):
            level = logging.DEBUG
        self.logger.log(level, "[%s] %s", member.label, text)

    def dropped(self, member: Member, lines: int) -> None:
        """Lines that the host wrote faster than they could be taken."""
        self.logger.warning("[%s] %d lines dropped: it wrote faster than they could be read", member.label, lines)

    def progress(self, member: Member, step: int | None, metrics: dict[str, float]) -> None:
        """Progress of process 0, now and then; every host reports much the same."""
        now = time.monotonic()
        if member.process_id != 0 or now - self._last_progress.get(0, -1e9) < PROGRESS_LOG_INTERVAL_SECONDS:
            return
        self._last_progress[0] = now
        values = ", ".join(f"{name}={value:.6g}" for name, value in metrics.items())
        self.logger.info("[%s] step %s%s", member.label, step, f": {values}" if values else "")

    def say(self, text: str) -> None:
        """Something about the gang as a whole."""
        self.logger.info("%s", text)
