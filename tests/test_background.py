"""The suite passes wherever it is started: in a terminal, by nohup, in the background of a shell."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
IGNORED = "trap '' INT QUIT HUP; exec \"$@\""
"""A shell that ignores them, and what it becomes, which inherits that."""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGQUIT, signal.SIGHUP])
def test_a_process_hears(number: signal.Signals) -> None:
    """One that a test starts ends by the signal."""
    process = subprocess.Popen(["sleep", "60"])
    process.send_signal(number)
    assert process.wait(30) == -number


def test_where_signals_are_ignored() -> None:
    """The same, with pytest in the background."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        f"{__file__}::{test_a_process_hears.__name__}",
    ]
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(
        ["sh", "-c", IGNORED, "sh", *command], cwd=ROOT, env=env, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout[-2000:]
    assert "3 passed" in done.stdout
