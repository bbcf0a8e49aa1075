"""What a plan asks of simulated slices, checked before anything is started: theirs are known, and no others come."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from prefect_tpu.core.environment import device_counts
from prefect_tpu.core.errors import ConfigurationError, TopologyError
from prefect_tpu.core.gang import sizes_of
from prefect_tpu.core.topology import SliceShape
from prefect_tpu.fleets.local_fleet import LocalFleet
from prefect_tpu.gang.plan import GangPlan

SHAPE_OPTIONS = ("accelerator_type", "topology", "chips_per_host")
Origin = Callable[[str], str]
"""Says who has set an option, in words."""


def shape_of(plan: GangPlan, origin: Origin) -> SliceShape:
    """Of the slices that the plan asks for.

    Raises:
        TopologyError: there is no such slice; with who has set what.
    """
    try:
        return plan.resolve()
    except TopologyError as error:
        raise TopologyError(f"{error} {_origins(plan.options, origin)}") from None


def check(plan: GangPlan, fleet: LocalFleet, shape: SliceShape, origin: Origin, *, in_pool: bool) -> None:
    """See that the fleet's slices do for a gang.

    Args:
        plan: of the gang.
        fleet: whose slices they are.
        shape: that the gang asks for.
        origin: says who has set an option.
        in_pool: the fleet is a pool's block.

    Raises:
        ConfigurationError: too few of them, of another kind, or with another number of devices than `env` asks for.
    """
    if shape != fleet.shape:
        raise ConfigurationError(
            f"{fleet.describe()} has no {_with_chips(shape)} slices, only {_with_chips(fleet.shape)} ones, and no "
            f"others come. {_origins(plan.options, origin)} Leave it out, or choose the same for the fleet"
        )
    least = sizes_of(plan.options.num_slices)[0]
    there = fleet.slices if least <= fleet.slices else fleet.slices_now()
    if least > there:
        more = f"raise `slices` of the pool's local fleet to {least}" if in_pool else f"pool=LocalFleet(slices={least})"
        raise ConfigurationError(
            f"num_slices={plan.options.num_slices} (set by {origin('num_slices')}): {fleet.describe()} has {there} "
            f"slices, and more do not come by themselves: {more}, add_slice() before the run, or fewer slices"
        )
    for name, count in device_counts(plan.options.env).items():
        if count != shape.chips_per_host:
            raise ConfigurationError(
                f"env: {name} asks for {count} CPU devices, and a simulated host of {shape.accelerator_type} "
                f"{shape.topology} has {shape.chips_per_host} chips, a device each: take it out, or choose another "
                "topology or chips_per_host"
            )


def _with_chips(shape: SliceShape) -> str:
    return f"{shape} ({shape.chips_per_host} chips a host)"


def _origins(options: Any, origin: Origin) -> str:
    values = {name: getattr(options, name) for name in SHAPE_OPTIONS}
    said = [f"{name} {value!r} is set by {origin(name)}" for name, value in values.items() if value is not None]
    return f"{'; '.join(said)}."
