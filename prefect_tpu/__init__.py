"""TPU multislice jobs as first-class Prefect tasks: the public names. Runs: everywhere.

Nothing heavy is imported here: hosts import `prefect_tpu.runtime` and must not get Prefect or Ray with it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from prefect_tpu._version import __version__

if TYPE_CHECKING:
    from prefect_tpu import runtime as runtime
    from prefect_tpu.blocks import LocalFleetBlock as LocalFleetBlock
    from prefect_tpu.blocks import QueuedResourceFleetBlock as QueuedResourceFleetBlock
    from prefect_tpu.blocks import RayFleetBlock as RayFleetBlock
    from prefect_tpu.blocks import TpuSlicePool as TpuSlicePool
    from prefect_tpu.core.errors import AttemptError as AttemptError
    from prefect_tpu.core.errors import ConfigurationError as ConfigurationError
    from prefect_tpu.core.errors import GangCancelledError as GangCancelledError
    from prefect_tpu.core.errors import GangTimeoutError as GangTimeoutError
    from prefect_tpu.core.errors import HangError as HangError
    from prefect_tpu.core.errors import HostLostError as HostLostError
    from prefect_tpu.core.errors import HostProcessError as HostProcessError
    from prefect_tpu.core.errors import NotInGangError as NotInGangError
    from prefect_tpu.core.errors import PreloadError as PreloadError
    from prefect_tpu.core.errors import ProvisioningError as ProvisioningError
    from prefect_tpu.core.errors import RetriesExhaustedError as RetriesExhaustedError
    from prefect_tpu.core.errors import SlicePreemptedError as SlicePreemptedError
    from prefect_tpu.core.errors import SliceUnavailableError as SliceUnavailableError
    from prefect_tpu.core.errors import TopologyError as TopologyError
    from prefect_tpu.core.errors import TpuError as TpuError
    from prefect_tpu.fleets.local_fleet import LocalFleet as LocalFleet
    from prefect_tpu.fleets.queued_fleet import QueuedResourceFleet as QueuedResourceFleet
    from prefect_tpu.fleets.ray_fleet import RayFleet as RayFleet
    from prefect_tpu.observability import artifacts as artifacts
    from prefect_tpu.task_runners import TpuMultisliceRunner as TpuMultisliceRunner
    from prefect_tpu.tasks import materialize as materialize
    from prefect_tpu.tasks import task as task

_NAMES = {
    "task": "tasks",
    "materialize": "tasks",
    "TpuMultisliceRunner": "task_runners",
    "LocalFleet": "fleets.local_fleet",
    "RayFleet": "fleets.ray_fleet",
    "QueuedResourceFleet": "fleets.queued_fleet",
    "LocalFleetBlock": "blocks",
    "QueuedResourceFleetBlock": "blocks",
    "RayFleetBlock": "blocks",
    "TpuSlicePool": "blocks",
    "AttemptError": "core.errors",
    "ConfigurationError": "core.errors",
    "GangCancelledError": "core.errors",
    "GangTimeoutError": "core.errors",
    "HangError": "core.errors",
    "HostLostError": "core.errors",
    "HostProcessError": "core.errors",
    "NotInGangError": "core.errors",
    "PreloadError": "core.errors",
    "ProvisioningError": "core.errors",
    "RetriesExhaustedError": "core.errors",
    "SlicePreemptedError": "core.errors",
    "SliceUnavailableError": "core.errors",
    "TopologyError": "core.errors",
    "TpuError": "core.errors",
}
"""In which module each public name is; it is imported when somebody asks for it."""
_MODULES = {"runtime": "runtime", "artifacts": "observability.artifacts"}

__all__ = ["__version__", "runtime", *_NAMES]


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        return getattr(importlib.import_module(f"prefect_tpu.{_NAMES[name]}"), name)
    if name in _MODULES:
        return importlib.import_module(f"prefect_tpu.{_MODULES[name]}")
    raise AttributeError(f"module 'prefect_tpu' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
