"""The agent's end of the heartbeat."""

from __future__ import annotations

import socket
import threading
import time

BEAT_SECONDS = 0.5
BACKLOG = 128
_BEAT = b"."


class Heart:
    """The agent's side: beats on every connection that is made to it. It reads nothing."""

    def __init__(self, address: str) -> None:
        """Listen on `address`, at a port of the system's choice."""
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self._listener = socket.create_server((address, 0), family=family, backlog=BACKLOG)
        self._listener.settimeout(BEAT_SECONDS)
        self.port: int = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._beat, name="prefect-tpu-heart", daemon=True)
        self._thread.start()

    def _beat(self) -> None:
        connections: list[socket.socket] = []
        next_beat = time.monotonic()
        while True:
            try:
                connection, _ = self._listener.accept()
                connection.setblocking(False)
                connections.append(connection)
            except TimeoutError:
                pass
            except OSError:  # closed
                return
            if time.monotonic() < next_beat and len(connections) < BACKLOG:
                continue
            next_beat = time.monotonic() + BEAT_SECONDS
            for one in list(connections):
                try:
                    one.send(_BEAT)
                except BlockingIOError:
                    continue  # the driver does not read at the moment
                except OSError:
                    connections.remove(one)
                    one.close()
