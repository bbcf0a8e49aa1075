"""What an attempt says, on its way to the driver: lines cut out of pipes, events in a bounded buffer."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque

from prefect_tpu.core.messages import Carried, Event, LogLine, LogRecord, Poll, Progress
from prefect_tpu.core.rate import RateLimit
from prefect_tpu.core.text import MAX_LINE_CHARS, cut

MAX_BUFFERED_LINES = 10_000
MAX_BUFFERED_CHARS = 16_000_000
MAX_POLL_EVENTS = 2_000
_MAX_LINE_BYTES = 4 * MAX_LINE_CHARS  # a character has at most four in UTF-8


class LineSplitter:
    """Cuts a byte stream into lines, as a terminal would show them: what a carriage return overwrites is not kept."""

    def __init__(self) -> None:
        self._line = b""
        self._left_out = 0

    def feed(self, data: bytes) -> list[str]:
        """The lines that are complete now."""
        first, *others = data.split(b"\n")
        self._extend(first)
        lines = []
        for piece in others:
            lines.append(self._take())
            self._extend(piece)
        return lines

    def close(self) -> list[str]:
        """The last line, if it has no end."""
        return [self._take()] if self._line else []

    def _extend(self, piece: bytes) -> None:
        if piece and self._line.endswith(b"\r"):
            self._line, self._left_out = b"", 0
        overwritten = piece.rfind(b"\r", 0, len(piece) - 1) + 1  # one at the very end may belong to the line's end
        if overwritten:
            piece, self._line, self._left_out = piece[overwritten:], b"", 0
        room = _MAX_LINE_BYTES - len(self._line)
        self._line += piece[:room]
        self._left_out += len(piece) - len(piece[:room])

    def _take(self) -> str:
        text = self._line.removesuffix(b"\r").decode(errors="replace")
        text, self._line, self._left_out = cut(text, self._left_out), b"", 0
        return text


class EventBuffer:
    """Events of one attempt, each kept until a later poll says that it has arrived. None follows the last one.

    Lines beyond the limits are dropped and counted; everything else is kept. Records from WARNING on have a
    rate limit of their own, so that chatter does not push them out.
    """

    def __init__(self) -> None:
        self._rates: tuple[RateLimit, RateLimit] | None = None
        self._condition = threading.Condition()
        self._events: deque[Event] = deque()
        self._first = 0
        self._lines = 0
        self._chars = 0
        self._dropped = 0
        self._complete = False

    def limit(self, lines_per_second: float, burst_lines: float) -> None:
        """How many lines may go to the driver."""
        with self._condition:
            self._rates = RateLimit(lines_per_second, burst_lines), RateLimit(lines_per_second, burst_lines)

    def add(self, event: Event) -> None:
        """Append an event and wake who polls."""
        with self._condition:
            if self._complete:
                return
            chars = _chars(event)
            if chars is not None:
                full = self._lines >= MAX_BUFFERED_LINES or self._chars + chars > MAX_BUFFERED_CHARS
                if full or not self._may_pass(event):
                    self._dropped += 1
                    return
                self._lines += 1
                self._chars += chars
            self._events.append(event)
            self._condition.notify_all()

    def _may_pass(self, event: Event) -> bool:
        if self._rates is None or isinstance(event, Carried):
            return True
        important = isinstance(event, LogRecord) and event.level >= logging.WARNING
        return self._rates[important].take(time.monotonic())

    def complete(self, event: Event) -> None:
        """Append the last event."""
        with self._condition:
            self._events.append(event)
            self._complete = True
            self._condition.notify_all()

    def poll(self, after: int, timeout_seconds: float) -> Poll:
        """Events from cursor `after` on, as soon as there are any; those before it are forgotten."""
        deadline = time.monotonic() + timeout_seconds
        with self._condition:
            while self._events and self._first < after:
                chars = _chars(self._events.popleft())
                self._first += 1
                if chars is not None:
                    self._lines -= 1
                    self._chars -= chars
            while not self._events and not self._complete:
                remaining = deadline - time.monotonic()
                if remaining <= 0:
                    break
                self._condition.wait(remaining)
            taken = [event for event, _ in zip(self._events, range(MAX_POLL_EVENTS), strict=False)]
            return Poll(
                events=tuple(_newest_progress(taken)), cursor=self._first + len(taken), dropped_lines=self._dropped
            )


def _chars(event: Event) -> int | None:
    if isinstance(event, LogLine):
        return len(event.text)
    if isinstance(event, LogRecord):
        return len(event.message)
    if isinstance(event, Carried):
        return len(event.body)
    return None


def _newest_progress(events: list[Event]) -> list[Event]:
    newest = next((event for event in reversed(events) if isinstance(event, Progress)), None)
    return [event for event in events if not isinstance(event, Progress) or event is newest]
