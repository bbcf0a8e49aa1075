"""Slices of a Ray cluster that is there already."""

from __future__ import annotations

from dataclasses import dataclass

from prefect_tpu.core.errors import ConfigurationError
from prefect_tpu.core.ray_address import check_address
from prefect_tpu.core.topology import SliceShape
from prefect_tpu.fleets.fleet import Demand, Say
from prefect_tpu.options.given import GivenOptions


@dataclass(frozen=True, slots=True)
class RayFleet:
    """The TPU slices of a Ray cluster that runs already.

    The driver must run on a host of that cluster. Beside it, in a container of a Prefect worker for one, `join=True`
    makes its machine part of the cluster.

    Args:
        address: "auto" for the cluster on this machine (or the one in RAY_ADDRESS), or "host:port".
        namespace: Ray's namespace for what prefect_tpu starts.
        join: start a Ray node without resources on this machine first; it ends with the process.
        autoscaled: slices that are missing are asked for from Ray's autoscaler, for as long as a gang waits for them.

    Raises:
        ConfigurationError: no address; or `ray://`, which cannot work: results move through the driver's own store.
    """

    address: str = "auto"
    namespace: str = "prefect_tpu"
    join: bool = False
    autoscaled: bool = False

    def __post_init__(self) -> None:
        for name in ("join", "autoscaled"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigurationError(f"RayFleet({name}={getattr(self, name)!r}): must be True or False")
        if self.join and self.address == "auto":
            raise ConfigurationError(
                "RayFleet(join=True) needs the cluster's 'host:port': 'auto' is a cluster that this machine is part of"
            )
        try:
            check_address(self.address)
        except ValueError as error:
            raise ConfigurationError(f"RayFleet(address={self.address!r}): {error}") from None
        if self.address.startswith("ray://"):
            raise ConfigurationError(
                f"RayFleet(address={self.address!r}): Ray Client cannot be used, as results and arguments move "
                "through Ray's object store on the driver's own host. Run the flow on a host of the cluster and "
                "use 'auto' or its 'host:port'; beside a cluster, RayFleet('host:port', join=True) makes this machine "
                "part of it."
            )

    def options(self) -> GivenOptions:
        """Nothing: it has slices of whatever kinds."""
        return {}

    def connect(self, say: Say | None = None) -> None:
        """Connect this process.

        Raises:
            ConfigurationError: not reachable, connected elsewhere, or (unless it is autoscaled) no host of it has TPU
                chips.
        """
        from prefect_tpu.cluster import inventory
        from prefect_tpu.fleets import join

        target = join.connect(self.address, namespace=self.namespace, joining=self.join, say=say)
        problem = None if self.autoscaled else inventory.no_slices_message(target)
        if problem:
            raise ConfigurationError(problem)

    def describe(self) -> str:
        """How messages call it."""
        return f"the {'autoscaled ' if self.autoscaled else ''}Ray cluster at {self.address}"

    def demand(self, shape: SliceShape, num_slices: int, run_id: str, say: Say) -> Demand | None:  # noqa: ARG002
        """To Ray's autoscaler; None if it is not autoscaled: its slices are those that are up."""
        if not self.autoscaled:
            return None
        from prefect_tpu.fleets.autoscaler import AutoscalerDemand

        return AutoscalerDemand(shape, run_id)
