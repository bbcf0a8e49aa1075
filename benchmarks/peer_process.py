"""Run a peer's script in a process of its own, hear what it measures, and leave nothing of it behind."""

from __future__ import annotations

import json
import os
import queue
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prefect_tpu.linux import processes

END_GRACE_SECONDS = 30.0
"""For a script that was interrupted: it ends its cluster and its server first."""
ORPHAN_GRACE_SECONDS = 20.0
"""For what a script has started and that ends by itself when the script has gone."""
LOOK_SECONDS = 0.2
TAIL_LINES = 12
SHORT_DIRECTORY = "/tmp"  # noqa: S108 - names of Ray's sockets end at 107 characters; mkdtemp makes it private
SETTLE_SECONDS = 10.0
"""What Ray starts on each host beside the raylet has started by then."""
SETTLE_VARIABLE = "BENCHMARK_SETTLE_SECONDS"
SCRIPTS = Path(__file__).parent / "peers"


class PeerError(Exception):
    """A peer cannot be measured; the text says why."""


@dataclass(frozen=True, slots=True)
class Peer:
    """A script of `peers/` and how to run it.

    Attributes:
        script: its file name.
        python: the interpreter.
        limit_seconds: from its start; then it is ended.
        arguments: of the script.
        environment: variables beside those of this process.
    """

    script: str
    python: str
    limit_seconds: float
    arguments: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)


def run(peer: Peer, hear: Callable[[dict[str, Any]], None]) -> None:
    """Run a peer to its end; `hear` gets every message.

    Raises:
        PeerError: it failed, or it was ended because its time was over. What was heard until then counts.
    """
    with tempfile.TemporaryFile() as log, _directory() as directory:
        process = subprocess.Popen(
            [peer.python, str(SCRIPTS / peer.script), *peer.arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            env=_environment(directory) | peer.environment,
            cwd=directory,
            start_new_session=True,  # Ctrl-C comes to this process alone, which ends the other one in order
        )
        try:
            _listen(process, peer.limit_seconds, hear)
            code = process.wait(END_GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            raise PeerError(f"did not end within {END_GRACE_SECONDS:g} s after its last run") from None
        except PeerError as error:
            raise PeerError(f"{error}{_tail(log)}") from None
        finally:
            _end(process)
        if code:
            raise PeerError(f"{peer.script} ended with code {code}{_tail(log)}")


def _listen(process: subprocess.Popen[bytes], limit_seconds: float, hear: Callable[[dict[str, Any]], None]) -> None:
    lines: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            lines.put(line)
        lines.put(None)

    threading.Thread(target=read, name="benchmark-peer", daemon=True).start()
    deadline = time.monotonic() + limit_seconds
    while True:
        try:
            line = lines.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            raise PeerError(f"was not ready within its limit of {limit_seconds:g} s") from None
        if line is None:
            return
        hear(json.loads(line))


def _environment(directory: str) -> dict[str, str]:
    """This process's environment without what would lead to a Prefect server or a Ray cluster of the user's."""
    foreign = ("PREFECT_", "RAY_", "TPU_", "JAX_", "EFORMER_", "MEGASCALE_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    return kept | {
        "PREFECT_HOME": f"{directory}/prefect",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "RAY_TMPDIR": directory,
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_TRAIN_V2_ENABLED": "1",
        "PYTHONUNBUFFERED": "1",
    }


@contextmanager
def _directory() -> Iterator[str]:
    directory = tempfile.mkdtemp(prefix="ptpu-bench-", dir=SHORT_DIRECTORY if os.path.isdir(SHORT_DIRECTORY) else None)
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the script and everything that it has started, by process id."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C must not leave a cluster behind
    try:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                process.wait(END_GRACE_SECONDS)
        if process.poll() is None:
            process.kill()
            process.wait()
        deadline = time.monotonic() + ORPHAN_GRACE_SECONDS
        while _below_this_process(processes.snapshot()) and time.monotonic() < deadline:
            time.sleep(LOOK_SECONDS)
        processes.kill_all(_below_this_process)
    finally:
        signal.signal(signal.SIGINT, before)


def _below_this_process(table: processes.Table) -> set[int]:
    """Living processes that descend from this one: `processes.adopt_orphans` keeps them below it."""
    children: dict[int, list[int]] = {}
    for one in table.values():
        children.setdefault(one.parent, []).append(one.pid)
    found: set[int] = set()
    waiting = [os.getpid()]
    while waiting:
        below = children.get(waiting.pop(), [])
        found.update(below)
        waiting += below
    dead = {pid for pid in found if not table[pid].alive}
    for pid in dead & set(children.get(os.getpid(), [])):
        with suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)
    return found - dead


def _tail(log: Any) -> str:
    log.seek(0)
    lines = log.read().decode(errors="replace").splitlines()
    return "".join(f"\n  {line}" for line in lines[-TAIL_LINES:])
