"""What a host process is doing: its Python stacks, taken from outside even if it holds the interpreter's lock."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from prefect_tpu.host.process.stack_signal import STACK_FILE, STACK_SIGNAL

ANSWER_SECONDS = 1.0
"""How long a process may take to write its stacks; one that is stopped never does."""
SETTLE_SECONDS = 0.05
PY_SPY_SECONDS = 10.0
MAX_CHARS = 50_000


def dump(pid: int, send_signal: Callable[[int, int], None]) -> str:
    """The stacks of all threads of a host process, newest call first; by py-spy, where there is one, if it does
    not answer itself.

    Args:
        pid: of the process.
        send_signal: sends a signal to a process, unless it has ended.
    """
    file = _stack_file(pid)
    if file is None:
        return f"process {pid} has no stacks to show: it is starting or has ended"
    try:
        before = os.stat(file).st_size
        send_signal(pid, STACK_SIGNAL)
        size, give_up = before, time.monotonic() + ANSWER_SECONDS
        while time.monotonic() < give_up:
            time.sleep(SETTLE_SECONDS)
            now = os.stat(file).st_size
            if now > before and now == size:
                with open(file, "rb") as stacks:
                    stacks.seek(before)
                    return stacks.read(MAX_CHARS).decode(errors="replace").rstrip()
            size = now
    except OSError as error:
        return f"process {pid} has ended: {error}"
    return _by_py_spy(pid) or f"process {pid} does not answer (state {_state(pid)})"


def _stack_file(pid: int) -> str | None:
    try:
        names = os.listdir(f"/proc/{pid}/fd")
    except OSError:
        return None
    for name in names:
        path = f"/proc/{pid}/fd/{name}"
        try:
            if STACK_FILE in os.readlink(path):
                return path
        except OSError:
            continue
    return None


def _by_py_spy(pid: int) -> str:
    beside = Path(sys.executable).with_name("py-spy")
    program = str(beside) if beside.exists() else shutil.which("py-spy")
    if program is None:
        return ""
    try:
        done = subprocess.run(
            [program, "dump", "--nonblocking", "--pid", str(pid)],
            capture_output=True, text=True, timeout=PY_SPY_SECONDS, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout[:MAX_CHARS].rstrip()


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "gone"
