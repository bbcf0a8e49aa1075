"""Finds and ends every process that an attempt has left on this host. Linux only; no Ray, no Prefect."""

from __future__ import annotations

import ctypes
import os
import signal
import time
from collections.abc import Callable, Set
from dataclasses import dataclass
from pathlib import Path

ZYGOTE_MARK = "_PREFECT_TPU_ZYGOTE"
"""Variable in the environment of a zygote, so of every process that comes from it, by fork or exec."""
ATTEMPT_MARK = "_PREFECT_TPU_ATTEMPT"
"""Variable that a child sets, so that what it executes can be told from what another attempt executes."""

KILL_ROUNDS = 60
KILL_ROUND_SECONDS = 0.01

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_GONE_STATES = frozenset("ZXx")


@dataclass(frozen=True, slots=True)
class Process:
    """One line of the process table."""

    pid: int
    parent: int
    session: int
    alive: bool


Table = dict[int, Process]


def snapshot() -> Table:
    """Every process of this machine that can be read, by process id."""
    table: Table = {}
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            with open(f"/proc/{name}/stat", "rb") as file:
                text = file.read()
        except OSError:  # it ended while we looked
            continue
        state, parent, _group, session = text[text.rindex(b")") + 2 :].split(maxsplit=4)[:4]
        pid = int(name)
        table[pid] = Process(pid, int(parent), int(session), state.decode() not in _GONE_STATES)
    return table


def is_alive(pid: int) -> bool:
    """Whether there is such a process and it has not ended; a zombie has."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False


def descendants(table: Table, root: int) -> set[int]:
    """`root`, its session, and all that hang below any of them."""
    found = {pid for pid, one in table.items() if one.session == root or pid == root}
    below: dict[int, list[int]] = {}
    for one in table.values():
        below.setdefault(one.parent, []).append(one.pid)
    waiting = list(found)
    while waiting:
        for pid in below.get(waiting.pop(), ()):
            if pid not in found:
                found.add(pid)
                waiting.append(pid)
    return found


def marked(table: Table, name: str, value: str) -> set[int]:
    """Processes that were started with the variable `name` set to `value`."""
    entry = f"{name}={value}".encode()
    return {pid for pid, one in table.items() if one.alive and entry in environment_of(pid)}


def has_variable(pid: int, name: str) -> bool:
    """Whether process `pid` was started with a variable of this name."""
    prefix = f"{name}=".encode()
    return any(entry.startswith(prefix) for entry in environment_of(pid))


def environment_of(pid: int) -> list[bytes]:
    """The environment that a process was started with, `NAME=value` each; empty if it cannot be read."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return file.read().split(b"\0")
    except OSError:
        return []


def children(pid: int) -> set[int] | None:
    """Direct children of a process with one thread, zombies too; None if this kernel does not tell."""
    try:
        with open(f"/proc/{pid}/task/{pid}/children", "rb") as file:
            return {int(one) for one in file.read().split()}
    except OSError:
        return None


def kill_all(find: Callable[[Table], Set[int]]) -> bool:
    """SIGKILL what `find` finds, again and again until it finds nothing alive.

    Once is not enough: what is found may fork between the look and the kill.

    Returns:
        Whether nothing was left after the last round.
    """
    for _ in range(KILL_ROUNDS):
        table = snapshot()
        alive = [pid for pid in find(table) if pid in table and table[pid].alive]
        if not alive:
            return True
        for pid in alive:
            send_signal(pid, signal.SIGKILL)
        time.sleep(KILL_ROUND_SECONDS)
    return False


def send_signal(pid: int, number: int) -> None:
    """Send a signal to a process that may be gone already."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def die_with_parent(parent: int) -> None:
    """SIGKILL this process as soon as `parent` (or, for a thread's child, that thread) ends."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before the line above
        os._exit(1)


def adopt_orphans() -> None:
    """Become the parent of every descendant whose own parent ends."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def _prctl(option: int, value: int) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl({option}) failed: {os.strerror(number)}")
