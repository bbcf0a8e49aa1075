"""Writes artifacts to Prefect's API in the background, so that no gang ever waits for it or fails by it."""

from __future__ import annotations

import atexit
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from contextvars import Context, copy_context
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any
from uuid import UUID

from prefect_tpu.core.text import clean, clean_all

log = logging.getLogger("prefect_tpu.artifacts")

MAX_WAITING = 1_000
"""Artifacts that may wait at the same time; of each only the newest version waits."""
MAX_KNOWN = 4_000
"""Artifacts whose id is remembered, so that a newer version replaces the older one."""
INTERVAL_SECONDS = 1.0
"""Between two versions of the same artifact, or"""
INTERVAL_PER_SECOND_OF_WORK = 10.0
"""times what the last one took to make and write, if that is longer: this thread takes a tenth of a core at most."""
RETRY_INTERVAL_SECONDS = 5.0
KEEP_TRYING_SECONDS = 600.0
"""After its first failure an artifact is given up, and counted as dropped."""
REQUEST_TIMEOUT_SECONDS = 10.0
"""For one call to Prefect's API."""
EXIT_FLUSH_SECONDS = 5.0
"""How long the end of the process waits for the next of what is not written yet."""
EXIT_LONGEST_SECONDS = 60.0
"""And for all of it."""


@dataclass(frozen=True, slots=True)
class Slot:
    """One artifact of one task run. A newer version takes the place of the older one.

    Attributes:
        key: the same for every run of the task: lower case letters, digits and dashes.
        type: of the artifact, as Prefect has them: "table", "markdown", "progress".
        task_run_id, flow_run_id: whose it is.
        number: of one that the user's function has made: each is an artifact of its own, whatever its key.
        known_id: of one that is in Prefect already, made by somebody else.
    """

    key: str | None
    type: str | None
    task_run_id: UUID
    flow_run_id: UUID | None
    number: UUID | None = None
    known_id: UUID | None = None


@dataclass(frozen=True, slots=True)
class Version:
    """What an artifact shows: its data, and a description above it in markdown. Clean, so that Prefect takes it.

    A newer version with None for one of them leaves that as it is.
    """

    data: Any
    description: str | None

    def __post_init__(self) -> None:
        object.__setattr__(self, "data", clean_all(self.data))
        object.__setattr__(self, "description", None if self.description is None else clean(self.description))


@dataclass(slots=True)
class _Job:
    render: Callable[[], Version]
    context: Context
    due: float = 0.0
    failed_at: float | None = None


