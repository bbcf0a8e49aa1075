"""The values of Ray's ObjectRefs among a gang's arguments: hosts are no processes of Ray and cannot ask for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ray

from prefect_tpu.core.errors import ConfigurationError, GangCancelledError

LOOK_SECONDS = 0.1
"""How often it is asked whether the wait is cancelled."""


def fetcher(cancelled: Callable[[], bool]) -> Callable[[Any], Any]:
    """What waits for a reference's value and brings it, and starts no Ray for it.

    It raises what the Ray task raised; ConfigurationError, where this process is not connected to Ray (any more);
    GangCancelledError, once `cancelled` says True.
    """

    def fetch(ref: Any) -> Any:
        if not ray.is_initialized():
            raise ConfigurationError(
                f"an argument has {ref}, and this process has no connection to Ray: the cluster that it belongs to is "
                "gone from here. Pass its value"
            )
        while not ray.wait([ref], timeout=LOOK_SECONDS)[0]:
            if cancelled():
                raise GangCancelledError("cancelled while it waited for an argument's ObjectRef")
        return ray.get(ref)

    return fetch
