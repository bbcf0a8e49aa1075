"""JAX hears of a notice, so that `reached_preemption_sync_point` agrees on a step."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from prefect_tpu.host.process import jax_api

if TYPE_CHECKING:
    from prefect_tpu.runtime.process import Context

log = logging.getLogger("prefect_tpu")

LOOK_AGAIN_SECONDS = 0.2
"""While the function has not imported JAX."""


def tell(context: Context, over: threading.Event, has_handler: Callable[[], bool]) -> None:
    """Tell JAX's preemption service as soon as the function has imported JAX, if it does.

    Args:
        context: of this process; what it says of draining changes.
        over: the function has ended.
        has_handler: whether the function handles SIGTERM itself, which it keeps: JAX's would take its place.
    """
    while context.draining and not over.is_set():
        try:
            if jax_api.tell_of_preemption(alone=not context.jax_distributed and not has_handler()):
                return
        except Exception as error:  # noqa: BLE001 - the function can ask `draining`
            log.warning("JAX's preemption service is not told of the notice: %s: %s", type(error).__name__, error)
            return
        time.sleep(LOOK_AGAIN_SECONDS)
