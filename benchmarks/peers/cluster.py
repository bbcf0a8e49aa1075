"""The cluster for the systems that run on plain Ray: the very fleet of simulated hosts that prefect_tpu has."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from messages import SETTLE_SECONDS, Messages

from prefect_tpu import LocalFleet

PAUSE_SECONDS = 2.0
"""Between two calls, so that no call pays for what the one before it has left to clean up."""

FLEET = LocalFleet(slices=2, accelerator_type="v4", topology="2x2x2")
NUM_SLICES = 2


@contextmanager
def connected_fleet(messages: Messages) -> Iterator[None]:
    """The fleet is up, this process is connected to it, and it has settled."""
    messages.say("starting two simulated slices of two hosts")
    with FLEET:
        time.sleep(SETTLE_SECONDS)
        yield
