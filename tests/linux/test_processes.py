"""Who is ended: the very process that was meant, never the next one with its number."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from dataclasses import replace

import pytest

from prefect_tpu.linux import processes


@pytest.fixture
def bystander() -> Iterator[subprocess.Popen[bytes]]:
    """A process in a session of its own that is nobody's business."""
    process = subprocess.Popen(["sleep", "600"], start_new_session=True)
    yield process
    process.kill()
    process.wait()


def test_a_signal_reaches_only_the_process_that_was_seen(bystander: subprocess.Popen[bytes]) -> None:
    """Whoever has the number by now started at another time."""
    seen = processes.read_process(bystander.pid)
    assert seen is not None
    assert not processes.signal_process(replace(seen, start=seen.start - 1), signal.SIGKILL)
    assert processes.is_alive(bystander.pid, seen.start)
    assert processes.signal_process(seen, signal.SIGKILL)
    assert bystander.wait(10) == -signal.SIGKILL
    assert not processes.signal_process(seen, signal.SIGKILL)


def test_what_was_looked_up_too_long_ago_is_not_killed(bystander: subprocess.Popen[bytes]) -> None:
    """A table in which the number is another process's."""
    now = processes.read_process(bystander.pid)
    assert now is not None

    def find(table: processes.Table) -> set[int]:
        table[bystander.pid] = replace(now, start=now.start - 1)
        return {bystander.pid}

    assert not processes.kill_all(find)
    assert processes.is_alive(bystander.pid)
