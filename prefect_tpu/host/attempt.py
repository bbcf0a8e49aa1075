"""The agent's side of one attempt on this host: what its child says, and how it ended."""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial

from prefect_tpu.core.messages import Event, Exited, LogLine, LogRecord, Phase, Returned
from prefect_tpu.host.reactor import Reader
from prefect_tpu.host.streams import EventBuffer, LineSplitter
from prefect_tpu.wire import channel, payload

log = logging.getLogger("prefect_tpu.host")

KEPT_STDERR_LINES = 20
MAX_TOLD_PROCESSES = 10
MAX_DRAIN_READS = 2_000
"""What is left in a dead child's pipes is far less; a process that got away may go on writing."""
_READ_BYTES = 256 * 1024


class HostAttempt:
    """One child with its pipes. `take_*` are called by the supervisor's I/O thread only.

    Attributes:
        signal: sends a signal to a process of its zygote; None while it has no zygote.
        kill: the same for SIGKILL to a process and everything that it has started.
    """

    def __init__(self, attempt_id: str) -> None:
        self.id = attempt_id
        self.events = EventBuffer()
        self.pid = 0
        self.fork_error = ""
        self.forked = threading.Event()
        self.over = threading.Event()
        self.stopped = False
        self.returned = False
        self.forgotten = False
        self.kill_at: float | None = None
        self.cut_as = ""
        self.signal: Callable[[int, int], None] | None = None
        self.kill: Callable[[int], None] | None = None
        self.control: socket.socket | None = None
        self.result_file = -1
        self._forked_said = False
        self._pipes: dict[int, tuple[str, LineSplitter]] = {}
        self._untold: dict[str, dict[str, object]] = {}
        self._telling = threading.Lock()
        self._last_stderr: deque[str] = deque(maxlen=KEPT_STDERR_LINES)

    def open(self) -> tuple[socket.socket, list[int]]:
        """Make channel, result file and pipes; returns the child's ends of channel and pipes."""
        self.control, theirs = channel.pair()
        self.result_file = payload.create("prefect-tpu-result")
        write_ends = []
        for stream in ("stdout", "stderr"):
            read_end, write_end = os.pipe()
            os.set_blocking(read_end, False)
            self._pipes[read_end] = (stream, LineSplitter())
            write_ends.append(write_end)
        return theirs, write_ends

    def kill_before(self, when: float) -> None:
        """Set the time of the kill, or move it forward."""
        self.kill_at = when if self.kill_at is None else min(self.kill_at, when)

    def readers(self) -> list[tuple[int, Reader]]:
        """Descriptors to watch, each with what reads it."""
        if self.control is None or self.over.is_set():
            return []
        return [(self.control.fileno(), self._take_event), *((p, partial(self._take_output, p)) for p in self._pipes)]

    def _take_event(self) -> bool | None:
        assert self.control is not None
        try:
            received = channel.receive(self.control, flags=socket.MSG_DONTWAIT)
            if received is None:
                return False
            self._take(channel.read_event(received[0]))
        except BlockingIOError:
            return None
        except Exception:  # a broken child must not stop the thread that serves all of them
            log.exception("attempt %s: its process %s sent something unreadable", self.id, self.pid)
        return True

    def _take(self, event: Event) -> None:
        self._say_forked()
        self.returned = self.returned or isinstance(event, Returned)
        self.events.add(event)

    def take_forked(self, pid: int) -> None:
        """The zygote says that the child is there; the child itself may have been faster."""
        self.pid = pid
        self._say_forked()
        self.forked.set()

    def _say_forked(self) -> None:
        if not self._forked_said:
            self._forked_said = True
            self.events.add(Phase("forked"))

    def _take_output(self, pipe: int) -> bool | None:
        stream, splitter = self._pipes[pipe]
        try:
            data = os.read(pipe, _READ_BYTES)
        except BlockingIOError:
            return None
        for line in splitter.feed(data) if data else splitter.close():
            self._line(stream, line)
        return bool(data)

    def _line(self, stream: str, text: str) -> None:
        self._say_forked()
        if stream == "stderr":
            self._last_stderr.append(text)
            self.events.add(LogLine("stderr", text))
        else:
            self.events.add(LogLine("stdout", text))

    def command(self, do: str, **details: object) -> bool:
        """Tell the child something, if it is there; False if it does not read. Then `tell` tells the newest of each."""
        with self._telling:
            self._untold.pop(do, None)
            self._untold[do] = details
        return self.tell()

    def tell(self) -> bool:
        """Tell the child what it has not heard yet; False if it does not read: try again."""
        with self._telling:
            while self._untold and self.control is not None and not self.over.is_set():
                do, details = next(iter(self._untold.items()))
                if not channel.offer_command(self.control, do=do, **details):
                    return False
                del self._untold[do]
            return True

    def end(self, exit_code: int | None, signal: int | None, left: Sequence[str] = ()) -> None:
        """The child and its session are dead: take what is left in pipes and channel, then say so.

        Args:
            exit_code: of the child, None if a signal ended it.
            signal: that ended it.
            left: processes that it had left behind, and that were ended, in words.
        """
        if self.over.is_set():
            return
        for _, read in self.readers():
            for _ in range(MAX_DRAIN_READS):
                if not read():
                    break
        for pipe, (stream, splitter) in self._pipes.items():
            for line in splitter.close():
                self._line(stream, line)
            os.close(pipe)
        self._pipes.clear()
        if self.control is not None:
            self.control.close()
        self.over.set()
        self.forked.set()
        if self.cut_as and signal is not None:
            text = f"its end was cut, as {self.cut_as}; it did not say what it was doing"
            self.events.add(LogRecord(logging.WARNING, log.name, text))
        if left:
            self._tell_of(left)
        self.events.complete(Exited(exit_code, signal, tuple(self._last_stderr)))
        if self.forgotten:
            self.close_result()

    def _tell_of(self, left: Sequence[str]) -> None:
        if self.stopped or self.cut_as:  # all of it was to be ended
            return
        shown = ", ".join(left[:MAX_TOLD_PROCESSES])
        more = len(left) - MAX_TOLD_PROCESSES
        text = f"it left processes behind, which were ended: {shown}" + (f" and {more} more" if more > 0 else "")
        self.events.add(LogRecord(logging.WARNING, log.name, text))

    def close_result(self) -> None:
        """Give the result's memory back, as far as nobody has mapped it."""
        if self.result_file >= 0:
            os.close(self.result_file)
            self.result_file = -1
