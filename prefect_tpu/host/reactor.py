"""One thread that reads from many descriptors and looks at deadlines."""

from __future__ import annotations

import logging
import selectors
import socket
import threading
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TypeVar

log = logging.getLogger("prefect_tpu.host")

Answer = TypeVar("Answer")
Reader = Callable[[], bool | None]
"""Reads once. True: there may be more; None: not now; False: the stream is at its end."""


class Reactor:
    """Calls readers when there is something to read, and `tick` after each round.

    `tick` returns after how many seconds it wants to be called again at the latest, None for never.
    """

    def __init__(self, name: str, tick: Callable[[], float | None]) -> None:
        self._tick = tick
        self._selector = selectors.DefaultSelector()
        self._waking, self._woken = socket.socketpair()
        for one in (self._waking, self._woken):
            one.setblocking(False)
        self._calls: deque[Callable[[], object]] = deque()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def add(self, descriptor: int, read: Reader) -> None:
        """Watch a descriptor until its reader says that it is at its end."""
        self.call(partial(self._selector.register, descriptor, selectors.EVENT_READ, read))

    def remove(self, descriptor: int) -> None:
        """Stop watching, if it is watched. Only on the reactor's thread."""
        if descriptor in self._selector.get_map():
            self._selector.unregister(descriptor)

    def call(self, function: Callable[[], object]) -> None:
        """Call a function on the reactor's thread, in the order of these calls."""
        self._calls.append(function)
        self.wake()

    def wake(self) -> None:
        """Have `tick` called soon."""
        try:
            self._woken.send(b"\0")
        except OSError:  # it is being woken already, or it is closed
            return

    def close(self) -> None:
        """End the thread; nothing is read any more. From any thread but its own."""
        self._closing = True
        self.wake()
        self._thread.join()
        self._waking.close()
        self._woken.close()

    def _run(self) -> None:
        self._selector.register(self._waking, selectors.EVENT_READ, self._empty)
        while not self._closing:
            timeout = self._guard(self._tick)
            for key, _ in self._selector.select(timeout):
                if self._selector.get_map().get(key.fd) is not key:
                    continue  # an earlier reader of this round has removed it
                if self._guard(key.data) is False:
                    self.remove(key.fd)
            while self._calls:
                self._guard(self._calls.popleft())
        self._selector.close()

    def _empty(self) -> bool:
        self._waking.recv(4096)
        return True

    @staticmethod
    def _guard(function: Callable[[], Answer]) -> Answer | None:
        try:
            return function()
        except Exception:  # one attempt must not take the others' thread with it
            log.exception("a reader failed")
            return None
