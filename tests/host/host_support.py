"""What the tests of the host share: run a function through a real supervisor, look at processes."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

from prefect_tpu.core.messages import (
    Event,
    Exited,
    GangContext,
    JaxInit,
    LaunchRequest,
    LogLine,
    LogRecord,
    Phase,
    Raised,
    Returned,
)
from prefect_tpu.host.supervisor import HostSupervisor
from prefect_tpu.linux import processes
from prefect_tpu.wire import payload, pickling

PRELOAD = ("jax", "numpy", "cloudpickle")
CPU_JAX = {
    "JAX_PLATFORMS": "cpu",
    "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo",
    "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
    "NPROC": "8",
}
DEADLINE_SECONDS = 60.0


def make_request(**changes: Any) -> LaunchRequest:
    context = {
        "slice_index": 0,
        "num_slices": 1,
        "host_index": 0,
        "hosts_per_slice": 1,
        "process_id": 0,
        "num_processes": 1,
        "attempt": 1,
        "run_id": str(uuid4()),
        "slice_name": "slice-a",
    } | changes.pop("context", {})
    fields = {"gang_env": {}, "user_env": CPU_JAX, "preload": PRELOAD, "jax": None} | changes
    return LaunchRequest(attempt_id=uuid4().hex, context=GangContext(**context), **fields)


class Run:
    """One attempt on one supervisor, seen as the driver sees it."""

    def __init__(
        self,
        host: HostSupervisor,
        fn: Callable[..., Any],
        *args: Any,
        secret_env: dict[str, str] | None = None,
        **request: Any,
    ) -> None:
        self.host = host
        self.request = make_request(**request)
        self.id = self.request.attempt_id
        self.events: list[Event] = []
        self.dropped = 0
        self._cursor = 0
        buffers = pickling.dumps((fn, args, {}), pickling.project_root_of(fn))
        self.pid = host.launch(self.request, buffers, secret_env)

    def until(self, wanted: Callable[[Event], bool]) -> Event:
        """Poll until an event fits; the process's end or the deadline fail the test."""
        deadline = time.monotonic() + DEADLINE_SECONDS
        while time.monotonic() < deadline:
            for event in self.events:
                if wanted(event):
                    return event
            assert not (self.events and isinstance(self.events[-1], Exited)), self.events
            poll = self.host.poll(self.id, self._cursor, 5.0)
            self._cursor, self.dropped = poll.cursor, poll.dropped_lines
            self.events.extend(poll.events)
        raise AssertionError(f"not within {DEADLINE_SECONDS} s; so far: {self.events}")

    def until_type(self, *kinds: type) -> Any:
        return self.until(lambda event: isinstance(event, kinds))

    def until_line(self, text: str) -> None:
        self.until(lambda event: isinstance(event, LogLine) and event.text == text)

    def value(self) -> Any:
        """Wait for the result, fetch it, let the process go."""
        ended = self.until_type(Returned, Raised, Exited)
        assert isinstance(ended, Returned), self.events
        result = pickling.loads(payload.parse(self.host.result(self.id)))
        self.until(lambda event: isinstance(event, Exited) or event == Phase("ended"))
        self.host.finish(self.id)
        self.exited()
        return result

    def exited(self) -> Exited:
        exited: Exited = self.until_type(Exited)
        assert self.events[-1] is exited
        self.host.forget(self.id)
        return exited

    def lines(self, stream: str) -> list[str]:
        return [one.text for one in self.events if isinstance(one, LogLine) and one.stream == stream]

    def records(self) -> list[LogRecord]:
        return [one for one in self.events if isinstance(one, LogRecord)]


@contextmanager
def supervisor() -> Iterator[HostSupervisor]:
    host = HostSupervisor()
    try:
        yield host
    finally:
        host.close()


def jax_init(host: HostSupervisor, process_id: int, num_processes: int, port: int) -> JaxInit:
    return JaxInit(f"127.0.0.1:{port}", num_processes, process_id, 60)


def alive(pids: Iterable[int]) -> set[int]:
    table = processes.snapshot()
    return {pid for pid in pids if pid in table and table[pid].alive}


def wait_gone(pids: Iterable[int], seconds: float) -> None:
    """Fail unless all of them are dead (zombies count as dead) within `seconds`."""
    wanted, deadline = set(pids), time.monotonic() + seconds
    while (left := alive(wanted)) and time.monotonic() < deadline:
        time.sleep(0.02)
    for pid in left:
        os.kill(pid, 9)
    assert not left, f"still alive after {seconds} s: {left} of {wanted}"
