"""A small process beside the fleet supervisor that cleans up when the supervisor itself is killed."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal

from prefect_tpu.sidecars import fleet_marks


class Janitor:
    """Forked before anything heavy is imported. It sleeps until the supervisor's end of a pipe is closed."""

    def __init__(self, directory: str) -> None:
        reader, self.pipe = os.pipe()
        if os.fork():
            os.close(reader)
            return
        os.close(self.pipe)
        _watch(reader, directory)

    def remember(self, session: int) -> None:
        """Tell it about one more host, by the session that its processes are in."""
        os.write(self.pipe, f"{session}\n".encode())

    def dismiss(self) -> None:
        """Everything is cleaned up already."""
        with contextlib.suppress(OSError):
            os.write(self.pipe, b"done\n")


def _watch(reader: int, directory: str) -> None:
    os.setsid()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    with os.fdopen(reader) as pipe:
        words = pipe.read().split()
    if "done" not in words:
        fleet_marks.kill([fleet_marks.fleet_mark(directory)], [int(word) for word in words])
        shutil.rmtree(directory, ignore_errors=True)
    os._exit(0)
