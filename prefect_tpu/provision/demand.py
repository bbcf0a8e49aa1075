"""What one gang wants of a fleet's keeper, from its first look for slices to its end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from prefect_tpu.core.errors import ProvisioningError
from prefect_tpu.provision.request import SliceRequest


class Provider(Protocol):
    """Who brings up what is wanted, as `keeper.Keeper` does."""

    def hopeless(self, wants: SliceDemand) -> str:
        """Why they will not come, "" as long as they may."""

    def describe(self, wants: SliceDemand) -> str:
        """How far it is."""

    def withdraw(self, wants: SliceDemand) -> None:
        """They are not wanted any more."""


@dataclass(slots=True, eq=False)
class SliceDemand:
    """What one gang wants. A `fleets.fleet.Demand`."""

    asked: SliceRequest
    count: int
    provider: Provider
    _withdrawn: bool = False

    def waiting(self, num_slices: int) -> None:
        """The keeper brings up what is wanted whether the gang waits at the moment or not."""

    def check(self) -> None:
        """Raise a ProvisioningError once it is known that they will not come."""
        why = self.provider.hopeless(self)
        if why:
            raise ProvisioningError(f"no {self.count} slices of {self.asked.kind}: {why}")

    def describe(self) -> str:
        """How far it is."""
        return self.provider.describe(self)

    def withdraw(self) -> None:
        """They are not wanted any more."""
        if not self._withdrawn:
            self._withdrawn = True
            self.provider.withdraw(self)
