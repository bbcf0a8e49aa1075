"""Agents that are heard, end, fall silent, or were never reached."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from prefect_tpu.gang.lifelines import Lifelines
from prefect_tpu.host.heart import BEAT_SECONDS, Heart

AGENT = """
import sys, time
from prefect_tpu.host.heart import Heart
print(Heart("127.0.0.1").port, flush=True)
time.sleep(600)
"""
SILENCE_SECONDS = 2.0
SOON_SECONDS = 10.0


@pytest.fixture
def agent() -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A process with a heart, and its port."""
    process = subprocess.Popen([sys.executable, "-c", AGENT], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    yield process, int(process.stdout.readline())
    process.kill()
    process.wait()
    process.stdout.close()


@pytest.fixture
def lifelines() -> Iterator[Lifelines]:
    """The driver's side."""
    one = Lifelines(SILENCE_SECONDS)
    yield one
    one.close()


def look_until(lifelines: Lifelines, seconds: float) -> dict[int, str]:
    """What is found gone first, if anything is within that time."""
    give_up = time.monotonic() + seconds
    while time.monotonic() < give_up:
        if gone := lifelines.look():
            return gone
        time.sleep(0.05)
    return {}


def test_a_living_agent_is_not_gone(agent: tuple[subprocess.Popen[str], int], lifelines: Lifelines) -> None:
    """For longer than the time of silence."""
    lifelines.connect(3, "127.0.0.1", agent[1])
    assert look_until(lifelines, SILENCE_SECONDS * 2) == {}


def test_an_agent_that_ends_is_gone_at_once(agent: tuple[subprocess.Popen[str], int], lifelines: Lifelines) -> None:
    """By the end of its connection, not by its silence."""
    lifelines.connect(3, "127.0.0.1", agent[1])
    assert look_until(lifelines, BEAT_SECONDS * 3) == {}
    agent[0].kill()
    assert look_until(lifelines, SOON_SECONDS) == {3: "its agent has ended"}
    assert lifelines.look() == {}


def test_a_frozen_agent_is_gone_after_its_silence(
    agent: tuple[subprocess.Popen[str], int], lifelines: Lifelines
) -> None:
    """SIGSTOP, or a network that drops everything."""
    lifelines.connect(3, "127.0.0.1", agent[1])
    assert look_until(lifelines, BEAT_SECONDS * 3) == {}
    os.kill(agent[0].pid, signal.SIGSTOP)
    (why,) = look_until(lifelines, SOON_SECONDS).values()
    assert "silent for 2 s (heartbeat_timeout_seconds)" in why


def test_a_driver_that_was_stopped_itself_blames_nobody(
    agent: tuple[subprocess.Popen[str], int], lifelines: Lifelines
) -> None:
    """A pause of whoever looks is not the agent's silence."""
    lifelines.connect(3, "127.0.0.1", agent[1])
    assert look_until(lifelines, BEAT_SECONDS * 3) == {}
    time.sleep(SILENCE_SECONDS * 2)
    assert look_until(lifelines, SILENCE_SECONDS * 1.5) == {}


def test_a_host_that_cannot_be_reached_this_way_is_not_lost(lifelines: Lifelines) -> None:
    """Nobody listens, or a firewall answers nothing: connecting waits for neither, Ray finds a loss of such a host."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        lifelines.connect(0, "127.0.0.1", free.getsockname()[1])
    began = time.monotonic()
    for number in range(1, 65):
        lifelines.connect(number, "192.0.2.1", 9)  # reserved for documentation: no host has it
    assert time.monotonic() - began < SILENCE_SECONDS, "it has waited for each"
    assert look_until(lifelines, SILENCE_SECONDS * 2) == {}


def test_a_heart_beats_for_many() -> None:
    """Each connection of its own; one that has ended does not disturb the others."""
    heart = Heart("127.0.0.1")
    first, second = Lifelines(SILENCE_SECONDS), Lifelines(SILENCE_SECONDS)
    first.connect(0, "127.0.0.1", heart.port)
    second.connect(1, "127.0.0.1", heart.port)
    assert look_until(second, BEAT_SECONDS * 2) == {}
    first.close()
    assert look_until(second, SILENCE_SECONDS * 1.5) == {}
    second.close()
