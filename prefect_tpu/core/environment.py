"""The variables that a host process of a gang finds in its environment."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from prefect_tpu.core.gang import Gang, Member
from prefect_tpu.core.topology import SliceShape

MEGASCALE_PORT_OVERRIDE = "COORD_PORT"
"""A user variable with this name fixes MegaScale's port; without it each attempt gets a new one."""

COORDINATION_PREFIXES = ("MEGASCALE_",)
"""Variables that must never leak from one attempt, or from the host, into another."""


FLAG_VARIABLES = ("XLA_FLAGS", "LIBTPU_INIT_ARGS")
"""Their values are flags: those of the host stay, and the user's come last, where they win."""

READ_AT_IMPORT = (
    *("JAX_", "XLA_", "LIBTPU_", "TPU_", "MEGASCALE_", "EXECUTOR_CALL_", "PYTHON", "LD_", "PREFECT_", "RAY_"),
    *("TF_", "GRPC_", "ABSL_", "NPROC", "NUMPY_", "NPY_", "OMP_", "OPENBLAS_", "MKL_", "BLIS_", "KMP_", "NUMEXPR_"),
    *("MALLOC_", "GLIBC_", "LC_", "LANG", "TZ"),
)
"""Beginnings of names that Python, JAX, numpy and the C library read when they start, much of it below Python."""

DIRECT = ("no_proxy", "NO_PROXY")
"""Whom to reach without the network's proxy. Programs look at one or the other."""
DIRECT_OF_GRPC = "no_grpc_proxy"
"""gRPC looks at it first, and then at no other."""
PROXIES = ("http_proxy", "https_proxy", "grpc_proxy", "all_proxy")
LOOPBACK = ("localhost", "127.0.0.1", "::1")

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
            raise ValueError(f"{name} is no list of flags such as '--a=1 --b=2'")
    seed = user_env.get(HASH_SEED, "random")
    if seed != "random" and not (seed.isascii() and seed.isdigit() and int(seed) <= MAX_HASH_SEED):
        raise ValueError(f"{HASH_SEED} must be 'random' or a whole number from 0 to {MAX_HASH_SEED}")


def merge_flags(*values: str | None) -> str:
    """Flags from everybody who has some, the later the stronger; what is said twice alike is said once."""
    said = dict.fromkeys(one.strip() for one in values if one)
    return " ".join(one for one in said if one)


def device_counts(user_env: Mapping[str, str]) -> dict[str, int]:
    """How many CPU devices the user's variables ask for, by the variable that does; the last word of each counts."""
    found = {name: pattern.findall(user_env.get(name, "")) for name, pattern in _DEVICE_COUNTS.items()}
    return {name: int(counts[-1]) for name, counts in found.items() if counts}


def read_at_import(preload: Collection[str], user_env: Mapping[str, str], looked_up: Collection[str]) -> dict[str, str]:
    """The user's variables that must be there before modules are imported; the others can be set in a forked process.

    Args:
        preload: modules that are imported.
        user_env: all variables.
        looked_up: names that these modules are known to look up when they are imported; "*" for all.
    """
    beginnings = (*READ_AT_IMPORT, *(f"{one.partition('.')[0].upper()}_" for one in preload))
    return {
        name: value
        for name, value in user_env.items()
        if name.startswith(beginnings) or name in looked_up or "*" in looked_up
    }


def attempt_environment(
    found: Mapping[str, str], gang_env: Mapping[str, str], user_env: Mapping[str, str], after_fork: Mapping[str, str]
) -> dict[str, str]:
    """What a host process sets before its function is there.

    Args:
        found: its environment so far.
        gang_env: of the gang; the user's own win, but the hosts that are reached without a proxy, if there is one, are
            added to what is said of that.
        user_env: all variables of the user's. Those that are in `found` stay: what was imported may have changed them.
        after_fork: those of them that are not there yet, and secret ones.
    """
    env = {name: value for name, value in gang_env.items() if name not in user_env and name not in DIRECT}
    env |= after_fork
    hosts, now = gang_env.get(DIRECT[0], ""), {**found, **env}
    if not hosts or not any(value for name, value in now.items() if name.lower() in PROXIES):
        return env
    said = [now.get(name) for name in DIRECT]
    everybody = _listed(*said)
    if "*" in everybody:  # it counts only alone, and not to gRPC
        env |= dict.fromkeys(DIRECT, "*")
    else:
        env |= dict.fromkeys(DIRECT, ",".join(_listed(*said, hosts)))
    if DIRECT_OF_GRPC in now or "*" in everybody:
        env[DIRECT_OF_GRPC] = ",".join(_listed(now.get(DIRECT_OF_GRPC), hosts))
    return env


def _listed(*values: str | None) -> list[str]:
    """What stands in lists with commas, each once."""
    return list(dict.fromkeys(one.strip() for value in values if value for one in value.split(",") if one.strip()))


def gang_environment(
    gang: Gang, member: Member, shape: SliceShape, *, megascale_port: int, user_env: dict[str, str]
) -> dict[str, str]:
    """Variables of one host process, beside the user's own.

    `MEGASCALE_*` only for more than one slice (as `ray.util.tpu.get_tpu_coordinator_env_vars` names
    them); hosts of the gang are reached without a proxy; the others are what users of the system before this one
    rely on. `TPU_NAME` is the host's own and is not touched, and neither is `TPU_ZONE`, which real TPU hosts have.
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
    addresses = [host.address for one in gang.slices for host in one.hosts]
    env |= dict.fromkeys(DIRECT, ",".join(dict.fromkeys([*LOOPBACK, *addresses])))
    if gang.num_slices > 1:
        env |= {
            "MEGASCALE_COORDINATOR_ADDRESS": gang.coordinator.address,
            "MEGASCALE_PORT": user_env.get(MEGASCALE_PORT_OVERRIDE, str(megascale_port)),
            "MEGASCALE_NUM_SLICES": str(gang.num_slices),
            "MEGASCALE_SLICE_ID": str(member.slice_index),
        }
    return env
