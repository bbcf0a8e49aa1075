"""The arguments of TpuMultisliceRunner: their types, and what is refused at once."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict

from prefect_tpu.cluster import runtime_env
from prefect_tpu.core.errors import ConfigurationError
from prefect_tpu.fleets.fleet import Fleet

if TYPE_CHECKING:
    from prefect_tpu.blocks.pool import TpuSlicePool

_SLUG = re.compile(r"tpu-slice-pool/[a-z0-9-]+")


class RunnerOptions(TypedDict, total=False):
    """Arguments of TpuMultisliceRunner that do not change the type of its results."""

    pool: Fleet | TpuSlicePool | str | None
    num_slices: int | Sequence[int] | None
    resize_after_seconds: float | None
    resize_interval_seconds: float | None
    accelerator_type: str | None
    topology: str | None
    chips_per_host: int | None
    env: Mapping[str, str] | None
    runtime_env: Mapping[str, Any] | None
    preload: Sequence[str] | None
    jax_distributed: Literal["auto"] | bool
    resumable: bool | None
    max_preemptions: int | None
    max_infrastructure_failures: int | None
    max_preemptions_without_progress: int | None
    preemptible: bool | None
    warm_spares: int | None
    hang_timeout_seconds: float | None
    drain_timeout_seconds: float | None
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
    if pool is not None and not isinstance(pool, str | Fleet) and not hasattr(pool, "validate_fleet"):
        refuse("pool", 'a saved pool ("tpu-slice-pool/NAME"), a TpuSlicePool, a fleet (LocalFleet, RayFleet) or None')
    if isinstance(pool, str) and not _SLUG.fullmatch(pool):
        refuse("pool", 'a saved pool as "tpu-slice-pool/NAME", with lower case letters, digits and dashes')
    if not (options["num_slices"] is None or _are_sizes(options["num_slices"])):
        refuse("num_slices", "a whole number of at least 1, several of them such as [2, 4, 8], or None")
    for name, allowed in (
        ("chips_per_host", 1),
        ("max_preemptions", 0),
        ("max_infrastructure_failures", 0),
        ("max_preemptions_without_progress", 1),
        ("max_workers", 1),
        ("warm_spares", 0),
    ):
        value = options[name]
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < allowed):
            refuse(name, f"a whole number of at least {allowed}, or None")
    for name in ("accelerator_type", "topology"):
        if not (options[name] is None or isinstance(options[name], str)):
            refuse(name, 'a string such as "v4"' if name == "accelerator_type" else 'a string such as "2x2x2"')
    if not isinstance(options["flatten"], bool):
        refuse("flatten", "True or False")
    for name in ("resumable", "preemptible"):
        if options[name] is not None and not isinstance(options[name], bool):
            refuse(name, "True, False or None")
    if options["returns"] not in ("all", "process0"):
        refuse("returns", '"all" or "process0"')
    if options["jax_distributed"] not in ("auto", True, False):
        refuse("jax_distributed", '"auto", True or False')
    env, preload = options["env"], options["preload"]
    if env is not None and not (
        isinstance(env, Mapping) and all(isinstance(k, str) and isinstance(v, str) for k, v in env.items())
    ):
        refuse("env", "a mapping of strings to strings, or None")
    modules = isinstance(preload, Sequence) and all(isinstance(one, str) for one in preload)
    if preload is not None and (isinstance(preload, str) or not modules):
        refuse("preload", 'a sequence of names of modules, such as ("jax", "numpy")')
    for name in (
        "lease_timeout_seconds",
        "lease_hold_seconds",
        "launch_timeout_seconds",
        "cancel_grace_seconds",
        "resize_after_seconds",
        "resize_interval_seconds",
    ):
        value = options[name]
        if value is not None and (not isinstance(value, (int, float)) or isinstance(value, bool) or value < 0):
            refuse(name, "a number of seconds, 0 or more, or None")
    for name in ("hang_timeout_seconds", "drain_timeout_seconds"):
        value = options[name]
        if value is not None and (not isinstance(value, (int, float)) or isinstance(value, bool) or value <= 0):
            refuse(name, "a number of seconds above 0, or None")
    if options["runtime_env"] is not None:
        runtime_env.check(options["runtime_env"], "TpuMultisliceRunner(runtime_env=...)")


def _are_sizes(given: Any) -> bool:
    """Whether it is a number of slices, or a sequence of at least one."""
    sizes = given if isinstance(given, Sequence) and not isinstance(given, str) else [given]
    return bool(sizes) and all(isinstance(one, int) and not isinstance(one, bool) and one >= 1 for one in sizes)
