"""Look at processes of this machine: who descends from whom, and who is gone."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable
from pathlib import Path


def _stat(pid: int) -> tuple[str, int, str] | None:
    """State letter, parent's pid and start time of a process; None if it is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()
    return fields[0], int(fields[1]), fields[19]


def stop(pid: int, seconds: float = 10.0) -> None:
    """SIGSTOP, and wait until all of its threads have stopped: on a busy machine one may go on for a while."""
    os.kill(pid, signal.SIGSTOP)
    deadline = time.monotonic() + seconds
    while any(one.read_text().rpartition(")")[2].split()[0] != "T" for one in Path(f"/proc/{pid}/task").glob("*/stat")):
        assert time.monotonic() < deadline, f"process {pid} has not stopped within {seconds:g} s"
        time.sleep(0.01)


def all_pids() -> list[int]:
    return [int(one.name) for one in Path("/proc").glob("[0-9]*")]


def descendants(pid: int) -> dict[int, str]:
    """Every process below `pid`, with its start time, so that a pid used again is not mistaken for it."""
    parents: dict[int, list[int]] = {}
    starts: dict[int, str] = {}
    for one in all_pids():
        stat = _stat(one)
        if stat is not None and stat[0] != "Z":
            parents.setdefault(stat[1], []).append(one)
            starts[one] = stat[2]
    found: dict[int, str] = {}
    todo = [pid]
    while todo:
        for child in parents.get(todo.pop(), []):
            found[child] = starts[child]
            todo.append(child)
    return found


def with_environment(name: str, value: str) -> dict[int, str]:
    """Every process that was started with this variable, whoever its parent is now."""
    wanted = f"{name}={value}".encode()
    found = {}
    for one in all_pids():
        try:
            environ = Path(f"/proc/{one}/environ").read_bytes().split(b"\0")
        except OSError:
            continue
        stat = _stat(one)
        if wanted in environ and stat is not None and stat[0] != "Z" and one != os.getpid():
            found[one] = stat[2]
    return found


def running(pids: Iterable[int]) -> dict[int, str]:
    """Those of these processes that run now, with their start times."""
    found = {pid: _stat(pid) for pid in pids}
    return {pid: stat[2] for pid, stat in found.items() if stat is not None and stat[0] != "Z"}


def alive(processes: dict[int, str]) -> dict[int, str]:
    """Those that still live; a zombie does not."""
    left = {}
    for pid, start in processes.items():
        stat = _stat(pid)
        if stat is not None and stat[0] != "Z" and stat[2] == start:
            left[pid] = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")[:150]
    return left


def assert_gone(processes: dict[int, str], seconds: float) -> None:
    """All of them end within `seconds`."""
    deadline = time.monotonic() + seconds
    while left := alive(processes):
        assert time.monotonic() < deadline, f"still there after {seconds:g} s: {left}"
        time.sleep(0.1)
