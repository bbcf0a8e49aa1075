"""The environment that a simulated fleet's processes get of the driver's."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

_SECRET = re.compile(
    r"(^|_)(API_?KEY|ACCESS_?KEY|SECRET_?KEY|PRIVATE_?KEY|TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIAL|AUTH)S?(_|$)"
    r"|CONNECTION_(URL|STRING)",
    re.IGNORECASE,
)
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
    """The driver's environment as far as hosts may see it: no Prefect, no secrets, nothing of another host."""
    return {
        name: value
        for name, value in environ.items()
        if not name.startswith(_OWN) and name not in _RAY_OF_ANOTHER_CLUSTER and not _SECRET.search(name)
    }


def supervisor_environment() -> dict[str, str]:
    """Environment of the fleet supervisor, from which every host gets its own."""
    return clean_environment(os.environ) | {"PYTHONUNBUFFERED": "1", "RAY_USAGE_STATS_ENABLED": "0"}
