"""Is there room for something big in this host's part of Ray's object store?

The store grows into a file in shared memory page by page. If the device is full by then, the kernel ends the
raylet, or whoever writes, with SIGBUS: no exception, and the host is lost. So ask here first.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import ray  # noqa: F401 - before parts of it: see tests/test_house.py
from ray._private.worker import global_worker

from prefect_tpu.core.errors import TransferError

SMALL_BYTES = 1024 * 1024
"""Not worth a look."""
MARGIN_BYTES = 16 * 1024 * 1024
"""For what else is put there in the same moment."""
_SOCKET_OPTION = "--raylet_socket_name="
_DIRECTORY_OPTION = "--plasma_directory="


def require_room(size_bytes: int, what: str) -> None:
    """Return if `size_bytes` more can be put into the store of this process's own host.

    Raises:
        TransferError: the device has no room for it; the text names `what`, host, device and sizes.
    """
    if size_bytes < SMALL_BYTES:
        return
    raylet = _raylet()
    if raylet is None:  # of another user, perhaps: it cannot be known
        return
    directory, files = raylet
    device = os.statvfs(directory)
    free = device.f_bavail * device.f_frsize
    # What the store has grown to already stays its own, so it never needs more than what it may still grow by.
    may_grow = sum(max(0, one.st_size - one.st_blocks * 512) for one in files)
    needed = min(size_bytes, may_grow) + MARGIN_BYTES
    if free < needed:
        raise TransferError(
            f"no room for {what} of {size_bytes / 1e9:.2f} GB in the shared memory of host {socket.gethostname()}: "
            f"{directory} has {free / 1e9:.2f} GB free of {device.f_blocks * device.f_frsize / 1e9:.2f} GB. Look at "
            f"what fills it (`df {directory}`), give the device more room, or send less at once"
        )


def _raylet() -> tuple[str, list[os.stat_result]] | None:
    """The directory of this host's object store, and its files as the raylet has them open."""
    node = global_worker.node
    if node is None:
        return None
    wanted = f"{_SOCKET_OPTION}{node.raylet_socket_name}"
    for pid in _candidates():
        try:
            arguments = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
            if wanted not in arguments:
                continue
            directories = [
                one.removeprefix(_DIRECTORY_OPTION) for one in arguments if one.startswith(_DIRECTORY_OPTION)
            ]
            files = list(_files(pid, directories[0])) if directories else []
        except OSError:
            return None
        return (directories[0], files) if files else None
    return None


def _candidates() -> Iterator[str]:
    yield str(os.getppid())  # of an agent
    yield from (name for name in os.listdir("/proc") if name.isdigit())


def _files(pid: str, directory: str) -> Iterator[os.stat_result]:
    for name in os.listdir(f"/proc/{pid}/fd"):
        try:
            if os.readlink(f"/proc/{pid}/fd/{name}").startswith(f"{directory.rstrip('/')}/plasma"):
                yield os.stat(f"/proc/{pid}/fd/{name}")
        except FileNotFoundError:  # closed while we looked
            continue
