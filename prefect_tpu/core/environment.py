"""The variables that a host process of a gang finds in its environment."""

from __future__ import annotations

import re
from collections.abc import Mapping

from prefect_tpu.core.gang import Gang, Member
from prefect_tpu.core.topology import SliceShape

MEGASCALE_PORT_OVERRIDE = "COORD_PORT"
"""A user variable with this name fixes MegaScale's port; without it each attempt gets a new one."""

COORDINATION_PREFIXES = ("MEGASCALE_",)
"""Variables that must never leak from one attempt, or from the host, into another."""


FLAG_VARIABLES = ("XLA_FLAGS", "LIBTPU_INIT_ARGS")
"""Their values are flags: those of the host stay, and the user's come last, where they win."""

HASH_SEED = "PYTHONHASHSEED"
MAX_HASH_SEED = 2**32 - 1
"""With another one Python does not start."""

_DEVICE_COUNTS = {
    "XLA_FLAGS": re.compile(r"--xla_force_host_platform_device_count[= ]'?\"?(\d+)"),
    "JAX_NUM_CPU_DEVICES": re.compile(r"^\s*(\d+)\s*$"),
}


def check_values(user_env: Mapping[str, str]) -> None:
    """Look at the values of variables with which no host process could start as it was meant.

    Raises:
        ValueError: one of them cannot be; with what is allowed.
    """
    for name in FLAG_VARIABLES:
        text = user_env.get(name, "").strip()
        if text and not text.startswith("-"):
            raise ValueError(f"{name}={text[:50]!r} is no list of flags such as '--a=1 --b=2'")
    seed = user_env.get(HASH_SEED, "random")
    if seed != "random" and not (seed.isascii() and seed.isdigit() and int(seed) <= MAX_HASH_SEED):
        raise ValueError(f"{HASH_SEED}={seed[:50]!r} must be 'random' or a whole number from 0 to {MAX_HASH_SEED}")


def merge_flags(*values: str | None) -> str:
    """Flags from everybody who has some, the later the stronger; what is said twice alike is said once."""
    said = dict.fromkeys(one.strip() for one in values if one)
    return " ".join(one for one in said if one)


def device_counts(user_env: Mapping[str, str]) -> dict[str, int]:
    """How many CPU devices the user's variables ask for, by the variable that does; the last word of each counts."""
    found = {name: pattern.findall(user_env.get(name, "")) for name, pattern in _DEVICE_COUNTS.items()}
    return {name: int(counts[-1]) for name, counts in found.items() if counts}


def gang_environment(
    gang: Gang, member: Member, shape: SliceShape, *, megascale_port: int, user_env: dict[str, str]
) -> dict[str, str]:
    """Variables of one host process, beside the user's own.

    `MEGASCALE_*` only for more than one slice (as `ray.util.tpu.get_tpu_coordinator_env_vars` names
    them); the others are what users of the system before this one rely on. `TPU_NAME` is the host's own
    and is not touched, and neither is `TPU_ZONE`, which real TPU hosts have already.
    """
    env = {
        "EXECUTOR_CALL_INDEX": str(member.host_index),
        "EXECUTOR_CALL_SLICE": str(member.slice_index),
        "TPU_SLICE_NAME": member.slice_name,
        "TPU_HOST_ID": str(member.host_index),
        "TPU_NUM_DEVICES": str(member.host.chips),
        "TPU_VERSION": shape.accelerator_type,
        "TPU_POD_COUNT": str(gang.num_slices),
    }
    if gang.num_slices > 1:
        env |= {
            "MEGASCALE_COORDINATOR_ADDRESS": gang.coordinator.address,
            "MEGASCALE_PORT": user_env.get(MEGASCALE_PORT_OVERRIDE, str(megascale_port)),
            "MEGASCALE_NUM_SLICES": str(gang.num_slices),
            "MEGASCALE_SLICE_ID": str(member.slice_index),
        }
    return env
