"""What host processes do in the recovery benchmark, and what its driver waits for. Standard library only."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HOSTS = 4
SETTLED_SECONDS = 1.0
"""From the moment that all have entered to the loss."""
ENTRY_LIMIT_SECONDS = 180.0
STAY_SECONDS = 300.0
"""A host process that nobody ends gives up then."""
LOOK_SECONDS = 0.01


def enter(directory: str, process_id: int) -> None:
    """In a host process: leave a note, then stay until the benchmark has seen enough."""
    note = Path(directory, f"{process_id}-{os.getpid()}")
    where = f"{os.environ.get('TPU_NAME', '')}/{os.environ.get('TPU_WORKER_ID', '')}"
    note.with_suffix(".half").write_text(json.dumps({"process": process_id, "at": time.time(), "where": where}))
    note.with_suffix(".half").rename(note.with_suffix(".json"))
    give_up = time.monotonic() + STAY_SECONDS
    while not Path(directory, "enough").exists() and time.monotonic() < give_up:
        time.sleep(LOOK_SECONDS * 5)


def first_attempt(directory: str) -> bool:
    """Whether no host process of this run has failed yet."""
    return not Path(directory, "failed").exists()


def fail(directory: str) -> None:
    """In a host process: the user's own error, with the time of it."""
    Path(directory, "failed").write_text(str(time.time()))
    raise ValueError("as the benchmark wants it")


def notes(directory: str, after: float) -> list[dict[str, Any]]:
    """Of host processes that have entered after this time, one for each process id."""
    found: dict[int, dict[str, Any]] = {}
    for path in sorted(Path(directory).glob("*.json")):
        note = json.loads(path.read_text())
        if note["at"] > after:
            found.setdefault(note["process"], note)
    return list(found.values())


def all_entered(directory: str, after: float, limit_seconds: float = ENTRY_LIMIT_SECONDS) -> list[dict[str, Any]]:
    """The notes of all host processes that enter after this time, once there are as many as hosts.

    Raises:
        TimeoutError: they have not within the limit.
    """
    give_up = time.monotonic() + limit_seconds
    while len(found := notes(directory, after)) < HOSTS:
        if time.monotonic() > give_up:
            raise TimeoutError(f"{len(found)} of {HOSTS} host processes entered within {limit_seconds:g} s")
        time.sleep(LOOK_SECONDS)
    return found


def victim(entered: list[dict[str, Any]]) -> str:
    """The host that goes: the first of the slice on which the last process runs.

    JaxTrainer reserves a slice by its first host. When another host goes it takes what is left of the slice again,
    and waits for the missing host; so this is the loss that it can recover from.
    """
    last = max(entered, key=lambda note: int(note["process"]))
    return str(last["where"]).partition("/")[0] + "/0"


class Loss(threading.Thread):
    """Waits until all have entered, makes the loss, and waits until all have entered again."""

    def __init__(self, directory: str, lose: Callable[[list[dict[str, Any]]], None] | None) -> None:
        """`lose` is told the notes of the first attempt; None: a host process raises by itself."""
        super().__init__(daemon=True)
        self._directory = directory
        self._lose = lose
        self.lost_at = 0.0
        self.again_at = 0.0
        self.error: BaseException | None = None
        self.start()

    def run(self) -> None:
        """See the class."""
        try:
            if self._lose is None:
                self.lost_at = self._failed_at()
            else:
                entered = all_entered(self._directory, 0)
                time.sleep(SETTLED_SECONDS)
                self.lost_at = time.time()
                self._lose(entered)
            self.again_at = max(note["at"] for note in all_entered(self._directory, self.lost_at))
        except BaseException as error:  # noqa: BLE001 - told by `seconds`
            self.error = error
        finally:
            Path(self._directory, "enough").touch()

    def _failed_at(self) -> float:
        give_up = time.monotonic() + ENTRY_LIMIT_SECONDS
        failed = Path(self._directory, "failed")
        while not failed.exists() or not failed.read_text():
            if time.monotonic() > give_up:
                raise TimeoutError("no host process has raised")
            time.sleep(LOOK_SECONDS)
        return float(failed.read_text())

    @property
    def seconds(self) -> float:
        """From the loss until all had entered again."""
        self.join()
        if self.error is not None:
            raise self.error
        return self.again_at - self.lost_at
