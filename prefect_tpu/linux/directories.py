"""Directories for sockets, whose names the kernel cuts at 107 characters."""

from __future__ import annotations

import os
import tempfile

_SHORT = "/tmp"  # noqa: S108 - mkdtemp makes it private


def short_directory(prefix: str) -> str:
    """A new directory of mode 0700 with a short name: a long TMPDIR counts only where /tmp cannot be written."""
    return tempfile.mkdtemp(prefix=prefix, dir=_SHORT if os.access(_SHORT, os.W_OK) else None)
