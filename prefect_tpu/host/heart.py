"""The agent's end of the heartbeat."""

from __future__ import annotations

import contextlib
import logging
import resource
import socket
import threading
import time
from types import TracebackType
from typing import Self

log = logging.getLogger("prefect_tpu.host")

BEAT_SECONDS = 0.5
BACKLOG = 128
MAX_CONNECTIONS = 128
"""No more drivers at the same time, and no more than a quarter of the files that this process may open."""
DEAF_SECONDS = 60.0
"""Who takes no beat for so long is dropped."""
_BEAT = b"."
_READ_BYTES = 4096


class Connections:
    """Whom the heart beats for: drivers, and whoever else has found the port. Drivers answer; what is said is not read.

    Attributes:
        open: in the order in which they came.
    """

    def __init__(self, limit: int) -> None:
        self.open: list[socket.socket] = []
        self._limit = limit
        self._taken_at: dict[socket.socket, float] = {}
        self._answered_at: dict[socket.socket, float] = {}

    def add(self, connection: socket.socket, now: float) -> None:
        """One more; if they are too many the one goes that has said nothing for longest, oldest first."""
        if len(self.open) >= self._limit:
            self._drop(min(self.open, key=lambda one: self._answered_at.get(one, 0.0)))
        connection.setblocking(False)
        self.open.append(connection)
        self._taken_at[connection] = now

    def beat(self, now: float) -> None:
        """One beat for each. Who has hung up, or is deaf, goes."""
        for one in list(self.open):
            try:
                self._hear(one, now)
                one.send(_BEAT)
                self._taken_at[one] = now
            except BlockingIOError:  # the driver does not read at the moment
                if now - self._taken_at[one] >= DEAF_SECONDS:
                    self._drop(one)
            except OSError:
                self._drop(one)

    def _hear(self, one: socket.socket, now: float) -> None:
        with contextlib.suppress(BlockingIOError):
            if not one.recv(_READ_BYTES):
                raise ConnectionResetError
            self._answered_at[one] = now

    def _drop(self, one: socket.socket) -> None:
        self.open.remove(one)
        self._taken_at.pop(one, None)
        self._answered_at.pop(one, None)
        one.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        for one in list(self.open):
            self._drop(one)


class Heart:
    """The agent's side: beats on every connection that is made to it, until it is closed."""

    def __init__(self, address: str) -> None:
        """Listen on `address`, at a port of the system's choice."""
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self._listener = socket.create_server((address, 0), family=family, backlog=BACKLOG)
        self.port: int = self._listener.getsockname()[1]
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._work, name="prefect-tpu-heart", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Hang up."""
        self._closed.set()
        self._thread.join()

    def _work(self) -> None:
        files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        limit = MAX_CONNECTIONS if files == resource.RLIM_INFINITY else max(1, min(MAX_CONNECTIONS, files // 4))
        with self._listener, Connections(limit) as connections:
            while not self._closed.is_set():
                next_beat = time.monotonic() + BEAT_SECONDS
                connections.beat(time.monotonic())
                while (left := next_beat - time.monotonic()) > 0 and not self._closed.is_set():
                    self._take(connections, left)

    def _take(self, connections: Connections, seconds: float) -> None:
        """Wait for a connection, not longer than that. What fails is this one connection, never the heart."""
        self._listener.settimeout(seconds)
        try:
            connection, _ = self._listener.accept()
        except TimeoutError:
            return
        except OSError as error:  # no descriptor is free, or it has gone already
            log.debug("a connection to the heartbeat could not be taken: %s", error)
            self._closed.wait(seconds)
            return
        connections.add(connection, time.monotonic())
