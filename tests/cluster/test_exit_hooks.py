"""The end of a process that has used Ray: everything in its order, before Ray's own end."""

from __future__ import annotations

import subprocess
import sys

import pytest

from prefect_tpu.cluster import exit_hooks

ENDS = """
from prefect_tpu.cluster.exit_hooks import at_exit
def fail():
    print("queued resources")
    raise ValueError("as asked")
at_exit("local fleets", lambda: print("local fleets"))
at_exit("queued resources", fail)
at_exit("leases", lambda: print("leases, the first"))
at_exit("leases", lambda: print("leases"))
"""
REGISTERS = """
import atexit
register = atexit.register
def note(do, *args, **kwargs):
    print(do.__module__)
    return register(do, *args, **kwargs)
atexit.register = note
from prefect_tpu.cluster.exit_hooks import at_exit
at_exit("leases", lambda: None)
at_exit("local fleets", lambda: None)
"""


def run(code: str) -> tuple[list[str], str]:
    """What it has printed, line by line, and its errors."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    return done.stdout.splitlines(), done.stderr


def test_everything_is_done_in_its_order_even_if_something_fails() -> None:
    """Once each, whichever came first."""
    said, errors = run(ENDS)
    assert said == ["leases", "queued resources", "local fleets"]
    assert "ValueError: as asked" in errors


def test_ray_ends_afterwards() -> None:
    """Python calls last what was registered first."""
    said, _ = run(REGISTERS)
    assert said.count(exit_hooks.__name__) == 1
    assert said.index("ray._private.worker") < said.index(exit_hooks.__name__)


def test_a_hook_without_a_place_is_refused() -> None:
    """The order is a list."""
    with pytest.raises(ValueError, match="'somebody' has no place"):
        exit_hooks.at_exit("somebody", lambda: None)
