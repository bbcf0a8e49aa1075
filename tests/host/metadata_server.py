"""A real HTTP server that behaves like GCE's metadata server, and badly when told to."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal
from urllib.parse import parse_qs, urlsplit

PREEMPTED = "instance/preempted"
MAINTENANCE = "instance/maintenance-event"
ROOT = "/computeMetadata/v1/"

Mode = Literal[
    "normal",
    "no waiting",  # answers at once, whatever the question says
    "no long polls",  # 503 for a question that wants to wait
    "unavailable",  # 503
    "drops",  # closes the connection without an answer
    "silent",  # takes the connection and says nothing
    "other server",  # 200 for everything, no Metadata-Flavor
    "redirects",  # to `redirect_to`
    "huge",  # a value that goes on and on, of no announced length
    "short",  # ends before the length that it announced
]


class MetadataServer(ThreadingHTTPServer):
    """https://cloud.google.com/compute/docs/metadata/querying-metadata, as far as a watcher sees it."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.changed = threading.Condition()
        self.values = {PREEMPTED: "FALSE", MAINTENANCE: "NONE"}
        self.mode: Mode = "normal"
        self.redirect_to = ""
        self.requests: list[tuple[float, str, dict[str, str]]] = []
        """When, path, query."""
        self.waiting = 0
        self.closing = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}{ROOT.rstrip('/')}"

    def set(self, key: str, value: str | None) -> None:
        """Change a value, or remove the key; who waits for it is answered."""
        with self.changed:
            if value is None:
                del self.values[key]
            else:
                self.values[key] = value
            self.changed.notify_all()

    def behave(self, mode: Mode) -> None:
        """From now on; the connections of those who wait are closed."""
        with self.changed:
            self.mode = mode
            self.changed.notify_all()

    def end(self) -> None:
        with self.changed:
            self.closing = True
            self.changed.notify_all()
        self.shutdown()
        self.server_close()

    def handle_error(self, request: object, client_address: object) -> None:
        """The watcher hangs up when it is stopped."""


class _Handler(BaseHTTPRequestHandler):
    server: MetadataServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        server, parts = self.server, urlsplit(self.path)
        query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
        waits = query.get("wait_for_change") == "true"
        with server.changed:
            mode = server.mode
            server.requests.append((time.monotonic(), parts.path, query))
            if mode == "silent":
                server.changed.wait_for(lambda: server.closing or server.mode != mode)
                self.close_connection = True
                return
        if mode == "drops":
            self.close_connection = True
        elif mode == "other server":
            self._answer(200, "TRUE", {})
        elif self.headers["Metadata-Flavor"] != "Google" or self.headers["X-Forwarded-For"]:
            self._answer(403, "Missing Metadata-Flavor:Google header.", {})
        elif mode == "unavailable" or (mode == "no long polls" and waits):
            self._answer(503, "", _FLAVOR)
        elif mode == "redirects":
            self._answer(302, "", _FLAVOR | {"Location": f"{server.redirect_to}{self.path}"})
        elif mode == "huge":
            self._answer(200, "TRUE" + " " * 10_000_000, _FLAVOR | {"Content-Length": ""})
            self.close_connection = True
        elif mode == "short":
            self._answer(200, "TRUE", _FLAVOR | {"Content-Length": "400"})
            self.close_connection = True
        else:
            self._value(parts.path.removeprefix(ROOT), query if waits and mode == "normal" else {})

    def _value(self, key: str, query: dict[str, str]) -> None:
        server = self.server
        with server.changed:
            mode, last, seconds = server.mode, query.get("last_etag"), query.get("timeout_sec")
            if key not in server.values:
                self._answer(404, "", _FLAVOR)
                return
            if query:
                first = _etag(server.values[key]) if last is None else last
                server.waiting += 1
                server.changed.wait_for(
                    lambda: (
                        server.closing
                        or server.mode != mode
                        or key not in server.values
                        or _etag(server.values[key]) != first
                    ),
                    None if seconds is None else float(seconds),
                )
                server.waiting -= 1
            if server.closing or server.mode != mode or key not in server.values:
                self.close_connection = True
                return
            value = server.values[key]
        self._answer(200, value, _FLAVOR | {"ETag": _etag(value)})

    def _answer(self, status: int, body: str, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, text in ({"Content-Length": str(len(body)), "Content-Type": "application/text"} | headers).items():
            if text:
                self.send_header(name, text)
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Quiet."""


_FLAVOR = {"Metadata-Flavor": "Google"}


def _etag(value: str) -> str:
    return hashlib.sha256(value.encode()).hexdigest()[:16]


@contextmanager
def metadata_server() -> Iterator[MetadataServer]:
    server = MetadataServer()
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), name="metadata server", daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.end()
        thread.join()
