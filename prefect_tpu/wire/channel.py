"""How the child of an attempt and its agent talk: whole messages over a socket.

A message is atomic, so processes that the function forks can log through the same socket. One that is too big for
the kernel travels in a sealed memory file of its own, of which the descriptor is sent.
"""

from __future__ import annotations

import array
import json
import os
import pickle
import socket
from typing import Any

from prefect_tpu.core.messages import Event
from prefect_tpu.wire import payload

MAX_MESSAGE_BYTES = 128 * 1024
"""Below what the kernel takes as one message with its default buffer sizes."""

_INLINE = b"i"
_IN_FILE = b"f"


def pair() -> tuple[socket.socket, socket.socket]:
    """Both ends of a new channel."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def send(channel: socket.socket, data: bytes, descriptors: tuple[int, ...] = (), flags: int = 0) -> None:
    """One message of any size; `descriptors` only go with a small one."""
    if len(data) < MAX_MESSAGE_BYTES:
        _send(channel, _INLINE + data, descriptors, flags)
        return
    file = payload.create("prefect-tpu-message")
    try:
        payload.fill(file, data)
        payload.seal(file)
        _send(channel, _IN_FILE, (file,), flags)
    finally:
        os.close(file)


def _send(channel: socket.socket, data: bytes, descriptors: tuple[int, ...], flags: int) -> None:
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
    channel.sendmsg([data], rights, flags)


def receive(channel: socket.socket, most_descriptors: int = 1, flags: int = 0) -> tuple[bytes, list[int]] | None:
    """The next message, with the descriptors that came along; None when the other side is gone."""
    try:
        data, descriptors, _, _ = socket.recv_fds(
            channel, MAX_MESSAGE_BYTES + 1, most_descriptors, flags | socket.MSG_CMSG_CLOEXEC
        )
    except ConnectionError:
        return None
    if not data:
        return None
    if data[:1] == _INLINE:
        return data[1:], descriptors
    try:
        return payload.whole(descriptors[0]), []
    finally:
        for one in descriptors:
            os.close(one)


def send_event(channel: socket.socket, event: Event) -> None:
    """From the child: one event."""
    send(channel, pickle.dumps(event, protocol=5))


def read_event(data: bytes) -> Event:
    """In the agent: the event of one message."""
    event: Event = pickle.loads(data)  # noqa: S301 - from the process that we have started
    return event


def send_command(channel: socket.socket, **command: Any) -> bool:
    """To somebody who reads; False if it is gone."""
    try:
        send(channel, json.dumps(command).encode())
    except OSError:
        return False
    return True


def offer_command(channel: socket.socket, **command: Any) -> bool:
    """Never waits. False if there is no room, as the other side does not read: stopped, perhaps. True if it is gone."""
    try:
        send(channel, json.dumps(command).encode(), flags=socket.MSG_DONTWAIT)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def receive_command(channel: socket.socket) -> dict[str, Any] | None:
    """The next command; None when the other side is gone."""
    received = receive(channel)
    if received is None:
        return None
    command: dict[str, Any] = json.loads(received[0])
    return command
