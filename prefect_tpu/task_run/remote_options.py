"""What prefect_ray's `remote_options` around a call asks for on each host."""

from __future__ import annotations

import sys
from typing import Any

from prefect_tpu.core.errors import ConfigurationError


def host_resources() -> tuple[tuple[str, float], ...]:
    """What `prefect_ray.context.remote_options(...)` around the call asks for on each host.

    Raises:
        ConfigurationError: something that a gang's hosts cannot be given that way.
    """
    module = sys.modules.get("prefect_ray.context")  # whoever has not imported it, has not used it
    if module is None:
        return ()
    options: dict[str, Any] = dict(module.RemoteOptionsContext.get().current_remote_options)
    found = {str(name): amount for name, amount in dict(options.pop("resources", None) or {}).items()}
    for name, resource in (("num_cpus", "CPU"), ("memory", "memory")):
        if options.get(name) is not None:
            found[resource] = options[name]
        options.pop(name, None)
    refused = [name for name, amount in found.items() if name.startswith("TPU") or not _is_amount(amount)]
    wrong = sorted([*options, *refused])
    if wrong:
        raise ConfigurationError(
            f"remote_options({wrong[0]}=...) around a gang: its hosts can be given num_cpus, memory (bytes) and "
            "resources other than TPU, as numbers of at least 0; chips come with the slices, variables with `env`"
        )
    return tuple(sorted((name, float(amount)) for name, amount in found.items() if amount))


def _is_amount(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value >= 0
