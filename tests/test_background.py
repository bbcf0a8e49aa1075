"""The suite passes wherever it is started: in a terminal, by nohup, in the background of a shell."""

from __future__ import annotations

import atexit
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from prefect.logging import get_logger
from prefect.logging.configuration import setup_logging

ROOT = Path(__file__).parents[1]
IGNORED = "trap '' INT QUIT HUP; exec \"$@\""
"""A shell that ignores them, and what it becomes, which inherits that."""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGQUIT, signal.SIGHUP])
def test_a_process_hears(number: signal.Signals) -> None:
    """One that a test starts ends by the signal."""
    process = subprocess.Popen(["sleep", "60"])
    process.send_signal(number)
    assert process.wait(30) == -number


def pytest_on(test: Callable[..., None], *before: str) -> str:
    """What pytest prints of a test of this file, in a process of its own."""
    command = [*before, sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"{__file__}::{test.__name__}"]
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(
        command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout[-2000:]
    return done.stdout


def test_where_signals_are_ignored() -> None:
    """The same, with pytest in the background."""
    assert "3 passed" in pytest_on(test_a_process_hears, "sh", "-c", IGNORED, "sh")


def test_that_logs_at_the_end_of_the_process() -> None:
    """As artifacts do that still wait; by then the stream of Prefect's handler is closed."""
    setup_logging()
    atexit.register(get_logger().warning, "the last words")


def test_the_output_has_no_traceback() -> None:
    """Not even behind pytest's closing line."""
    assert "Traceback" not in pytest_on(test_that_logs_at_the_end_of_the_process)
