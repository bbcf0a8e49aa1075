"""How a peer's script tells the benchmark what it measures: JSON lines on stdout. Standard library only."""

from __future__ import annotations

import json
import os
import signal
from typing import Any

SETTLE_SECONDS = float(os.environ["BENCHMARK_SETTLE_SECONDS"])
"""From a cluster being up, or mended, to the first call: the benchmark's --settle-seconds."""


class Messages:
    """The way to the benchmark. From its making on, everything that is printed goes to stderr instead."""

    def __init__(self) -> None:
        signal.signal(
            signal.SIGINT, signal.default_int_handler
        )  # else ignored, where a shell runs it in the background
        self._lines = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)  # what Ray and Prefect print must not get between the lines

    def say(self, text: str) -> None:
        """Progress, for the person who waits."""
        self._send(say=text)

    def versions(self, **versions: str) -> None:
        """What was measured."""
        self._send(versions=versions)

    def measured(self, case: str, system: str, seconds: float, phases: dict[str, float] | None = None) -> None:
        """One run of one case."""
        self._send(case=case, system=system, seconds=seconds, phases=phases or {})

    def memory(self, hosts: list[dict[str, Any]]) -> None:
        """What the idle processes of each host hold."""
        self._send(memory=hosts)

    def _send(self, **message: Any) -> None:
        self._lines.write(json.dumps(message) + "\n")
