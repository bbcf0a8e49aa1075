"""The supervisor's side of its connections: limits, and that nobody who does not read or write holds up the others."""

from __future__ import annotations

import json
import os
import selectors
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from prefect_tpu.core.fleet_commands import MAX_LINE_BYTES
from prefect_tpu.sidecars.fleet_clients import MAX_UNREAD_BYTES, Client


class Line:
    """A client, and the other end of it."""

    def __init__(self, *, is_owner: bool = False) -> None:
        self.selector = selectors.DefaultSelector()
        self.heard: list[dict[str, Any]] = []
        self.gone: list[Client] = []
        self.other, ours = socket.socketpair()
        self.other.setblocking(False)
        reader = ours.detach()
        self.client = Client(
            reader, reader, self.selector, lambda _, one: self.heard.append(one), self.gone.append, is_owner=is_owner
        )

    def turn(self) -> None:
        """What there is to do now."""
        for key, _ in self.selector.select(0):
            key.data()

    def read(self) -> list[dict[str, Any]]:
        """All that has been said."""
        data = b""
        while True:
            self.turn()
            try:
                more = self.other.recv(1 << 20)
            except (BlockingIOError, ConnectionResetError):
                break
            if not more:
                break
            data += more
        return [json.loads(line) for line in data.splitlines()]


@pytest.fixture
def line() -> Iterator[Line]:
    """One that anybody may have."""
    made = Line()
    yield made
    made.client.close()
    made.other.close()


def test_pieces_and_several_at_once(line: Line) -> None:
    """A command may come in pieces, and several in one."""
    line.other.sendall(b'{"id": 1, "do": "sta')
    line.turn()
    assert line.heard == []
    line.other.sendall(b'tus"}\n\n{"id": 2, "do": "status"}\n')
    line.turn()
    assert [one["id"] for one in line.heard] == [1, 2]


def test_what_is_no_command_is_answered_and_the_connection_goes_on(line: Line) -> None:
    """Refused by its number, if it has one."""
    line.other.sendall(b'hello\n{"id": 5, "do": "dance"}\n{"id": 6, "do": "status"}\n')
    line.turn()
    answers = line.read()
    assert [(one["id"], one["ok"], one["refused"]) for one in answers] == [(None, False, True), (5, False, True)]
    assert [one["id"] for one in line.heard] == [6]


@pytest.mark.parametrize("ending", [b"", b"\n"])
def test_a_line_that_is_too_long(line: Line, ending: bytes) -> None:
    """Whether it ends or not: the limit is named, and the connection closed."""
    rest = b"x" * (MAX_LINE_BYTES + 1) + ending
    while rest and not line.gone:
        rest = rest[line.other.send(rest) :]
        line.turn()
    (answer,) = line.read()
    assert f"more than {MAX_LINE_BYTES} bytes" in answer["error"]
    assert line.gone == [line.client]


def test_who_does_not_read_is_closed(line: Line) -> None:
    """After so many bytes; nobody has waited for it."""
    for _ in range(2 * MAX_UNREAD_BYTES // 1_000 + 1_000):
        line.client.answer({"text": "x" * 1_000})
    assert line.gone == [line.client]


def test_news_for_who_does_not_read_are_dropped() -> None:
    """Nobody has asked for them."""
    line = Line()
    for _ in range(2 * MAX_UNREAD_BYTES // 1_000 + 1_000):
        line.client.news({"progress": "x" * 1_000})
    assert line.gone == []
    assert MAX_UNREAD_BYTES < len(line.read()) * 1_020 < 2 * MAX_UNREAD_BYTES
    line.client.close()
    line.other.close()


def test_an_owner_that_does_not_read_is_not_heard_until_it_has() -> None:
    """It may be stopped in a debugger: its end would be the fleet's."""
    line = Line(is_owner=True)
    for _ in range(2 * MAX_UNREAD_BYTES // 1_000 + 1_000):
        line.client.answer({"text": "x" * 1_000})
    line.other.sendall(b'{"id": 1, "do": "status"}\n')
    line.turn()
    assert (line.gone, line.heard) == ([], [])
    assert len(line.read()) == 2 * MAX_UNREAD_BYTES // 1_000 + 1_000
    line.turn()
    assert [one["id"] for one in line.heard] == [1]
    line.other.close()
    line.turn()
    assert line.gone == [line.client]


def test_a_closed_client_is_left_alone(line: Line) -> None:
    """Also if its number is another descriptor's by now."""
    (key, _) = next(iter(line.selector.select(0)), (line.selector.get_key(line.client.reader), 0))
    line.client.close()
    reader, writer = os.pipe()
    key.data()
    line.client.answer({"id": 1})
    os.set_blocking(reader, False)
    with pytest.raises(BlockingIOError):
        os.read(reader, 1)
    os.close(reader)
    os.close(writer)
