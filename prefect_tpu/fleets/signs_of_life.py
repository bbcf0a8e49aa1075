"""Which processes of a fleet are alive, as Ray's key-value store tells."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable
from typing import Any

import ray

from prefect_tpu.linux import probe

log = logging.getLogger("prefect_tpu.provision")

SIGNS = b"prefect-tpu-owners"
SIGN_TIMEOUT_SECONDS = 5.0


class SignsOfLife:
    """Owners' signs of life in a Ray cluster's key-value store, which no connection of this process is needed for."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._client: Any = None

    def leave(self, owner: str) -> None:
        """One more; nothing happens if the cluster does not answer."""
        sign = uuid.uuid4().hex.encode()
        self._ask(lambda client: client.internal_kv_put(owner.encode(), sign, True, SIGNS, SIGN_TIMEOUT_SECONDS))

    def last(self, owner: str) -> str | None:
        """The last one of this owner; None if there is none, or the cluster does not answer."""
        found = self._ask(lambda client: client.internal_kv_get(owner.encode(), SIGNS, SIGN_TIMEOUT_SECONDS))
        return found.decode() if isinstance(found, bytes) else None

    def _ask(self, do: Callable[[Any], Any]) -> Any:
        if not _answers(self.address):  # Ray's own client tries for 40 s
            self._client = None
            return None
        internals: Any = ray
        try:
            if self._client is None:
                self._client = internals._raylet.GcsClient(address=self.address)
            return do(self._client)
        except (ray.exceptions.RayError, RuntimeError, ConnectionError, ValueError, OSError) as error:
            log.debug("Ray at %s does not answer: %s", self.address, error)
            self._client = None
            return None


def _answers(address: str) -> bool:
    """Whether something listens where Ray's head is."""
    host, _, port = address.rpartition(":")
    endpoint = (host.strip("[]"), int(port))
    try:
        return not probe.unreachable([endpoint])
    except OSError:  # the name of its host is not known any more
        return False
