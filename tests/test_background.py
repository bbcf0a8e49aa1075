"""The suite passes wherever it is started (by nohup, in the background of a shell), and is quiet in the end."""

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
LAST_WORDS = """
import atexit
from prefect.logging import get_logger
from prefect.logging.configuration import setup_logging

def test_that_something_is_logged_when_the_process_ends():
    setup_logging()
    atexit.register(get_logger().warning, "the last words")
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGQUIT, signal.SIGHUP])
def test_a_process_hears(number: signal.Signals) -> None:
    """One that a test starts ends by the signal."""
    process = subprocess.Popen(["sleep", "60"])
    process.send_signal(number)
    assert process.wait(30) == -number


def run_pytest(*arguments: str, before: tuple[str, ...] = ()) -> str:
    """All that it prints, in a process of its own."""
    command = [*before, sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(
        command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout[-2000:]
    return done.stdout


def test_where_signals_are_ignored() -> None:
    """The same, with pytest in the background."""
    output = run_pytest(f"{__file__}::{test_a_process_hears.__name__}", before=("sh", "-c", IGNORED, "sh"))
    assert "3 passed" in output


def test_no_traceback_behind_the_closing_line(tmp_path: Path) -> None:
    """What waits until the process ends logs then, as artifacts do; the stream of Prefect's handler is closed."""
    (tmp_path / "test_last_words.py").write_text(LAST_WORDS)
    output = run_pytest("-p", "tests.conftest", "--rootdir", str(tmp_path), str(tmp_path))
    assert "1 passed" in output
    assert "Traceback" not in output
