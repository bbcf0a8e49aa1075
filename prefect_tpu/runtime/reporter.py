"""What `runtime.report` has said, on its way to the agent."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

REPORT_INTERVAL_SECONDS = 0.5
"""`report` sends at most this often; the newest values are never lost, they go with the next sending."""

MAX_METRICS = 1_000
"""In one report."""
MAX_METRIC_NAME_CHARS = 200

Send = Callable[[int | None, dict[str, float], int | None, int | None], None]
"""Step, metrics, total steps, first step of this process."""


class Reporter:
    """Sends the newest report now and then; whatever is left is sent by `flush`."""

    def __init__(self, send: Send, clock: Callable[[], float] = time.monotonic) -> None:
        self._send = send
        self._clock = clock
        self._lock = threading.Lock()
        self._sent_at = -math.inf
        self._first: int | None = None
        self._waiting: tuple[int | None, Mapping[str, Any], int | None] | None = None

    def report(self, step: int | None, metrics: Mapping[str, Any], total_steps: int | None = None) -> None:
        with self._lock:
            if self._first is None and step is not None:
                self._first = int(step)
            self._waiting = (step, metrics, total_steps)
            if self._clock() - self._sent_at < REPORT_INTERVAL_SECONDS:
                return
        self.flush()

    def flush(self) -> None:
        """Send what waits. A metric that has no value any more (a donated array) is left out."""
        with self._lock:
            waiting, self._waiting = self._waiting, None
            self._sent_at = self._clock()
        if waiting is not None:
            step, metrics, total = waiting
            self._send(
                None if step is None else int(step),
                _numbers(metrics),
                None if total is None else int(total),
                self._first,
            )


def _numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    numbers: dict[str, float] = {}
    for name, value in metrics.items():
        try:
            numbers[name] = float(value)
        except (TypeError, ValueError, RuntimeError):
            continue
    return numbers
