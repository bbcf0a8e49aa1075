"""The Ray actor on each host: hands what the driver calls to the host's supervisor. It reserves nothing."""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import ray

from prefect_tpu.cluster import object_store
from prefect_tpu.core.messages import HostReport, LaunchRequest, Notice, Poll
from prefect_tpu.host.heart import Heart
from prefect_tpu.host.metadata import MetadataWatcher
from prefect_tpu.host.supervisor import HostSupervisor

SMALL_PIECE_BYTES = 64 * 1024
"""Goes back with the answer."""


class Agent:
    """A `HostSupervisor` that is called from afar. It ends with the driver, and with it all it has started."""

    def __init__(self) -> None:
        # With its first argument a Ray process imports pyarrow, where that is installed: 0.2 s and 40 MB that an
        # agent has no use for.
        sys.modules.setdefault("pyarrow", None)  # type: ignore[arg-type]
        self._host = HostSupervisor()
        self._heart = Heart(ray.util.get_node_ip_address())
        self._metadata: MetadataWatcher | None = None
        self._lock = threading.Lock()
        self._notice: Notice | None = None

    def prepare(
        self, preload: tuple[str, ...], user_env: dict[str, str], payload_bytes: int, metadata_url: str | None
    ) -> HostReport:
        """Get ready for an attempt.

        Args:
            preload: modules that its zygote imports.
            user_env: the user's variables.
            payload_bytes: size of arguments that come through the object store, 0 if they do not.
            metadata_url: of the cloud's metadata server; None for the usual one, "" for none.
        """
        object_store.require_room(payload_bytes, "arguments")
        self._watch(metadata_url)
        return replace(self._host.prepare(preload, user_env), lifeline_port=self._heart.port)

    def _watch(self, metadata_url: str | None) -> None:
        with self._lock:
            if self._metadata is None and metadata_url != "":
                self._metadata = MetadataWatcher(metadata_url, self._take_notice)

    def _take_notice(self, notice: Notice) -> None:
        self._notice = notice

    def free_ports(self, count: int) -> list[int]:
        return self._host.free_ports(count)

    def launch(self, request: LaunchRequest, buffers: Sequence[Any]) -> int:
        """`buffers`: bytes for a small payload, else arrays of uint8 that lie in the object store."""
        return self._host.launch(request, buffers)

    def poll(self, attempt_id: str, after: int, timeout_seconds: float) -> Poll:
        return replace(self._host.poll(attempt_id, after, timeout_seconds), notice=self._notice)

    def result(self, attempt_id: str, offset: int, size: int) -> Any:
        """A piece of the pickled result: an array of uint8 over the child's own pages, or bytes if it is small."""
        view = self._host.result(attempt_id)[offset : offset + size]
        if size <= SMALL_PIECE_BYTES:
            return bytes(view)
        import numpy  # not sooner: it would hold up the first call of every gang

        object_store.require_room(size, "a result")
        return numpy.frombuffer(view, dtype=numpy.uint8)

    def finish(self, attempt_id: str) -> None:
        self._host.finish(attempt_id)

    def notify_drain(self, attempt_id: str, deadline_unix_seconds: float | None, reason: str, tell_jax: bool) -> None:
        self._host.notify_drain(attempt_id, deadline_unix_seconds, reason, tell_jax)

    def offer(self, attempt_id: str, there: bool) -> None:
        self._host.offer(attempt_id, there)

    def stacks(self, attempt_id: str) -> str:
        return self._host.stacks(attempt_id)

    def stop(self, attempt_id: str, grace_seconds: float) -> None:
        self._host.stop(attempt_id, grace_seconds)

    def forget(self, attempt_id: str) -> None:
        self._host.forget(attempt_id)

    def close(self) -> None:
        if self._metadata is not None:
            self._metadata.stop()
        self._host.close()
