"""Watches the GCE metadata server for the cloud's notices about this host. Neither Ray nor Prefect."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Literal
from urllib.parse import urlsplit

from prefect_tpu.core.errors import ConfigurationError
from prefect_tpu.core.messages import Notice
from prefect_tpu.host.metadata_request import PROBLEMS, Answer, MetadataRequest, StatusError

log = logging.getLogger("prefect_tpu.host")

DEFAULT_HOST = "metadata.google.internal"
HOST_VARIABLE = "GCE_METADATA_HOST"
"""Google's own clients ask this host (`host` or `host:port`) if it is set."""
ROOT = "/computeMetadata/v1"

PREEMPTION_NOTICE_SECONDS = 30.0
"""From the notice to the end of a Spot VM, at most. https://cloud.google.com/compute/docs/instances/spot"""
MAINTENANCE_NOTICE_SECONDS = 60.0
"""Between notice and maintenance, unless the machine has GPUs. Given only if the key was asked for since the
last maintenance, which the watcher does. https://cloud.google.com/compute/docs/metadata/getting-live-migration-notice
"""

LONG_POLL_SECONDS = 60
"""The server answers after so long when nothing has changed."""
MIN_POLL_SECONDS = 1.0
"""A server that does not wait is asked no more often than this."""
ANSWER_TIMEOUT_SECONDS = 5.0
"""To connect; for an answer that needs no waiting; and after the end of a long poll."""
ABSENT_AFTER_SECONDS = 60.0
"""Without an answer for so long from the start, this is no GCE machine."""
QUICK_RETRIES = 3
FIRST_RETRY_SECONDS = 0.25
MAX_RETRY_SECONDS = 5.0
"""Well below the time that a preemption leaves."""
MAX_DOUBLINGS = 20
STOP_JOIN_SECONDS = 1.0
HTTP_PORT = 80
THREAD_NAME = "prefect-tpu-metadata"


@dataclass(frozen=True, slots=True)
class _Key:
    """One key of the server: which values mean that the host goes, and which that it stays."""

    path: str
    kind: Literal["preemption", "maintenance"]
    going: str
    staying: frozenset[str]
    words: str


_MIGRATES = "MIGRATE_ON_HOST_MAINTENANCE"
_KEYS = (
    _Key("instance/preempted", "preemption", "TRUE", frozenset({"FALSE"}), "GCE preempts this host"),
    _Key(
        "instance/maintenance-event",
        "maintenance",
        "TERMINATE_ON_HOST_MAINTENANCE",
        frozenset({"NONE", _MIGRATES}),
        "GCE stops this host for maintenance",
    ),
)


def metadata_url(environment: Mapping[str, str]) -> str:
    """Where the metadata server is: `GCE_METADATA_HOST` of `environment`, or Google's name for it."""
    return f"http://{environment.get(HOST_VARIABLE) or DEFAULT_HOST}{ROOT}"


