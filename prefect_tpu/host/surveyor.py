"""An actor that looks at the host it is on."""

from __future__ import annotations

import importlib.metadata
import platform
import time
from typing import Any

from prefect_tpu.core.messages import DeviceCheck
from prefect_tpu.host import devices

PACKAGES = ("prefect-tpu", "ray", "jax")


class Surveyor:
    """An actor without chips, one on each host."""

    def look(self, check: DeviceCheck) -> dict[str, Any]:
        """What can be seen there."""
        versions = {"python": platform.python_version()}
        for name in PACKAGES:
            try:
                versions[name] = importlib.metadata.version(name)
            except importlib.metadata.PackageNotFoundError:
                versions[name] = ""
        return {"devices": devices.problem(check), "versions": versions}

    def clock(self) -> float:
        """Seconds of Unix time there."""
        return time.time()
