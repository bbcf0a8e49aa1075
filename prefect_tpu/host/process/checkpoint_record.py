"""What process 0 looks at before the function is entered: whose checkpoints are in `checkpoint_dir`.

It writes down who is there now, in a file beside the directory. Nothing of this fails or holds up a run, with one
exception: checkpoints of release 0.1.0, which the function would pass by.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from prefect_tpu.core.checkpoints import Checkpoints, finished
from prefect_tpu.core.errors import ConfigurationError
from prefect_tpu.core.messages import CheckpointsFound

log = logging.getLogger("prefect_tpu")


class Files(Protocol):
    """Where checkpoints are kept."""

    def names(self, directory: str) -> list[str] | None:
        """What is in a directory; None if there is none."""

    def has(self, path: str) -> bool:
        """Whether there is such a file."""

    def read(self, path: str) -> str:
        """Of a file."""

    def write(self, path: str, text: str) -> None:
        """A file, and the directories above it."""


class NoLibraryError(Exception):
    """Nothing is installed that reads such URLs."""


class Look:
    """Looks, on a thread of its own: a file server may not answer."""

    def __init__(self, checkpoints: Checkpoints, *, attempt: int = 1) -> None:
        """`attempt`: of the task run; what is no error is said in the first."""
        self._checkpoints = checkpoints
        self._attempt = attempt
        self._error: ConfigurationError | None = None
        self._wrote = False
        self._thread = threading.Thread(target=self._work, name="prefect-tpu-checkpoints", daemon=True)
        self._thread.start()

    def finish(self) -> None:
        """Wait for it, not for ever.

        Raises:
            ConfigurationError: there are checkpoints of release 0.1.0, and nobody knows whether they are this run's.
        """
        seconds = self._checkpoints.look_timeout_seconds
        self._thread.join(seconds)
        if self._thread.is_alive():
            directory = self._checkpoints.directory
            log.warning(
                "whose checkpoints are in %s is not known: no answer within checkpoint_look_timeout_seconds (%g)",
                directory, seconds,
            )  # fmt: skip
        elif self._error is not None:
            raise self._error

    def forget_unused(self) -> None:
        """Leave nothing behind on this machine where the function has kept no checkpoints."""
        checkpoints = self._checkpoints
        if self._wrote and "://" not in checkpoints.directory and not os.path.exists(checkpoints.directory):
            with contextlib.suppress(OSError):
                os.unlink(os.path.join(checkpoints.parent, checkpoints.record))
                os.rmdir(checkpoints.parent)  # if nobody else has something there

    def _work(self) -> None:
        directory = self._checkpoints.directory
        try:
            warnings = self._look(files_of(directory))
        except ConfigurationError as error:
            self._error = error
        except Exception as error:  # noqa: BLE001 - it is only for people's information
            level = logging.DEBUG if isinstance(error, NoLibraryError) and self._attempt > 1 else logging.WARNING
            kind = "" if isinstance(error, NoLibraryError) else f"{type(error).__name__}: "
            log.log(level, "whose checkpoints are in %s is not known: %s%s", directory, kind, error)
        else:
            for one in warnings:
                log.log(logging.WARNING if self._attempt == 1 else logging.DEBUG, "%s", one)

    def _look(self, files: Files) -> list[str]:
        checkpoints, said, written = self._checkpoints, list[str](), None
        record = f"{checkpoints.parent}/{checkpoints.record}"
        beside = files.names(checkpoints.parent) or []
        there = files.names(checkpoints.directory)
        if there:
            if checkpoints.record in beside:
                written = files.read(record)
                said.append(checkpoints.say_others(written))
            else:
                said.append(checkpoints.say_unknown())
        elif there is None and checkpoints.record not in beside:
            same = checkpoints.old_parent == checkpoints.parent
            names = beside if same or not checkpoints.old else files.names(checkpoints.old_parent) or []
            old = checkpoints.old_directories(names)
            if old:
                raise ConfigurationError(checkpoints.say_old(old))
        said.append(checkpoints.say_nested(there or [], [one for one in checkpoints.above if files.has(one)]))
        files.write(record, checkpoints.as_json(written))
        self._wrote = True
        return [one for one in said if one]


def tell_finished(directory: str, tell: Callable[[CheckpointsFound], None]) -> None:
    """Tell what is finished in a checkpoint directory now: what the attempts before have got done. Nobody waits."""

    def work() -> None:
        try:
            names = files_of(directory).names(directory) or []
        except Exception as error:  # noqa: BLE001 - it is only for counting
            log.debug("it is not known which checkpoints are in %s: %s", directory, error)
        else:
            tell(CheckpointsFound(finished(names)))

    threading.Thread(target=work, name="prefect-tpu-finished", daemon=True).start()


def files_of(directory: str) -> Files:
    """How a directory is read: this machine's own, or by a library for its URL.

    Raises:
        NoLibraryError: there is none.
    """
    if "://" not in directory:
        return _Paths(Path)
    scheme = directory.partition("://")[0]
    try:
        import fsspec

        return _Fsspec(fsspec.core.url_to_fs(directory)[0])
    except (ImportError, ValueError):
        pass
    try:
        from etils import epath

        epath.Path(directory).exists()
    except (ImportError, KeyError):
        raise NoLibraryError(f"no library for {scheme}:// on this host (fsspec with its {scheme} package)") from None
    return _Paths(epath.Path)


class _Paths:
    """By pathlib, or by what looks like it."""

    def __init__(self, make: Callable[[str], Any]) -> None:
        self._make = make

    def names(self, directory: str) -> list[str] | None:
        place = self._make(directory)
        return [one.name for one in place.iterdir()] if place.exists() else None

    def has(self, path: str) -> bool:
        return bool(self._make(path).exists())

    def read(self, path: str) -> str:
        return str(self._make(path).read_text())

    def write(self, path: str, text: str) -> None:
        place = self._make(path)
        place.parent.mkdir(parents=True, exist_ok=True)
        if not isinstance(place, Path):
            place.write_text(text)
            return
        beside = place.with_name(f"{place.name}.{os.getpid()}")
        beside.write_text(text)
        beside.replace(place)


class _Fsspec:
    """By fsspec."""

    def __init__(self, files: Any) -> None:
        self._files = files

    def names(self, directory: str) -> list[str] | None:
        if not self._files.exists(directory):
            return None
        found = self._files.ls(directory, detail=False)
        return [str(one).rstrip("/").rpartition("/")[2] for one in found]

    def has(self, path: str) -> bool:
        return bool(self._files.exists(path))

    def read(self, path: str) -> str:
        return bytes(self._files.cat_file(path)).decode()

    def write(self, path: str, text: str) -> None:
        self._files.makedirs(path.rpartition("/")[0], exist_ok=True)
        self._files.pipe_file(path, text.encode())
