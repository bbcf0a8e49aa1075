"""What a zygote inherits from its agent: the host's environment without what Ray and Prefect put into it."""

from __future__ import annotations

import os
import resource
import socket
import sys
from collections.abc import Iterable, Mapping

from prefect_tpu.core.environment import COORDINATION_PREFIXES, FLAG_VARIABLES, HASH_SEED, merge_flags
from prefect_tpu.core.errors import ConfigurationError
from prefect_tpu.core.secrets import variable
from prefect_tpu.linux.processes import environment_of

FOREIGN_PREFIXES = ("RAY_", "PREFECT_", *COORDINATION_PREFIXES)
"""Of Ray and Prefect (settings, secrets), and of an earlier gang."""

STALE_VARIABLES = frozenset(
    {
        "JAX_COORDINATOR_ADDRESS",
        "JAX_COORDINATOR_BIND_ADDRESS",
        "JAX_NUM_PROCESSES",
        "JAX_PROCESS_ID",
        "JAX_LOCAL_DEVICE_IDS",
        "JAX_PARTITION_INDEX",
        "JAX_SLICE_INDEX",
    }
)
"""They would tell JAX of another gang."""

SET_BY_RAY = frozenset(
    {
        "OMP_NUM_THREADS",
        "TPU_VISIBLE_CHIPS",
        "TPU_CHIPS_PER_HOST_BOUNDS",
        "TPU_HOST_BOUNDS",
        "CUDA_VISIBLE_DEVICES",
        "PYTHONBREAKPOINT",
        "LD_PRELOAD",
        "MALLOC_CONF",
    }
)
"""Ray sets them for a worker process that has reserved nothing; the host's own value is its raylet's."""

ON_HOSTS = {
    "PREFECT_LOGGING_TO_API_ENABLED": "false",
    "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "false",
    "RAY_RUNTIME_ENV_HOOK": "prefect_tpu.host.process.no_ray.refuse",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
}
"""Hosts have no API to log to, and none of them may start a server or a Ray of its own. Ray calls the hook before it
starts or joins anything; with its own way for `uv run` it would not."""

MAX_PROGRAM_BYTES = 6 * 1024**2
"""Of a program's arguments and variables, whatever the limit of its stack is: Linux's own (execve(2))."""

SEED_OF_HOSTS = "0"
"""One seed for all hosts of a gang, or sets have another order on each. The same for every attempt and run, as hosts
of another run may go on from its checkpoint."""


def zygote_environment(
    own: Mapping[str, str], parent: Mapping[str, str] | None, user_env: Mapping[str, str]
) -> dict[str, str]:
    """The environment for a zygote.

    Args:
        own: the agent's.
        parent: that of the process that started the agent (the raylet), None if it cannot be read.
        user_env: the user's variables that have to be there at its start; they win. Their flags are put behind the
            host's.
    """
    of_host = parent or {}
    env = {
        name: value
        for name, value in own.items()
        if not name.startswith(FOREIGN_PREFIXES) and name not in STALE_VARIABLES and name not in SET_BY_RAY
    }
    env |= {name: value for name, value in of_host.items() if name in SET_BY_RAY and value}
    if parent is None or own.get(HASH_SEED) == parent.get(HASH_SEED):  # else it comes from a runtime_env
        env[HASH_SEED] = SEED_OF_HOSTS
    env |= ON_HOSTS | dict(user_env)
    flags = {name: merge_flags(of_host.get(name), own.get(name), user_env.get(name)) for name in FLAG_VARIABLES}
    return env | {name: value for name, value in flags.items() if value}


def require_startable(user_env: Mapping[str, str]) -> None:
    """See that a process can have these variables, also those that are set in it after the fork: it may start others.

    Raises:
        ConfigurationError: they are too big together.
    """
    stack = resource.getrlimit(resource.RLIMIT_STACK)[0]
    most = MAX_PROGRAM_BYTES if stack == resource.RLIM_INFINITY else min(MAX_PROGRAM_BYTES, stack // 4)
    size = sum(len(os.fsencode(name)) + len(os.fsencode(value)) + 2 for name, value in user_env.items())
    if size > most:
        raise cannot_start(user_env, f"Argument list too long: they have {size} bytes, and {most} are allowed here")


def cannot_start(names: Iterable[str], said: str) -> ConfigurationError:
    """No Python starts here with these variables of the user's."""
    named = ", ".join(variable(name) for name in names)
    return ConfigurationError(
        f"no Python starts on host {socket.gethostname()} with the variables of env ({named}): {said}"
    )


def parent_environment() -> dict[str, str] | None:
    """The environment that this process's parent was started with; None if it cannot be read."""
    entries = [entry.decode(errors="surrogateescape") for entry in environment_of(os.getppid()) if b"=" in entry]
    return dict(entry.split("=", 1) for entry in entries) if entries else None


def zygote_path(user_env: Mapping[str, str]) -> list[str]:
    """`sys.path` for a zygote: the user's PYTHONPATH, then what this process has.

    Without the current directory and Ray's own copies of packages.
    """
    inside_ray = os.sep.join(("", "site-packages", "ray", ""))
    entries = [*user_env.get("PYTHONPATH", "").split(os.pathsep), *sys.path]
    return [entry for entry in entries if entry and inside_ray not in f"{entry}{os.sep}"]
