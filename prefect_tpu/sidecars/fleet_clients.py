"""Who talks to a fleet supervisor: lines in, lines out, never waiting, and no more kept than the limits say.

Not asyncio: hosts are forked from this very thread, and each must close every descriptor that it has been born with,
among them those that an event loop hides.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from prefect_tpu.core.fleet_commands import MAX_LINE_BYTES, BadRequestError, read

MAX_UNREAD_BYTES = 1024 * 1024
"""Of answers and news that a client has not read; one who reads none is closed then."""
MAX_CLIENTS = 64
READ_BYTES = 64 * 1024


@dataclass(slots=True, eq=False)
class Client:
    """Somebody who sends commands and gets answers.

    Attributes:
        reader, writer: descriptors; one and the same for a socket.
        selector: told which of them to watch.
        hear: called with each command.
        gone: called once it is closed.
        is_owner: who asked for the fleet, whose end is the fleet's. It is not closed for not reading: it may be stopped
            in a debugger. News that it does not read are dropped, and it is not heard until it has read.
    """

    reader: int
    writer: int
    selector: selectors.BaseSelector
    hear: Callable[[Client, dict[str, Any]], None]
    gone: Callable[[Client], None]
    is_owner: bool = False
    closed: bool = False
    _in: bytearray = field(default_factory=bytearray)
    _out: bytearray = field(default_factory=bytearray)
    _watched: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for descriptor in {self.reader, self.writer}:
            os.set_blocking(descriptor, False)
        self._watch()

    def news(self, message: dict[str, Any]) -> None:
        """Tell it something that it has not asked for."""
        if len(self._out) < MAX_UNREAD_BYTES:
            self._send(message)

    def answer(self, message: dict[str, Any]) -> None:
        """Tell it what it has asked for."""
        self._send(message)
        if len(self._out) > MAX_UNREAD_BYTES and not self.is_owner:
            self.close()

    def refuse(self, says: str, number: int | None = None) -> None:
        """It has asked for what cannot be; the text is for the user."""
        self.answer({"id": number, "ok": False, "error": says, "refused": True})

    def close(self) -> None:
        """Hear and tell nothing more."""
        if self.closed:
            return
        self.closed = True
        self._watch()
        for descriptor in {self.reader, self.writer}:
            with contextlib.suppress(OSError):
                os.close(descriptor)
        self.gone(self)

    def finish(self) -> None:
        """Wait until it has read what it was told, a second at most; then close it."""
        waiting = selectors.SelectSelector()
        if not self.closed and self._out:
            waiting.register(self.writer, selectors.EVENT_WRITE)
            if waiting.select(1.0):
                self._write()
        waiting.close()
        self.close()

    def _send(self, message: dict[str, Any]) -> None:
        if not self.closed:
            self._out += json.dumps(message).encode() + b"\n"
            self._write()

    def _write(self) -> None:
        try:
            while self._out:
                del self._out[: os.write(self.writer, self._out)]
        except BlockingIOError:
            pass
        except OSError:
            self.close()
            return
        self._watch()

    def _read(self) -> None:
        try:
            data = os.read(self.reader, READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.close()
            return
        self._in += data
        while not self.closed and (end := self._in.find(b"\n")) >= 0:
            line = bytes(self._in[:end])
            del self._in[: end + 1]
            self._take(line)
        if len(self._in) > MAX_LINE_BYTES:
            self._too_long()

    def _take(self, line: bytes) -> None:
        if len(line) > MAX_LINE_BYTES:
            self._too_long()
        elif line.strip():
            try:
                request = read(line)
            except BadRequestError as error:
                self.refuse(str(error), error.number)
            else:
                self.hear(self, request)

    def _too_long(self) -> None:
        self._in.clear()
        self.refuse(f"bad request: a line of more than {MAX_LINE_BYTES} bytes; the connection is closed")
        self.close()

    def _on_event(self) -> None:
        """Which of the two it is does not matter: neither ever waits."""
        if self.closed:  # by what another one has asked for a moment ago
            return
        if self._out:
            self._write()
        if not self.closed and self._watched.get(self.reader, 0) & selectors.EVENT_READ:
            self._read()

    def _watch(self) -> None:
        """Have the selector look at what there is to do."""
        wanted = dict.fromkeys((self.reader, self.writer), 0)
        if not self.closed:
            if len(self._out) <= MAX_UNREAD_BYTES:
                wanted[self.reader] |= selectors.EVENT_READ
            if self._out:
                wanted[self.writer] |= selectors.EVENT_WRITE
        for descriptor, events in wanted.items():
            if events == self._watched.get(descriptor, 0):
                continue
            if not events:
                self.selector.unregister(descriptor)
            elif self._watched.get(descriptor):
                self.selector.modify(descriptor, events, self._on_event)
            else:
                self.selector.register(descriptor, events, self._on_event)
            self._watched[descriptor] = events
