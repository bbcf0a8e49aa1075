"""The arguments of TpuMultisliceRunner: their types, and what is refused at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypedDict

from prefect_tpu.cluster.fleet import Fleet
from prefect_tpu.core.errors import ConfigurationError


class RunnerOptions(TypedDict, total=False):
    """Arguments of TpuMultisliceRunner that do not change the type of its results."""

    pool: Fleet | str | None
    num_slices: int
    accelerator_type: str | None
    topology: str | None
    chips_per_host: int | None
    env: Mapping[str, str] | None
    preload: Sequence[str]
    jax_distributed: Literal["auto"] | bool
    resumable: bool
    max_preemptions: int | None
    max_infrastructure_failures: int
    max_preemptions_without_progress: int
    preemptible: bool
    warm_spares: int | None
    hang_timeout_seconds: float | None
    checkpoint_root: str | Path | None
    lease_timeout_seconds: float | None
    lease_hold_seconds: float | None
    launch_timeout_seconds: float | None
    cancel_grace_seconds: float | None
    max_workers: int | None


def check_options(options: dict[str, Any]) -> None:
    """Refuse what cannot be right, by name, with the allowed values."""

    def refuse(name: str, allowed: str) -> None:
        raise ConfigurationError(
            f"TpuMultisliceRunner({name}={options[name]!r}): must be {allowed}; set it where the runner is made"
        )

    pool = options["pool"]
    if pool is not None and not isinstance(pool, str | Fleet):
        refuse("pool", "a fleet (LocalFleet, RayFleet) or None")
    for name, allowed in (
        ("num_slices", 1),
        ("chips_per_host", 1),
        ("max_preemptions", 0),
        ("max_workers", 1),
        ("warm_spares", 0),
    ):
        value = options[name]
        optional = name != "num_slices" and value is None
        if not optional and (not isinstance(value, int) or isinstance(value, bool) or value < allowed):
            refuse(name, f"a whole number of at least {allowed}" + ("" if name == "num_slices" else ", or None"))
    for name, least in (("max_infrastructure_failures", 0), ("max_preemptions_without_progress", 1)):
        value = options[name]
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            refuse(name, f"a whole number of at least {least}")
    for name in ("accelerator_type", "topology"):
        if not (options[name] is None or isinstance(options[name], str)):
            refuse(name, 'a string such as "v4"' if name == "accelerator_type" else 'a string such as "2x2x2"')
    for name in ("flatten", "resumable", "preemptible"):
        if not isinstance(options[name], bool):
            refuse(name, "True or False")
    if options["returns"] not in ("all", "process0"):
        refuse("returns", '"all" or "process0"')
    if options["jax_distributed"] not in ("auto", True, False):
        refuse("jax_distributed", '"auto", True or False')
    env, preload = options["env"], options["preload"]
    if not isinstance(env, Mapping) or not all(isinstance(k, str) and isinstance(v, str) for k, v in env.items()):
        refuse("env", "a mapping of strings to strings")
    if isinstance(preload, str) or not (isinstance(preload, Sequence) and all(isinstance(one, str) for one in preload)):
        refuse("preload", 'a sequence of names of modules, such as ("jax", "numpy")')
    for name in ("lease_timeout_seconds", "lease_hold_seconds", "launch_timeout_seconds", "cancel_grace_seconds"):
        value = options[name]
        if value is not None and (not isinstance(value, (int, float)) or isinstance(value, bool) or value < 0):
            refuse(name, "a number of seconds, 0 or more, or None")
    hang = options["hang_timeout_seconds"]
    if hang is not None and (not isinstance(hang, (int, float)) or isinstance(hang, bool) or hang <= 0):
        refuse("hang_timeout_seconds", "a number of seconds above 0, or None")
