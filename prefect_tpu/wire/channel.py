"""How the child of an attempt and its agent talk: whole messages over a socket, each of bounded size.

A message is atomic, so processes that the function forks can log through the same socket.
"""

from __future__ import annotations

import json
import pickle
import socket
from typing import Any

from prefect_tpu.core.messages import Event
from prefect_tpu.wire import payload

MAX_MESSAGE_BYTES = 128 * 1024
"""Below what the kernel takes as one message with its default buffer sizes."""

_INLINE = b"i"
_IN_RESULT_FILE = b"f"


def pair() -> tuple[socket.socket, socket.socket]:
    """Both ends of a new channel."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def send_event(channel: socket.socket, event: Event, result_file: int) -> None:
    """From the child: one event. One that is too big goes through the file for the result."""
    data = pickle.dumps(event, protocol=5)
    if len(data) < MAX_MESSAGE_BYTES:
        channel.send(_INLINE + data)
        return
    payload.write(result_file, [data])
    channel.send(_IN_RESULT_FILE)


def receive_event(data: bytes, result_file: int) -> Event:
    """In the agent: the event of one message."""
    whole = payload.read(result_file)[0] if data[:1] == _IN_RESULT_FILE else data[1:]
    event: Event = pickle.loads(whole)  # noqa: S301 - from the process that we have started
    return event


def send_command(channel: socket.socket, **command: Any) -> bool:
    """To a child or a zygote; False if it is gone."""
    try:
        channel.send(json.dumps(command).encode())
    except OSError:
        return False
    return True


def receive_command(channel: socket.socket) -> dict[str, Any] | None:
    """The next command; None when the other side is gone."""
    try:
        data = channel.recv(MAX_MESSAGE_BYTES)
    except ConnectionError:
        return None
    if not data:
        return None
    command: dict[str, Any] = json.loads(data)
    return command