@dataclass(slots=True)
class Publisher:
    """One daemon thread that talks to Prefect's API."""

    dropped: int = 0
    _waiting: OrderedDict[Slot, _Job] = field(default_factory=OrderedDict)
    _ids: OrderedDict[Slot, UUID] = field(default_factory=OrderedDict)
    _next_at: dict[Slot, float] = field(default_factory=dict)
    _changed: threading.Condition = field(default_factory=threading.Condition)
    _thread: threading.Thread | None = None
    _busy: bool = False
    _flushing: int = 0
    _complained: bool = False

    def publish(self, slot: Slot, render: Callable[[], Version]) -> None:
        """Write what `render` returns as the newest version of `slot`; it is called in the background.

        Never waits and never raises.
        """
        with self._changed:
            if self._thread is None:
                # Not at import: this must run before Prefect's temporary server, started meanwhile, is stopped.
                atexit.register(self.close)
                self._thread = threading.Thread(target=self._work, name="prefect-tpu-artifacts", daemon=True)
                self._thread.start()
            known = self._waiting.get(slot)
            if known is None and len(self._waiting) >= MAX_WAITING:
                self._drop("too many artifacts wait for Prefect's API")
                return
            due = max(self._next_at.get(slot, 0.0), known.due if known else 0.0)
            self._waiting[slot] = _Job(render, copy_context(), due, known.failed_at if known else None)
            self._changed.notify_all()

    def flush(self, timeout_seconds: float) -> bool:
        """Wait until all that waits is written, but not longer than `timeout_seconds`; whether it is."""
        deadline = time.monotonic() + timeout_seconds
        with self._changed:
            self._flushing += 1
            self._changed.notify_all()
            try:
                while self._waiting or self._busy:
                    left = deadline - time.monotonic()
                    if left <= 0:
                        return False
                    self._changed.wait(left)
                return True
            finally:
                self._flushing -= 1

    def close(self) -> None:
        """At the end of the process."""
        give_up = time.monotonic() + EXIT_LONGEST_SECONDS
        left = self._left()
        while not self.flush(EXIT_FLUSH_SECONDS):
            before, left = left, self._left()
            if left >= before or time.monotonic() > give_up:
                self.dropped += left
                break
        if self.dropped:
            logging.raiseExceptions = False  # the streams of a process that ends may be closed already
            log.warning(
                "%d artifacts could not be written to Prefect: its API did not take them before this process ended "
                "(it has %g s for the next one, and %g s for all)",
                self.dropped,
                EXIT_FLUSH_SECONDS,
                EXIT_LONGEST_SECONDS,
            )

    def _left(self) -> int:
        with self._changed:
            return len(self._waiting) + self._busy

    def _work(self) -> None:
        while True:
            with self._changed:
                slot, job = self._next()
                self._busy = True
            error: Exception | None = None
            began = time.monotonic()
            try:
                job.context.run(self._write, slot, job.render)
            except Exception as failure:  # noqa: BLE001 - observability must never fail a run
                error = failure
            with self._changed:
                self._busy = False
                self._note(slot, job, error, time.monotonic() - began)
                self._changed.notify_all()
            del slot, job, error  # the context holds the task run's parameters

    def _next(self) -> tuple[Slot, _Job]:
        while True:
            now = time.monotonic()
            for slot, job in self._waiting.items():
                if job.due <= now or (self._flushing and job.failed_at is None):
                    del self._waiting[slot]
                    return slot, job
            soonest = min((job.due for job in self._waiting.values()), default=None)
            self._changed.wait(None if soonest is None else max(0.01, soonest - now))

    def _note(self, slot: Slot, job: _Job, error: Exception | None, took_seconds: float) -> None:
        now = time.monotonic()
        if error is None:
            due = self._next_at[slot] = now + max(INTERVAL_SECONDS, INTERVAL_PER_SECOND_OF_WORK * took_seconds)
            while len(self._next_at) > MAX_KNOWN:
                del self._next_at[next(iter(self._next_at))]
            if slot in self._waiting:
                self._waiting[slot].due = due
            return
        failed_at = now if job.failed_at is None else job.failed_at
        if _refused(error) or now - failed_at > KEEP_TRYING_SECONDS:
            self._drop(f"Prefect's API takes no {slot.type} artifact: {error!r}")
            return
        self._complain(f"an artifact has to wait, as Prefect's API does not answer: {error!r}")
        newest = self._waiting.setdefault(slot, job)
        newest.failed_at, newest.due = failed_at, now + RETRY_INTERVAL_SECONDS

    def _write(self, slot: Slot, render: Callable[[], Version]) -> None:
        from prefect.client.orchestration import get_client
        from prefect.client.schemas.actions import ArtifactCreate

        version = render()
        # Settings of its own: without, it would be the client of the task run, which may be closed by now.
        with get_client(httpx_settings={"timeout": REQUEST_TIMEOUT_SECONDS}, sync_client=True) as client:
            known = slot.known_id or self._ids.get(slot)
            if known is not None:
                try:
                    # Not `update_artifact`, which puts all of the data into an event as well.
                    given = {"data": version.data, "description": version.description}
                    body = {name: one for name, one in given.items() if one is not None}
                    client.request("PATCH", "/artifacts/{id}", path_params={"id": known}, json=body)
                    return
                except Exception as error:
                    if _status(error) != HTTPStatus.NOT_FOUND or slot.known_id is not None:
                        raise
            artifact = ArtifactCreate(
                key=slot.key,
                type=slot.type,
                description=version.description,
                data=version.data,
                task_run_id=slot.task_run_id,
                flow_run_id=slot.flow_run_id,
            )
            # Not `create_artifact`: it emits an event too, which fails with a traceback when the process is ending.
            body = artifact.model_dump(mode="json", exclude_unset=True)
            self._ids[slot] = UUID(client.request("POST", "/artifacts/", json=body).json()["id"])
            while len(self._ids) > MAX_KNOWN:
                self._ids.popitem(last=False)

    def _drop(self, text: str) -> None:
        self.dropped += 1
        self._complain(f"{text}; it is dropped")

    def _complain(self, text: str) -> None:
        log.log(logging.DEBUG if self._complained else logging.WARNING, "%s", text)
        self._complained = True


def _status(error: Exception) -> int | None:
    code: int | None = getattr(getattr(error, "response", None), "status_code", None)
    return code


def _refused(error: Exception) -> bool:
    """Whether Prefect's API has said that it will never take it."""
    code = _status(error)
    if code is None:
        return not isinstance(error, OSError) and type(error).__module__.partition(".")[0] not in _NETWORK
    return 400 <= code < 500 and code not in (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS)


_NETWORK = ("httpx", "httpcore", "anyio", "ssl", "h11", "h2")
