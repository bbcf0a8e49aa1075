"""One question to the GCE metadata server, which another thread can cut off. Standard library only."""

from __future__ import annotations

import contextlib
import http.client
import socket
import threading
from dataclasses import dataclass
from http import HTTPStatus
from urllib.parse import urlencode

FLAVOR = ("Metadata-Flavor", "Google")
"""The server refuses questions without it, and marks its answers with it.

https://cloud.google.com/compute/docs/metadata/querying-metadata
"""
MAX_BODY_BYTES = 4096
"""The values that are watched are single words."""


class NotMetadataServerError(Exception):
    """Something answers at the address that is no metadata server."""


class StatusError(Exception):
    """The metadata server answered, but not with the value.

    Attributes:
        status: HTTP status.
    """

    def __init__(self, status: int) -> None:
        super().__init__(f"HTTP status {status}")
        self.status = status


PROBLEMS = (OSError, http.client.HTTPException, ValueError, NotMetadataServerError, StatusError)
"""All that `MetadataRequest.send` raises. ValueError: a name that cannot be one of a host."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The value of a key, and the tag by which the server knows whether it has changed since."""

    value: str
    etag: str


class MetadataRequest:
    """One GET on a connection of its own. It uses no proxy and follows no redirect."""

    def __init__(self, host: str, port: int) -> None:
        self._host, self._port = host, port
        self._lock = threading.Lock()
        self._cut = False
        self._socket: socket.socket | None = None

    def send(self, path: str, query: dict[str, str], connect_seconds: float, answer_seconds: float) -> Answer:
        """Ask.

        Args:
            path: absolute, of the key.
            query: parameters of the URL.
            connect_seconds: longest wait for a connection, for each address of the host.
            answer_seconds: longest silence after that.

        Raises:
            NotMetadataServerError: the answer is not marked as a metadata server's.
            StatusError: HTTP status other than 200.
            OSError: nobody there, no answer in time, or cut off.
            http.client.HTTPException: not HTTP, or too long, or ended early.
        """
        connection = http.client.HTTPConnection(self._host, self._port)
        try:
            connection.sock = self._connect(connect_seconds)
            connection.sock.settimeout(answer_seconds)
            target = f"{path}?{urlencode(query)}" if query else path
            connection.request("GET", target, headers={FLAVOR[0]: FLAVOR[1], "Connection": "close"})
            with connection.getresponse() as response:
                return _read(response)
        finally:
            connection.close()
            self._close()

    def cut(self) -> None:
        """End `send` with an OSError, now or as soon as it starts. A look-up of the host's name is waited for."""
        with self._lock:
            self._cut = True
            if self._socket is not None:
                with contextlib.suppress(OSError):  # not connected yet, or not any more
                    self._socket.shutdown(socket.SHUT_RDWR)

    def _connect(self, timeout_seconds: float) -> socket.socket:
        failure = OSError(f"{self._host} has no address")
        for family, kind, protocol, _, address in socket.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM):
            try:
                connected = self._register(socket.socket(family, kind, protocol))
                connected.settimeout(timeout_seconds)
                connected.connect(address)
                self._check()  # `cut` may have come before there was anything to shut down
                return connected
            except OSError as error:
                failure = error
                self._close()
        raise failure

    def _register(self, opened: socket.socket) -> socket.socket:
        with self._lock:
            self._socket = opened
        self._check()
        return opened

    def _check(self) -> None:
        with self._lock:
            if self._cut:
                raise ConnectionAbortedError("cut off")

    def _close(self) -> None:
        with self._lock:
            if self._socket is not None:
                self._socket.close()
                self._socket = None


def _read(response: http.client.HTTPResponse) -> Answer:
    if response.getheader(FLAVOR[0]) != FLAVOR[1]:
        raise NotMetadataServerError(f"HTTP status {response.status} without the header {': '.join(FLAVOR)}")
    if response.status != HTTPStatus.OK:
        raise StatusError(response.status)
    body = response.read(MAX_BODY_BYTES + 1)
    if response.length or len(body) > MAX_BODY_BYTES:  # `length` is what is missing of the announced length
        raise http.client.HTTPException(f"the answer ended early or is longer than {MAX_BODY_BYTES} bytes")
    return Answer(body.decode("ascii", "replace").strip(), response.getheader("ETag") or "0")
