"""What multiprocessing runs in a process that it starts anew on a host, where the user's main program would be.

Functions and classes that travelled to the host by value are found in such a process, too: they are loaded when the
first of them is asked for.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from prefect_tpu.wire import host_modules


def _load(path: str) -> None:
    from prefect_tpu.wire import payload, pickling

    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError as error:
        raise RuntimeError(f"the host process that has the function's code is gone: {error}") from error
    try:
        pickling.loads(payload.read(descriptor, writable=True)[1:], copy=False)
    finally:
        os.close(descriptor)


def __getattr__(name: str) -> Any:
    """Of the main program's module, in whose place this one is."""
    if name.startswith("__"):
        raise AttributeError(name)
    host_modules.load_now()
    if not host_modules.has_main():
        raise AttributeError(name)
    return getattr(sys.modules[host_modules.MAIN], name)


host_modules.become_spawned(_load)