class MetadataWatcher:
    """Tells of each notice once, from daemon threads that wait in long polls, one for each key.

    Where there is no metadata server the threads end by themselves. A server that has answered once is
    asked again for ever; while it does not answer, one warning is logged.

    Args:
        url: of the server, up to the API's version; None for what `metadata_url` finds in the environment.
        on_notice: called for each new notice, and with `withdrawn=True` when it is taken back. From two
            threads, perhaps at the same time. What it raises is logged.
        preemption_notice_seconds, maintenance_notice_seconds: from a notice to its deadline.
        long_poll_seconds: how long the server may wait for a change before it answers.
        min_poll_seconds: no more than one long poll in this time for each key.
        answer_timeout_seconds: to connect, and to answer when there is nothing to wait for.
        absent_after_seconds: a server (or key) that has not been seen for so long is not there.
        max_retry_seconds: longest pause after a failure.

    Raises:
        ConfigurationError: the URL is not one of an HTTP server.
    """

    def __init__(
        self,
        url: str | None,
        on_notice: Callable[[Notice], object],
        *,
        preemption_notice_seconds: float = PREEMPTION_NOTICE_SECONDS,
        maintenance_notice_seconds: float = MAINTENANCE_NOTICE_SECONDS,
        long_poll_seconds: int = LONG_POLL_SECONDS,
        min_poll_seconds: float = MIN_POLL_SECONDS,
        answer_timeout_seconds: float = ANSWER_TIMEOUT_SECONDS,
        absent_after_seconds: float = ABSENT_AFTER_SECONDS,
        max_retry_seconds: float = MAX_RETRY_SECONDS,
    ) -> None:
        self._url = metadata_url(os.environ) if url is None else url
        self._host, self._port, self._root = _parse(self._url)
        self._on_notice = on_notice
        self._notice_seconds = {"preemption": preemption_notice_seconds, "maintenance": maintenance_notice_seconds}
        self._long_poll_seconds = long_poll_seconds
        self._min_poll_seconds = min_poll_seconds
        self._answer_timeout_seconds = answer_timeout_seconds
        self._absent_after_seconds = absent_after_seconds
        self._max_retry_seconds = max_retry_seconds
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._requests: dict[_Key, MetadataRequest] = {}
        self._present = False
        self._told_absent = False
        self._failing: set[_Key] = set()
        self._going: set[_Key] = set()
        self._threads = [
            threading.Thread(target=self._watch, args=(key,), name=f"{THREAD_NAME} {key.path}", daemon=True)
            for key in _KEYS
        ]
        for thread in self._threads:
            thread.start()

    @property
    def watching(self) -> bool:
        """Whether a notice can still come: not after `stop`, and not where there is no metadata server."""
        return not self._stopping.is_set() and any(thread.is_alive() for thread in self._threads)

    def stop(self) -> None:
        """End the threads and close their connections; again and again if you like.

        Waits a second at most: a thread that looks up the server's name, or is inside `on_notice`, cannot be
        interrupted, and ends after that.
        """
        self._stopping.set()
        with self._lock:
            requests = list(self._requests.values())
        for request in requests:
            request.cut()
        deadline = time.monotonic() + STOP_JOIN_SECONDS
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(max(0.0, deadline - time.monotonic()))

    def _watch(self, key: _Key) -> None:
        """Ask plainly, then in long polls; after a failure plainly again, so that no change is missed."""
        started = time.monotonic()
        value = etag = None
        failures = 0
        while not self._stopping.is_set():
            asked = time.monotonic()
            try:
                answer = self._ask(key, etag)
            except PROBLEMS as error:
                if self._stopping.is_set():
                    return
                missing = isinstance(error, StatusError) and error.status == HTTPStatus.NOT_FOUND
                self._present = self._present or (isinstance(error, StatusError) and not missing)
                if value is not None or (self._present and not missing):
                    self._tell_failing(key, error)
                elif time.monotonic() - started >= self._absent_after_seconds:
                    self._tell_absent(error)
                    return
                etag = None
                failures += 1
                self._stopping.wait(self._retry_seconds(failures))
                continue
            self._present = True
            if answer.value != value:
                self._changed(key, answer.value)
            value = answer.value
            if etag is not None:  # only a long poll proves that all is well again
                failures = 0
                self._tell_working(key)
                self._stopping.wait(max(0.0, asked + self._min_poll_seconds - time.monotonic()))
            etag = answer.etag

    def _ask(self, key: _Key, etag: str | None) -> Answer:
        request = MetadataRequest(self._host, self._port)
        with self._lock:
            self._requests[key] = request
        if self._stopping.is_set():  # `stop` may have looked before the line above
            request.cut()
        path, soon = f"{self._root}/{key.path}", self._answer_timeout_seconds
        if etag is None:
            return request.send(path, {}, soon, soon)
        query = {"wait_for_change": "true", "last_etag": etag, "timeout_sec": str(self._long_poll_seconds)}
        return request.send(path, query, soon, self._long_poll_seconds + soon)

    def _changed(self, key: _Key, value: str) -> None:
        """Only on the key's own thread. A value that GCE does not document changes nothing."""
        told = key in self._going
        said = f"{key.path} is {value}"
        if value == key.going and not told:
            self._going.add(key)
            self._tell(Notice(key.kind, f"{key.words} ({said})", self._notice_seconds[key.kind]))
        elif value in key.staying:
            if value == _MIGRATES:
                log.info("GCE moves this host to another machine while it runs (%s); that is no loss", said)
            if told:
                self._going.discard(key)
                self._tell(Notice(key.kind, f"no longer: {key.words} ({said})", None, withdrawn=True))
        elif value != key.going:
            log.warning("the metadata server's %s is unknown here, and ignored: %.80r", key.path, value)

    def _tell(self, notice: Notice) -> None:
        if self._stopping.is_set():
            return
        try:
            self._on_notice(notice)
        except Exception:  # the next notice must still be told
            log.exception("whoever should hear of a notice (%s) failed", notice.reason)

    def _tell_failing(self, key: _Key, error: Exception) -> None:
        with self._lock:
            first = not self._failing
            self._failing.add(key)
        if first:
            log.warning(
                "the metadata server at %s fails (%s): a notice may be missed until it is back", self._url, error
            )

    def _tell_working(self, key: _Key) -> None:
        with self._lock:
            last = self._failing == {key}
            self._failing.discard(key)
        if last:
            log.info("the metadata server at %s works again", self._url)

    def _tell_absent(self, error: Exception) -> None:
        with self._lock:
            first, self._told_absent = not self._told_absent, True
        if first:
            log.debug("no metadata server at %s (%s): nothing is told before this host goes", self._url, error)

    def _retry_seconds(self, failures: int) -> float:
        doublings = min(max(0, failures - QUICK_RETRIES), MAX_DOUBLINGS)
        return min(self._max_retry_seconds, FIRST_RETRY_SECONDS * 2.0**doublings)


def _parse(url: str) -> tuple[str, int, str]:
    """Host, port and path without a slash at its end."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port or HTTP_PORT
    except ValueError:  # what stands for the port is no number
        host = None
    if not host or parts.scheme != "http":
        raise ConfigurationError(
            f"{url!r} is no address of a metadata server; it looks like http://{DEFAULT_HOST}{ROOT}, "
            f"and {HOST_VARIABLE}, if it is set, like {DEFAULT_HOST} or 127.0.0.1:8080"
        )
    return host, port, parts.path.rstrip("/")
