"""What the slices of a pool are like now."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from prefect_tpu.core.errors import ConfigurationError, TpuError
from prefect_tpu.core.topology import SliceShape
from prefect_tpu.fleets.fleet import Fleet
from prefect_tpu.fleets.local_fleet import LocalFleet
from prefect_tpu.fleets.queued_fleet import QueuedResourceFleet
from prefect_tpu.fleets.ray_fleet import RayFleet

if TYPE_CHECKING:
    from prefect_tpu.cluster.inventory import FleetSummary


def status_of(fleet: Fleet, shape: SliceShape) -> dict[str, Any]:
    """What slices a fleet has, and how many of them are of this shape; see `TpuSlicePool.status`."""
    from prefect_tpu.cluster.inventory import fits

    found, problem = None, ""
    try:
        found = _look_at(fleet)
        problem = "" if found is not None else "it is not up; the first run starts it"
    except (TpuError, OSError, RuntimeError) as error:
        problem = str(error).strip() or type(error).__name__
    slices = found.slices if found is not None else ()
    fitting = [one for one in slices if fits(one, shape)]
    return {
        "fleet": fleet.describe(),
        "up": found is not None,
        "problem": problem,
        "fitting": len(fitting),
        "free": sum(one.free and not one.draining for one in fitting),
        "slices": [
            {key: value for key, value in asdict(one).items() if key != "slice"} | {"says": one.describe()}
            for one in slices
        ],
    }


def check(status: Mapping[str, Any], fleet: Fleet, shape: SliceShape, sizes: Sequence[int]) -> None:
    """See that a gang of the least of these sizes could run now or later.

    Raises:
        ConfigurationError: the cluster does not answer, or has too few whole slices of this shape and makes none.
    """
    if not status["up"] and not isinstance(fleet, LocalFleet):
        raise ConfigurationError(f"{status['fleet']}: {status['problem']}")
    if getattr(fleet, "autoscaled", False) or isinstance(fleet, QueuedResourceFleet):
        return  # what is not there yet is brought up when a gang waits for it
    if status["up"] and status["fitting"] < min(sizes):
        there = "; ".join(one["says"] for one in status["slices"]) or "no TPU slices"
        raise ConfigurationError(
            f"{status['fleet']} has {status['fitting']} whole slices of {shape.accelerator_type} {shape.topology}, and "
            f"num_slices is {sizes[0] if len(sizes) == 1 else list(sizes)}. There: {there}"
        )


def _look_at(fleet: Fleet) -> FleetSummary | None:
    from prefect_tpu.cluster import addresses
    from prefect_tpu.fleets import look

    address = addresses.resolve(fleet.address) if isinstance(fleet, RayFleet | QueuedResourceFleet) else fleet.address
    return look.summary_of(address) if address else None
