"""Messages between agent, zygote and host process: of every size, each by itself."""

from __future__ import annotations

import os
import socket

import pytest

from prefect_tpu.core.messages import Progress
from prefect_tpu.wire import channel, payload

SIZES = [0, 1, channel.MAX_MESSAGE_BYTES - 1, channel.MAX_MESSAGE_BYTES, 1_000_000]


@pytest.mark.parametrize("size", SIZES)
def test_messages_of_every_size_arrive(size: int) -> None:
    """In order, and nothing of them stays open."""
    ours, theirs = channel.pair()
    with ours, theirs:
        before = len(os.listdir("/proc/self/fd"))
        for text in ("x" * size, "after"):
            assert channel.send_command(ours, text=text)
            assert channel.receive_command(theirs) == {"text": text}
        assert len(os.listdir("/proc/self/fd")) == before


def test_a_big_message_travels_sealed_and_alone() -> None:
    """Each has a file of its own, which the one who made it cannot change any more."""
    ours, theirs = channel.pair()
    with ours, theirs:
        events = [Progress(step, {f"{step}{index:0200}": 1.0 for index in range(1_000)}) for step in range(2)]
        for one in events:
            channel.send_event(ours, one)
        data, descriptors, _, _ = socket.recv_fds(theirs, 10, 1)
        (file,) = descriptors
        assert data == b"f"
        with pytest.raises(PermissionError):
            os.ftruncate(file, 0)
        with pytest.raises(PermissionError):
            os.pwrite(file, b"x", 0)
        assert channel.read_event(payload.whole(file)) == events[0]
        os.close(file)
        received = channel.receive(theirs)
        assert received is not None
        assert channel.read_event(received[0]) == events[1]


@pytest.mark.parametrize("size", SIZES)
def test_who_does_not_read_is_not_waited_for(size: int) -> None:
    """False: there is no room; one that is gone is never waited for either."""
    ours, theirs = channel.pair()
    with ours:
        sent = 0
        while channel.offer_command(ours, text="x" * size):
            sent += 1
        assert 0 < sent < 10_000
        theirs.close()
        assert channel.offer_command(ours, text="x" * size)
        assert not channel.send_command(ours, text="x")
        assert channel.receive_command(ours) is None
