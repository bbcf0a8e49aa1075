"""The environment that a simulated fleet's processes get of the driver's."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

from prefect_tpu.core.secrets import has_credentials

_SECRET = re.compile(
    r"TOKEN(?!IZER)|SECRET|PASSW(OR)?D|PASSPHRASE|(?<!BY)PASS(FILE)?$|(^|_)PASS_|(?<=.)(?<!OLD)PWD|CREDENTIAL"
    r"|KEY$|(API|ACCESS|PRIVATE|ACCOUNT|ENCRYPTION)_?KEY|JWT|(^|_)(AUTH|PAT|DSN|COOKIE)S?(_|$)|WEBHOOK|NETRC"
    r"|CONNECTION_?(URL|STRING)",
    re.IGNORECASE,
)
"""Names of secrets, with whatever stands before and behind the word."""
_HARMLESS = ("JAX_", "XLA_", "LIBTPU_", "PYTHON", "OMP_", "LC_")
"""Beginnings of names that hold no secrets, whatever words are in them."""
_OWN = ("PREFECT_", "TPU_", "MEGASCALE_", "EXECUTOR_CALL_")
_RAY_OF_ANOTHER_CLUSTER = (
    "RAY_ADDRESS",
    "RAY_JOB_ID",
    "RAY_NODE_ID",
    "RAY_RAYLET_PID",
    "RAY_RUNTIME_ENV_HOOK",
    "RAY_NAMESPACE",
)


def clean_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The driver's environment as far as hosts may see it: no Prefect, no secrets, nothing of another host.

    A secret is told by its name, or by its value: a URL with a user or a signature, a private key.
    """
    return {
        name: value
        for name, value in environ.items()
        if not name.startswith(_OWN) and name not in _RAY_OF_ANOTHER_CLUSTER and not _is_secret(name, value)
    }


def _is_secret(name: str, value: str) -> bool:
    by_name = not name.startswith(_HARMLESS) and _SECRET.search(name) is not None
    return by_name or has_credentials(value)


def supervisor_environment() -> dict[str, str]:
    """Environment of the fleet supervisor, from which every host gets its own."""
    return clean_environment(os.environ) | {"PYTHONUNBUFFERED": "1", "RAY_USAGE_STATS_ENABLED": "0"}
