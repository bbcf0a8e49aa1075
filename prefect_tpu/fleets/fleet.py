"""Which slices a gang may use: those of a Ray cluster, or simulated ones on this machine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

from prefect_tpu.core.topology import SliceShape
from prefect_tpu.options.given import GivenOptions

Say = Callable[[str], None]


class Demand(Protocol):
    """Slices that a fleet brings up because a gang waits for them, or runs on them."""

    def waiting(self, num_slices: int) -> None:
        """A gang looks for so many slices from now on; 0: it does not look any more. Never raises."""

    def check(self) -> None:
        """Called again and again while it waits.

        Raises:
            ProvisioningError: it is known that they will not come: why, and what to do.
        """

    def describe(self) -> str:
        """How far it is, for somebody who waits; "" if there is nothing to say."""

    def withdraw(self) -> None:
        """They are not wanted any more. Safe to call twice; never raises."""


@runtime_checkable
class Fleet(Protocol):
    """Where slices come from."""

    def connect(self, say: Say | None = None) -> None:
        """Make the fleet's cluster this process's Ray cluster; starts what has to be started. Idempotent."""

    def describe(self) -> str:
        """How messages call it, on one line."""

    @property
    def address(self) -> str:
        """Its "host:port", or what it was given."""

    def options(self) -> GivenOptions:
        """What is known of its slices' kind; a gang that is given the fleet as such goes by it, before settings."""

    def demand(self, shape: SliceShape, num_slices: int, run_id: str, say: Say) -> Demand | None:
        """Ask for so many slices of this shape for a task run; None where there are just those that there are.

        Called after `connect`, before the gang looks for free slices; what it says is told to whoever waits.

        Raises:
            ProvisioningError: it is known at once that they will not come.
        """
