"""What is done when a process ends that has used Ray: in this order, and before Ray's own end. Runs: driver."""

from __future__ import annotations

import atexit
import contextlib
import threading
from collections.abc import Callable

ORDER = ("leases", "queued resources", "joined node", "local fleets")
"""Leases are given back while their cluster is there; a fleet goes with everything that is on it."""

_lock = threading.Lock()
_hooks: dict[str, Callable[[], object]] = {}


def at_exit(name: str, do: Callable[[], object]) -> None:
    """Have this done at the end of the process, in its place of ORDER.

    Args:
        name: one of ORDER; has one hook, the one that was given last.
        do: called once.
    """
    import ray  # noqa: F401 - registers its own: ours must come later, as the last one is called first

    if name not in ORDER:
        raise ValueError(f"{name!r} has no place in ORDER: {ORDER}")
    with _lock:
        if not _hooks:
            atexit.register(_end)
        _hooks[name] = do


def _end() -> None:
    with contextlib.ExitStack() as stack:  # the rest is done even if one of them raises
        for name in reversed(ORDER):
            if name in _hooks:
                stack.callback(_hooks[name])
