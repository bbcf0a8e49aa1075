"""The Ray actor on each host: a supervisor that the driver calls from afar. It reserves nothing."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import ray

from prefect_tpu.cluster import object_store
from prefect_tpu.cluster.driver_path import leave_driver_path
from prefect_tpu.core.messages import HostReport
from prefect_tpu.host.heart import Heart
from prefect_tpu.host.metadata import MetadataWatcher
from prefect_tpu.host.supervisor import HostSupervisor
from prefect_tpu.linux import ports

SMALL_PIECE_BYTES = 64 * 1024
"""Goes back with the answer."""


class Agent(HostSupervisor):
    """A `HostSupervisor` with a heartbeat and a watch on the cloud's notices. It ends with the driver, and with it
    all it has started.

    Payloads that `launch` gets are bytes if they are small, else arrays of uint8 that lie in the object store.
    """

    def __init__(self) -> None:
        # With its first argument a Ray process imports pyarrow, where that is installed: 0.2 s and 40 MB that an
        # agent has no use for.
        sys.modules.setdefault("pyarrow", None)  # type: ignore[arg-type]
        leave_driver_path()
        super().__init__()
        self._heart = Heart(ray.util.get_node_ip_address())
        self._metadata: MetadataWatcher | None = None

    def prepare(
        self,
        preload: Sequence[str],
        user_env: dict[str, str],
        payload_bytes: int = 0,
        metadata_url: str | None = None,
    ) -> HostReport:
        """Get ready for an attempt.

        Args:
            preload: modules that its zygote imports.
            user_env: the user's variables.
            payload_bytes: size of arguments that come through the object store, 0 if they do not.
            metadata_url: of the cloud's metadata server; None for the usual one, "" for none.
        """
        object_store.require_room(payload_bytes, "arguments")
        with self._lock:
            if self._metadata is None and metadata_url != "":
                self._metadata = MetadataWatcher(metadata_url, self.tell)
        return replace(super().prepare(preload, user_env), lifeline_port=self._heart.port)

    def free_ports(self, count: int) -> list[int]:
        """Ports on this host that nobody listens on."""
        return ports.free_ports(count)

    def result(self, attempt_id: str, offset: int = 0, size: int | None = None) -> Any:
        """A piece of the pickled result: an array of uint8 over the child's own pages, or bytes if it is small."""
        view = super().result(attempt_id)[offset:][:size]
        if view.nbytes <= SMALL_PIECE_BYTES:
            return bytes(view)
        import numpy  # not sooner: it would hold up the first call of every gang

        object_store.require_room(view.nbytes, "a result")
        return numpy.frombuffer(view, dtype=numpy.uint8)

    def close(self) -> None:
        if self._metadata is not None:
            self._metadata.stop()
        super().close()
