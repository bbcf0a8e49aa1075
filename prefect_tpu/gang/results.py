"""Results on their way to the driver: piece by piece through Ray's object store, into memory of the driver's own.

So the store of neither side needs room for more than the pieces that are on their way, and what the program gets can
be written to and outlives the cluster.
"""

from __future__ import annotations

import mmap
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray

from prefect_tpu.cluster import object_store
from prefect_tpu.core.errors import TransferError
from prefect_tpu.core.messages import Raised
from prefect_tpu.gang.host_state import HostState
from prefect_tpu.wire import payload

PIECE_BYTES = 32 * 1024**2


@dataclass(slots=True, eq=False)
class _Coming:
    """A result of which some pieces are here."""

    host: HostState
    image: memoryview
    asked_bytes: int = 0
    pieces_out: int = field(default=0)

    @property
    def complete(self) -> bool:
        return self.asked_bytes == self.image.nbytes and not self.pieces_out


def fetch(
    hosts: Sequence[HostState],
    attempt_id: str,
    answer: Callable[[HostState, Any], Any],
    go_on: Callable[[], bool],
    *,
    window_bytes: int,
    wait_seconds: float,
) -> None:
    """Set `buffers` of every host; of those without, `raised` or `lost` says why, unless `go_on` ended it.

    Args:
        hosts: whose functions have returned.
        attempt_id: what they returned from.
        answer: the value of a call to an agent, or None with the host's state telling why there is none.
        go_on: asked now and then; False ends it.
        window_bytes: of pieces that are on their way at the same time; at least one always is.
        wait_seconds: between two questions to `go_on`, at most.
    """
    try:
        object_store.require_room(min(window_bytes, sum(host.result_bytes for host in hosts)), "results")
        coming = [_Coming(host, _own_memory(host.result_bytes)) for host in hosts]
    except TransferError as error:
        hosts[0].raised = Raised("transfer", "TransferError", str(error), "")
        return
    except (MemoryError, OSError) as error:
        hosts[0].raised = Raised("transfer", type(error).__name__, f"no memory for it in the driver: {error}", "")
        return
    to_ask, out, out_bytes = deque(coming), dict[Any, tuple[_Coming, int, int]](), 0
    while (to_ask or out) and not any(host.failed for host in hosts) and go_on():
        while to_ask and (not out or out_bytes + PIECE_BYTES <= window_bytes):
            one = to_ask.popleft()
            size = min(PIECE_BYTES, one.image.nbytes - one.asked_bytes)
            out[one.host.agent.result.remote(attempt_id, one.asked_bytes, size)] = one, one.asked_bytes, size
            one.asked_bytes += size
            one.pieces_out += 1
            out_bytes += size
            if one.asked_bytes < one.image.nbytes:
                to_ask.append(one)
        ready, _ = ray.wait(list(out), num_returns=1, timeout=wait_seconds)
        for ref in ready:
            one, offset, size = out.pop(ref)
            piece = answer(one.host, ref)
            if piece is None:
                return
            one.image[offset : offset + size] = memoryview(piece)
            one.pieces_out -= 1
            out_bytes -= size
            if one.complete:
                one.host.buffers = list(payload.parse(one.image))


def _own_memory(size: int) -> memoryview:
    """Pages of the usual size: huge ones are faster where the kernel has some at hand, and far slower if not."""
    return memoryview(mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
