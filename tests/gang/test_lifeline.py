"""Agents that are heard, end, fall silent, or were never reached."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from prefect_tpu.gang.lifelines import Lifelines
from prefect_tpu.host.heart import BEAT_SECONDS, DEAF_SECONDS, Connections, Heart
from tests.waiting import eventually

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


CROWD = """
import resource, sys, time
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
from prefect_tpu.host.heart import Heart
heart = Heart("127.0.0.1")
print(heart.port, flush=True)
files = []
for line in sys.stdin:
    if line == "take\\n":  # what is left of the descriptors
        try:
            while True:
                files.append(open("/dev/null"))
        except OSError:
            print("taken", flush=True)
    else:
        for one in files:
            one.close()
        print("free", flush=True)
"""


@pytest.fixture
def crowded() -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A process with a heart that may open 64 files."""
    process = subprocess.Popen(
        [sys.executable, "-c", CROWD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    yield process, int(process.stdout.readline())
    process.kill()
    process.communicate()


def ask(process: subprocess.Popen[str], what: str) -> str:
    """One order, and the answer."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(f"{what}\n")
    process.stdin.flush()
    return process.stdout.readline().strip()


def test_a_crowd_of_strangers_costs_no_driver_its_lifeline(
    crowded: tuple[subprocess.Popen[str], int], lifelines: Lifelines
) -> None:
    """More connections than the agent may have files: the oldest that say nothing go, drivers stay and come."""
    process, port = crowded
    lifelines.connect(1, "127.0.0.1", port)
    assert look_until(lifelines, BEAT_SECONDS * 3) == {}
    strangers = [socket.create_connection(("127.0.0.1", port), 5) for _ in range(100)]
    try:
        assert look_until(lifelines, SILENCE_SECONDS) == {}, "a driver that was there before has lost its agent"
        lifelines.connect(2, "127.0.0.1", port)
        assert look_until(lifelines, SILENCE_SECONDS * 1.5) == {}
        assert lifelines.reached == {1, 2}
        assert ask(process, "take") == "taken", "the agent has files left for its own work"
    finally:
        for one in strangers:
            one.close()


def test_an_agent_without_descriptors_beats_on(
    crowded: tuple[subprocess.Popen[str], int], lifelines: Lifelines
) -> None:
    """EMFILE is no end: who is there is beaten to, and who waits gets in when there is room."""
    process, port = crowded
    lifelines.connect(1, "127.0.0.1", port)
    assert look_until(lifelines, BEAT_SECONDS * 3) == {}
    assert ask(process, "take") == "taken"
    lifelines.connect(2, "127.0.0.1", port)
    assert look_until(lifelines, SILENCE_SECONDS * 0.4) == {}
    assert ask(process, "free") == "free"
    assert look_until(lifelines, SILENCE_SECONDS) == {}
    assert lifelines.reached == {1, 2}


def test_who_takes_no_beat_is_dropped() -> None:
    """Its buffers are full; after a minute its descriptor is free again. Who takes beats stays, at any age."""
    listener = socket.create_server(("127.0.0.1", 0))
    with listener, Connections(limit=8) as connections:
        theirs = []
        for _ in range(2):
            theirs.append(socket.create_connection(listener.getsockname()))
            connections.add(listener.accept()[0], 0.0)
        deaf = connections.open[0]
        with contextlib.suppress(BlockingIOError):
            while True:
                deaf.send(bytes(1 << 16))
        connections.beat(DEAF_SECONDS - 0.1)
        assert len(connections.open) == 2
        connections.beat(DEAF_SECONDS)
        assert deaf not in connections.open
        assert len(connections.open) == 1
        for one in theirs:
            one.close()


def test_whom_a_full_agent_hangs_up_on() -> None:
    """The oldest that has never said a word; if all have, the one that has been silent for longest."""
    listener = socket.create_server(("127.0.0.1", 0))
    with listener, Connections(limit=3) as connections:
        theirs = []

        def come(now: float) -> socket.socket:
            theirs.append(socket.create_connection(listener.getsockname()))
            connections.add(listener.accept()[0], now)
            return connections.open[-1]

        first, second, third = come(0.0), come(1.0), come(2.0)
        theirs[0].send(b".")
        eventually(lambda: select.select([first], [], [], 0)[0], "its word has come")
        connections.beat(3.0)
        fourth = come(4.0)
        assert connections.open == [first, third, fourth], "the second has said nothing"
        come(5.0)
        come(6.0)
        assert first in connections.open
        assert second not in connections.open
        for one in theirs:
            one.close()


def test_a_heart_that_is_closed_hangs_up(lifelines: Lifelines) -> None:
    """And only then."""
    heart = Heart("127.0.0.1")
    lifelines.connect(1, "127.0.0.1", heart.port)
    assert look_until(lifelines, BEAT_SECONDS * 3) == {}
    heart.close()
    assert look_until(lifelines, SOON_SECONDS) == {1: "its agent has ended"}
