"""Find and end every process of a simulated host, wherever it has been reparented to. Linux, standard library."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Collection, Mapping

from prefect_tpu.linux.processes import Process, all_processes, signal_process
from prefect_tpu.sidecars.simulated_identity import MARK_VARIABLE

KILL_TIMEOUT_SECONDS = 10.0
"""A process that is still there after SIGKILL for this long hangs in the kernel; it is reported."""
_SWEEP_SECONDS = 0.02


def fleet_mark(directory: str) -> str:
    """What the marks of all hosts of the fleet in this directory begin with."""
    return os.path.basename(directory) + "/"


def find(marks: Collection[str], leaders: Collection[Process] = ()) -> list[Process]:
    """Every living process of the marked hosts.

    A process belongs to a host if it was started with its mark in the environment, is in its session, or
    descends from one that does. The mark alone is not enough: Ray's processes overwrite theirs when they
    set their title. A number alone is none: a session is the host's if its leader is there and began when the
    host did, or if a process with the mark is in it.

    Args:
        marks: values of the mark variable, or beginnings of them that end in "/".
        leaders: of the hosts' sessions, as they were when they were started.
    """
    whole = {one.pid: one for one in all_processes()}
    table = {pid: one for pid, one in whole.items() if one.alive and pid != os.getpid()}
    marked = {pid for pid in table if _marked(pid, marks)}
    proven = {table[pid].session for pid in marked}
    # A zombie is proof, too: it keeps its number from being given to others.
    wanted = {one.pid for one in leaders if one.pid in proven or _is_there(whole, one)}
    found = {pid for pid, one in table.items() if one.session in wanted or pid in wanted} | marked
    grown = True
    while grown:
        sids = wanted | (found & {one.session for one in table.values()})
        more = {pid for pid, one in table.items() if one.parent in found or one.session in sids} - found
        grown = bool(more)
        found |= more
    return [table[pid] for pid in found]


def kill(marks: Collection[str], leaders: Collection[Process] = ()) -> list[int]:
    """SIGKILL every process of the marked hosts at once, until none is left.

    Args:
        marks: as for `find`.
        leaders: as for `find`.

    Returns:
        Process ids that would not die in time.
    """
    deadline = time.monotonic() + KILL_TIMEOUT_SECONDS
    quiet = 0
    left: list[Process] = []
    while time.monotonic() < deadline:
        left = find(marks, leaders)
        for process in left:
            signal_process(process, signal.SIGKILL)
        # Twice nothing, as a fork may have slipped between two lines of the process table.
        quiet = 0 if left else quiet + 1
        if quiet == 2:
            return []
        time.sleep(_SWEEP_SECONDS)
    return [process.pid for process in left]


def _is_there(table: Mapping[int, Process], leader: Process) -> bool:
    return leader.pid in table and table[leader.pid].start == leader.start


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
