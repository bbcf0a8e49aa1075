"""Which processes of a fleet are alive, as Ray's key-value store tells."""

from __future__ import annotations

import functools
import logging
import uuid
from collections.abc import Callable
from typing import Any

import ray  # noqa: F401 - before parts of it: see tests/test_house.py
from ray.exceptions import AuthenticationError, RayError

from prefect_tpu.cluster import auth, gcs
from prefect_tpu.core.errors import ConfigurationError
from prefect_tpu.fleets.tokens import token_of

log = logging.getLogger("prefect_tpu.provision")

NAMESPACE = b"prefect-tpu-owners"


@functools.cache
def warn_once(text: str) -> None:
    """It is asked for again and again."""
    log.warning("%s", text)


class SignsOfLife:
    """Owners' signs of life in a Ray cluster's key-value store, which no connection of this process is needed for."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._store: gcs.KeyValueStore | None = None

    def leave(self, owner: str) -> None:
        """One more; nothing happens if the cluster does not answer."""
        self._ask(lambda store: store.put(owner, uuid.uuid4().hex))

    def last(self, owner: str) -> str | None:
        """The last one of this owner; None if there is none, or the cluster does not answer."""
        found: str | None = self._ask(lambda store: store.get(owner))
        return found

    def _ask(self, do: Callable[[gcs.KeyValueStore], Any]) -> Any:
        if not gcs.answers(self.address):
            self._store = None
            return None
        try:
            with auth.at(self.address, token_of):
                if self._store is None:
                    self._store = gcs.KeyValueStore(self.address, NAMESPACE)
                return do(self._store)
        except (ConfigurationError, AuthenticationError) as error:
            warn_once(f"No signs of life are left in Ray at {self.address}: {error}")
            self._store = None
            return None
        except (RayError, RuntimeError, ConnectionError, ValueError, OSError) as error:
            log.debug("Ray at %s does not answer: %s", self.address, error)
            self._store = None
            return None
