"""Find and end every process of a simulated host, wherever it has been reparented to. Linux, standard library."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from prefect_tpu.sidecars.simulated_identity import MARK_VARIABLE

KILL_TIMEOUT_SECONDS = 10.0
"""A process that is still there after SIGKILL for this long hangs in the kernel; it is reported."""
_SWEEP_SECONDS = 0.02
_PR_SET_PDEATHSIG = 1


def fleet_mark(directory: str) -> str:
    """What the marks of all hosts of the fleet in this directory begin with."""
    return os.path.basename(directory) + "/"


@dataclass(frozen=True, slots=True)
class Process:
    """One line of the process table."""

    pid: int
    parent: int
    session: int
    start: int
    zombie: bool


def read_process(pid: int) -> Process | None:
    """The process with this id, None if there is none."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            text = file.read()
    except OSError:
        return None
    # The command's name, in brackets, may itself hold brackets and spaces.
    fields = text[text.rindex(b")") + 2 :].split()
    return Process(pid, int(fields[1]), int(fields[3]), int(fields[19]), fields[0] in (b"Z", b"X"))


def is_alive(pid: int, start: int | None = None) -> bool:
    """Whether this process lives; with `start`, whether it is still the same one. A zombie is dead."""
    process = read_process(pid)
    return process is not None and not process.zombie and start in (None, process.start)


def start_of(pid: int) -> int:
    """When a process started, in clock ticks since boot; 0 if it is gone."""
    process = read_process(pid)
    return process.start if process else 0


def find(marks: Collection[str], sessions: Iterable[int] = ()) -> list[Process]:
    """Every living process of the marked hosts.

    A process belongs to a host if it was started with its mark in the environment, is in its session, or
    descends from one that does. The mark alone is not enough: Ray's processes overwrite theirs when they
    set their title.

    Args:
        marks: values of the mark variable, or beginnings of them that end in "/".
        sessions: sessions of the hosts' first processes.
    """
    table = {one.pid: one for one in _all() if not one.zombie and one.pid != os.getpid()}
    wanted = set(sessions)
    found = {pid for pid, one in table.items() if one.session in wanted or _marked(pid, marks)}
    grown = True
    while grown:
        sids = wanted | (found & {one.session for one in table.values()})
        more = {pid for pid, one in table.items() if one.parent in found or one.session in sids} - found
        grown = bool(more)
        found |= more
    return [table[pid] for pid in found]


def kill(marks: Collection[str], sessions: Collection[int] = (), *, reap: bool = False) -> list[int]:
    """SIGKILL every process of the marked hosts at once, until none is left.

    Args:
        marks: as for `find`.
        sessions: as for `find`.
        reap: collect this process's own dead children on the way.

    Returns:
        Process ids that would not die in time.
    """
    deadline = time.monotonic() + KILL_TIMEOUT_SECONDS
    quiet = 0
    left: list[Process] = []
    while time.monotonic() < deadline:
        left = find(marks, sessions)
        for process in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
        if reap:
            reap_children()
        # Twice nothing, as a fork may have slipped between two lines of the process table.
        quiet = 0 if left else quiet + 1
        if quiet == 2:
            return []
        time.sleep(_SWEEP_SECONDS)
    return [process.pid for process in left]


def reap_children() -> dict[int, int]:
    """Collect dead children of this process: process id to wait status."""
    ended: dict[int, int] = {}
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            ended[pid] = status
    return ended


def die_with_parent(parent: int) -> None:
    """Ask the kernel to SIGKILL this process when the thread that started it ends."""
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:
        os._exit(1)


def _all() -> Iterable[Process]:
    for name in os.listdir("/proc"):
        if name.isdigit() and (process := read_process(int(name))) is not None:
            yield process


def _marked(pid: int, marks: Collection[str]) -> bool:
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            environ = file.read()
    except OSError:
        return False
    variable = b"\0" + MARK_VARIABLE.encode() + b"="
    _, found, rest = (b"\0" + environ).partition(variable)
    if not found:
        return False
    value = rest.partition(b"\0")[0].decode(errors="replace")
    return any(value == mark or (mark.endswith("/") and value.startswith(mark)) for mark in marks)
