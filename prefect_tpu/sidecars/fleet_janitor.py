"""A small process beside the fleet supervisor that cleans up when the supervisor itself is killed."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal

from prefect_tpu.linux.processes import Process
from prefect_tpu.sidecars import fleet_marks

_DONE = "done"


class Janitor:
    """Forked before anything heavy is imported. It sleeps until the supervisor's end of a pipe is closed."""

    def __init__(self, directory: str) -> None:
        reader, self.pipe = os.pipe()
        if os.fork():
            os.close(reader)
            return
        os.close(self.pipe)
        _watch(reader, directory)

    def remember(self, leader: Process) -> None:
        """Tell it about one more host, by the process that leads its session."""
        self._tell(f"+ {leader.pid} {leader.start}")

    def forget(self, leader: Process) -> None:
        """That host has ended: its number may be anybody's from now on."""
        self._tell(f"- {leader.pid} {leader.start}")

    def dismiss(self) -> None:
        """Everything is cleaned up already."""
        self._tell(_DONE)

    def _tell(self, line: str) -> None:
        with contextlib.suppress(OSError):  # somebody has killed the janitor; the fleet can do without
            os.write(self.pipe, f"{line}\n".encode())


def _watch(reader: int, directory: str) -> None:
    os.setsid()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    hosts: dict[int, Process] = {}
    done = False
    with os.fdopen(reader) as pipe:
        for line in pipe:
            word, *numbers = line.split()
            done = word == _DONE
            if word == "+":
                pid, start = map(int, numbers)
                hosts[pid] = Process(pid, 0, pid, start, alive=True)
            elif word == "-":
                hosts.pop(int(numbers[0]), None)
    if not done:
        fleet_marks.kill([fleet_marks.fleet_mark(directory)], list(hosts.values()))
        shutil.rmtree(directory, ignore_errors=True)
    os._exit(0)
