"""What one gang wants of a fleet's keeper, from its first look for slices to its end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from prefect_tpu.core.errors import ProvisioningError
from prefect_tpu.provision.request import SliceRequest

if TYPE_CHECKING:
    from prefect_tpu.provision.keeper import Keeper


@dataclass(slots=True, eq=False)
class SliceDemand:
    """What one gang wants. A `cluster.fleet.Demand`."""

    asked: SliceRequest
    count: int
    keeper: Keeper
    _withdrawn: bool = False

    def waiting(self, num_slices: int) -> None:
        """The keeper brings up what is wanted whether the gang waits at the moment or not."""

    def check(self) -> None:
        """Raise a ProvisioningError once it is known that they will not come."""
        why = self.keeper.hopeless(self)
        if why:
            raise ProvisioningError(f"no {self.count} slices of {self.asked.kind}: {why}")

    def describe(self) -> str:
        """How far it is."""
        return self.keeper.describe(self)

    def withdraw(self) -> None:
        """They are not wanted any more."""
        if not self._withdrawn:
            self._withdrawn = True
            self.keeper.withdraw(self)
