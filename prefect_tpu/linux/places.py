"""Directories of this machine and user: where they are, and what is said when they cannot be used."""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from prefect_tpu.core.errors import ConfigurationError

SHORT_DIRECTORY = "/tmp"  # noqa: S108 - sockets' names end at 107 characters; mkdtemp makes it private
MIN_ROOM_BYTES = 512 * 1024
"""For a log, or for what Ray writes while a small fleet starts."""
_FULL = (errno.ENOSPC, errno.EDQUOT)


def current_directory() -> str:
    """Where this process is.

    Raises:
        ConfigurationError: that directory has been deleted, or may not be read.
    """
    try:
        return os.getcwd()
    except OSError as error:
        raise ConfigurationError(
            f"the current directory cannot be used ({error.strerror}): it was deleted, or is not yours. Change to "
            "another one (cd) and start again"
        ) from error


def home_directory(setting: str) -> Path:
    """The user's.

    Args:
        setting: what may be set in its place, for the message.

    Raises:
        ConfigurationError: there is none, as for users of containers that have a number only.
    """
    try:
        return Path.home()
    except RuntimeError as error:
        raise ConfigurationError(
            f"this user (id {os.getuid()}) has no home directory: no HOME, and no line in /etc/passwd. "
            f"Set {setting} or HOME"
        ) from error


def short_directory() -> str:
    """Where directories of Ray's are made: as short as can be, as the names of sockets must be."""
    return SHORT_DIRECTORY if os.access(SHORT_DIRECTORY, os.W_OK) else tempfile.gettempdir()


def new_short_directory(prefix: str) -> str:
    """One of mode 0700 there."""
    return tempfile.mkdtemp(prefix=prefix, dir=short_directory())


@contextlib.contextmanager
def usable(path: str | os.PathLike[str], what: str, setting: str) -> Iterator[None]:
    """Inside, a fault of the file system becomes a ConfigurationError.

    Args:
        path: what is used.
        what: it is for.
        setting: where another one is named.
    """
    try:
        yield
    except OSError as error:
        told = error.filename or os.fspath(path)
        why = f"no space is left there ({error.strerror})" if error.errno in _FULL else error.strerror or str(error)
        raise ConfigurationError(f"{told} cannot be used for {what}: {why}. Another one is set by {setting}") from error


def need_room(directory: str, what: str, setting: str, size_bytes: int = MIN_ROOM_BYTES) -> None:
    """See that so much can be written there now; quotas count, too.

    Raises:
        ConfigurationError: it cannot.
    """
    with usable(directory, what, setting), tempfile.TemporaryFile(dir=directory) as file:
        os.posix_fallocate(file.fileno(), 0, size_bytes)
