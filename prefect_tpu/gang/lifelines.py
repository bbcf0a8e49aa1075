"""Whether an agent lives, heard over a TCP connection of our own: Ray needs seconds to a minute to find out."""

from __future__ import annotations

import contextlib
import logging
import selectors
import socket
import time

from prefect_tpu.host.heart import BEAT_SECONDS

log = logging.getLogger("prefect_tpu.lifeline")

ANSWER = b"."
"""To a beat: so an agent with too many connections knows which of them are drivers'."""
_READ_BYTES = 4096


class Lifelines:
    """The driver's side, for the hosts of one attempt. Used by one thread.

    An end of the connection means that the agent has ended; silence, that its host is frozen or cut off. A host that
    cannot be reached this way is left to Ray's own detection, which is slower.

    Attributes:
        reached: host processes whose agent has been heard.
    """

    def __init__(self, timeout_seconds: float) -> None:
        """`timeout_seconds`: of silence, before a host counts as lost."""
        self._timeout_seconds = timeout_seconds
        self._selector = selectors.DefaultSelector()
        self._heard: dict[int, float] = {}
        self.reached: set[int] = set()
        self._looked_at = time.monotonic()

    def connect(self, process_id: int, address: str, port: int) -> None:
        """Listen to the agent of this host process. Returns at once: the connection is made meanwhile."""
        try:
            connection = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM)
            connection.setblocking(False)
            connection.connect_ex((address, port))
        except OSError as error:
            log.debug("no lifeline to %s port %s (%s): a loss of this host is found by Ray alone", address, port, error)
            return
        self._selector.register(connection, selectors.EVENT_READ, process_id)
        self._heard[process_id] = time.monotonic()

    def look(self) -> dict[int, str]:
        """Host processes whose agent has gone since the last look, each with why; never waits."""
        gone: dict[int, str] = {}
        for key, _ in self._selector.select(0):
            assert isinstance(key.fileobj, socket.socket)
            try:
                data = key.fileobj.recv(_READ_BYTES)
            except BlockingIOError:
                continue
            except OSError:
                data = b""
            if data:
                self._heard[key.data] = time.monotonic()
                self.reached.add(key.data)
                with contextlib.suppress(OSError):
                    key.fileobj.send(ANSWER)
                continue
            self._end(key, "its agent has ended", gone)
        now = time.monotonic()
        # Whoever has not looked for long, a driver that was stopped itself for one, has not been waiting either.
        paused = max(0.0, now - self._looked_at - BEAT_SECONDS)
        self._looked_at = now
        for process_id in self._heard:
            self._heard[process_id] += paused
        for key in list(self._selector.get_map().values()):
            silent = now - self._heard[key.data]
            if silent > self._timeout_seconds:
                self._end(key, f"its agent has been silent for {silent:.0f} s (heartbeat_timeout_seconds)", gone)
        return gone

    def close(self) -> None:
        """Hang up."""
        for key in list(self._selector.get_map().values()):
            assert isinstance(key.fileobj, socket.socket)
            with contextlib.suppress(OSError):
                key.fileobj.close()
        self._selector.close()

    def _end(self, key: selectors.SelectorKey, why: str, gone: dict[int, str]) -> None:
        """A host that was never reached this way is not lost by that."""
        connection, process_id = key.fileobj, key.data
        assert isinstance(connection, socket.socket)
        if process_id in self.reached:
            gone[process_id] = why
        else:
            log.debug("no lifeline to the host of process %d: a loss of it is found by Ray alone", process_id)
        self._selector.unregister(connection)
        connection.close()
        del self._heard[process_id]
