"""Waits for what becomes true a little later."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

WAIT_SECONDS = 20.0


def eventually(look: Callable[[], Any], what: str, seconds: float = WAIT_SECONDS) -> Any:
    """What `look` returns once it is truthy; Prefect records task runs, logs and artifacts a little later."""
    deadline = time.monotonic() + seconds
    while True:
        found = look()
        if found:
            return found
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.2)
