"""Stacks of a process that does not answer otherwise."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from prefect_tpu.core import jax_names
from prefect_tpu.host import stacks
from tests.processes import stop
from tests.waiting import eventually

SLEEPER = """
import time
from prefect_tpu.host.process import stack_signal
stack_signal.answer_signals()
def stuck_here():
    print("ready", flush=True)
    time.sleep(600)
stuck_here()
"""
COMPILER = """
import os, sys
os.environ["JAX_PLATFORMS"] = "cpu"
from prefect_tpu.host.process import stack_signal
stack_signal.answer_signals()
import jax, jax.numpy as jnp
def heavy(x):
    for _ in range(3000):
        x = jnp.sin(x @ x) + 1
    return x
lowered = jax.jit(heavy).lower(jnp.ones((8, 8)))
print("ready", flush=True)
lowered.compile()
"""


@pytest.fixture
def process(request: pytest.FixtureRequest) -> Iterator[subprocess.Popen[str]]:
    """It is ready."""
    one = subprocess.Popen([sys.executable, "-c", request.param], stdout=subprocess.PIPE, text=True)
    assert one.stdout is not None
    assert one.stdout.readline() == "ready\n"
    yield one
    one.kill()
    one.wait()
    one.stdout.close()


@pytest.mark.parametrize("process", [SLEEPER], indirect=True)
def test_the_stacks_of_a_process(process: subprocess.Popen[str]) -> None:
    """Twice, each time the newest; the process goes on."""
    for _ in range(2):
        text = stacks.dump(process.pid, os.kill)
        assert "stuck_here" in text
        assert text.count("Current thread") <= 1
    assert process.poll() is None
    assert not jax_names.compiles(text)


@pytest.mark.parametrize("process", [SLEEPER], indirect=True)
def test_a_process_that_is_stopped(process: subprocess.Popen[str]) -> None:
    """It cannot answer: py-spy does, where it is installed and may; else the words say what state it is in."""
    stop(process.pid)
    text = stacks.dump(process.pid, os.kill)
    assert "stuck_here" in text or "does not answer (state T)" in text


@pytest.mark.parametrize("process", [COMPILER], indirect=True)
def test_a_process_that_compiles(process: subprocess.Popen[str]) -> None:
    """XLA's compiler is in C++; JAX's own function above it is what tells."""
    # It may be a moment before that, where it has just said that it is ready.
    eventually(lambda: jax_names.compiles(stacks.dump(process.pid, os.kill)), "it compiles", 5)
    assert process.poll() is None


def test_a_process_that_has_ended() -> None:
    """No error, words."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    assert "has ended" in stacks.dump(ended.pid, os.kill)
