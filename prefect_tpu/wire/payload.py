"""A list of byte buffers in an anonymous file in memory: written once, mapped by another process.

The kernel frees it when the last process that holds it is gone, so a crash leaves nothing behind. Copies of
an argument on a host: the one in Ray's object store (if it is big), the one here, and the pages that the
function writes to. Of a result: the function's own, the one here, the one in the object store, the driver's.

Layout: number of buffers, the size of each (8 bytes, little endian), then the buffers, each at a multiple
of `ALIGNMENT_BYTES`, so that arrays can be used in place.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
from collections.abc import Sequence
from typing import Any

ALIGNMENT_BYTES = 64
_WRITE_CHUNK_BYTES = 1 << 30


def create(name: str) -> int:
    """A new, empty anonymous file; the caller closes the descriptor."""
    return os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)


def fill(descriptor: int, data: Any) -> None:
    """Write bytes as they are into a new file."""
    _put(descriptor, memoryview(data).cast("B"), 0)


def whole(descriptor: int) -> bytes:
    """A copy of all bytes. Not a mapping: should the file be cut meanwhile, that is a shorter copy, and no SIGBUS."""
    size, parts, offset = os.fstat(descriptor).st_size, [], 0
    while offset < size and (part := os.pread(descriptor, size - offset, offset)):
        parts.append(part)
        offset += len(part)
    return b"".join(parts)


def seal(descriptor: int) -> None:
    """From now on nobody changes the file, whoever has it: it can be mapped without fear."""
    kinds = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, kinds)


def write(descriptor: int, buffers: Sequence[Any]) -> int:
    """Replace the file's content by `buffers` (any objects that export bytes); returns its size."""
    views = [memoryview(one).cast("B") for one in buffers]
    header = struct.pack(f"<{len(views) + 1}Q", len(views), *(view.nbytes for view in views))
    os.ftruncate(descriptor, 0)
    offset = _put(descriptor, memoryview(header), 0)
    for view in views:
        offset = _put(descriptor, view, _aligned(offset))
    return offset


def read(descriptor: int, *, writable: bool = False) -> list[memoryview]:
    """The buffers as views of a mapping; nothing is copied.

    Args:
        descriptor: of a file that `write` has filled.
        writable: pages that the caller writes to become its own copies; the file never changes.
    """
    size = os.fstat(descriptor).st_size
    if size == 0:
        return []
    protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
    return parse(memoryview(mmap.mmap(descriptor, size, flags=mmap.MAP_PRIVATE, prot=protection)))


def content(descriptor: int) -> memoryview:
    """The whole file, mapped."""
    return memoryview(mmap.mmap(descriptor, 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ))


def parse(whole: memoryview) -> list[memoryview]:
    """The buffers inside the content of such a file."""
    (count,) = struct.unpack_from("<Q", whole)
    sizes = struct.unpack_from(f"<{count}Q", whole, 8)
    offset, views = 8 * (count + 1), []
    for one in sizes:
        offset = _aligned(offset)
        views.append(whole[offset : offset + one])
        offset += one
    return views


def _aligned(offset: int) -> int:
    return -(-offset // ALIGNMENT_BYTES) * ALIGNMENT_BYTES


def _put(descriptor: int, view: memoryview, offset: int) -> int:
    done = 0
    while done < view.nbytes:
        done += os.pwrite(descriptor, view[done : done + _WRITE_CHUNK_BYTES], offset + done)
    return offset + done
