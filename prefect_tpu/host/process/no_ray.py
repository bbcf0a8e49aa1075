"""In host processes, and in what they start, no Ray is started or joined by accident.

Ray calls what RAY_RUNTIME_ENV_HOOK names in every `ray.init()`, also in those that it does by itself for `ray.put`,
`ray.get` or `.remote()`, before it starts anything.
"""

from __future__ import annotations

from typing import Any, NoReturn

from prefect_tpu.core.errors import ConfigurationError


def refuse(_: Any) -> NoReturn:
    """Instead of a connection to Ray.

    Raises:
        ConfigurationError: always.
    """
    raise ConfigurationError(
        "the function runs in a host process of a gang: it is no Ray task, and has no connection to Ray. Take ray.put, "
        "ray.get and .remote() out: arguments arrive as they are (an ObjectRef as its value), and to hand something "
        "over, return the value. A Ray of the function's own, which would be started on every host, needs "
        'os.environ.pop("RAY_RUNTIME_ENV_HOOK") before ray.init()'
    )
