"""Looks at this machine's processes and ends them. Linux; standard library."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import signal
import time
from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass

ZYGOTE_MARK = "_PREFECT_TPU_ZYGOTE"
"""Variable in the environment of a zygote, so of every process that comes from it, by fork or exec."""
ATTEMPT_MARK = "_PREFECT_TPU_ATTEMPT"
"""Variable that a child sets, so that what it executes can be told from what another attempt executes."""
KILL_ROUNDS = 60
KILL_ROUND_SECONDS = 0.01

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_GONE_STATES = (b"Z", b"X", b"x")


@dataclass(frozen=True, slots=True)
class Process:
    """One line of the process table. `start` is in clock ticks since boot; a zombie is not alive."""

    pid: int
    parent: int
    session: int
    start: int
    alive: bool


Table = dict[int, Process]


def read_process(pid: int) -> Process | None:
    """The process with this id, None if there is none."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            text = file.read()
    except OSError:  # it has ended, perhaps while we looked
        return None
    # The command's name, in brackets, may itself hold brackets and spaces.
    fields = text[text.rindex(b")") + 2 :].split()
    return Process(pid, int(fields[1]), int(fields[3]), int(fields[19]), fields[0] not in _GONE_STATES)


def all_processes() -> Iterator[Process]:
    """Every process of this machine that can be read."""
    for name in os.listdir("/proc"):
        if name.isdigit() and (process := read_process(int(name))) is not None:
            yield process


def snapshot() -> Table:
    """The same, by process id."""
    return {one.pid: one for one in all_processes()}


def machine() -> str:
    """Of this boot and this pid namespace: process ids and start times mean something only inside it. 12 hex digits."""
    with open("/proc/sys/kernel/random/boot_id") as file:
        boot = file.read().strip()
    return hashlib.sha256(f"{boot} {os.readlink('/proc/self/ns/pid')}".encode()).hexdigest()[:12]


def is_alive(pid: int, start: int | None = None) -> bool:
    """Whether this process lives; with `start`, whether it is still the same one. A zombie is dead."""
    process = read_process(pid)
    return process is not None and process.alive and start in (None, process.start)


def start_of(pid: int) -> int:
    """When a process started, in clock ticks since boot; 0 if it is gone, or only its zombie is there."""
    process = read_process(pid)
    return process.start if process is not None and process.alive else 0


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


def attempt_mark(attempt: str, zygote: int) -> str:
    """What `ATTEMPT_MARK` is set to: hosts on one machine have the same attempt, and each its own zygote."""
    return f"{attempt}/{zygote}"


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


def name_of(pid: int) -> str:
    """The program's name, without its arguments, which could show secrets; "?" if it is gone."""
    try:
        with open(f"/proc/{pid}/comm", "rb") as file:
            return file.read().strip().decode(errors="backslashreplace")
    except OSError:
        return "?"


def children(pid: int) -> set[int] | None:
    """Direct children of a process with one thread, zombies too; None if this kernel does not tell."""
    try:
        with open(f"/proc/{pid}/task/{pid}/children", "rb") as file:
            return {int(one) for one in file.read().split()}
    except OSError:
        return None


def kill_all(find: Callable[[Table], Set[int]]) -> bool:
    """SIGKILL what `find` finds in a table of now, again and again until it finds nothing alive.

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
            signal_process(table[pid], signal.SIGKILL)
        time.sleep(KILL_ROUND_SECONDS)
    return False


def signal_process(process: Process, number: int) -> bool:
    """Send a signal to this very process, and to nobody who has its number by now.

    Returns:
        Whether it was there to be sent to.
    """
    try:
        descriptor = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return False
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.EPERM):
            raise
        descriptor = -1  # a sandbox without it: then as close as can be
    try:
        now = read_process(process.pid)
        # Whom the descriptor means cannot change any more, so what is seen now is true of it.
        if now is None or now.start != process.start:
            return False
        if descriptor < 0:
            os.kill(process.pid, number)
        else:
            signal.pidfd_send_signal(descriptor, number)
    except ProcessLookupError:
        return False
    finally:
        if descriptor >= 0:
            os.close(descriptor)
    return True


def send_signal(child: int, number: int) -> None:
    """Send a signal to a child that has not been collected: its number is nobody else's."""
    try:
        os.kill(child, number)
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
