"""Starts programs of this package beside a process, as `python -m MODULE` does. Standard library."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

_PACKAGE_ROOT = str(Path(__file__).resolve().parents[2])


def start_program(
    module: str,
    arguments: Sequence[str] = (),
    *,
    environment: Mapping[str, str],
    directory: str | None = None,
    stdout: int | IO[bytes] = subprocess.DEVNULL,
    stderr: int | IO[bytes] = subprocess.DEVNULL,
) -> subprocess.Popen[bytes]:
    """Start `module` in a session of its own, with a pipe to its standard input.

    A file in the current directory does not stand in for a module of the same name (`-P`), and this very package is
    the one that it imports.

    Args:
        module: dotted name.
        arguments: of its command line, which everybody on this machine can read.
        environment: all of its variables.
        directory: that it starts in; None for the current one.
        stdout: where its output goes.
        stderr: where its errors go.
    """
    return subprocess.Popen(
        [sys.executable, "-P", "-m", module, *arguments],
        stdin=subprocess.PIPE,
        stdout=stdout,
        stderr=stderr,
        start_new_session=True,
        cwd=directory,
        env={**environment, "PYTHONPATH": _python_path(environment.get("PYTHONPATH", ""))},
    )


def _python_path(given: str) -> str:
    paths = [part for part in given.split(os.pathsep) if part]
    # Installed packages are found anyway, and must not come before the standard library.
    if _PACKAGE_ROOT not in (sysconfig.get_path("purelib"), sysconfig.get_path("platlib")):
        paths.insert(0, _PACKAGE_ROOT)
    return os.pathsep.join(dict.fromkeys(paths))
