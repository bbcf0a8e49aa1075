"""The options of a gang from everybody who says something of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prefect_tpu.core.errors import ConfigurationError
from prefect_tpu.options.gang import GangOptions
from prefect_tpu.options.given import PoolOptions
from prefect_tpu.options.variables import in_both


def merge(
    given: Mapping[str, Any], kind: Mapping[str, Any], settings: GangOptions, pool: PoolOptions | None
) -> GangOptions:
    """Who comes first: arguments, the fleet's own kind of slices, settings that are set, the pool, defaults.

    Args:
        given: arguments of the runner, checked; None stands for "not given".
        kind: what a fleet that was given as such says of its slices.
        settings: as they are now.
        pool: the block, if there is one.

    Raises:
        ConfigurationError: a variable is in env and in secret_env, each from another place.
    """
    names = GangOptions.model_fields
    said = {name: getattr(settings, name) for name in settings.model_fields_set if name in names}
    saved = {} if pool is None else {name: getattr(pool, name) for name in names}
    merged = {name: value for one in (saved, said, kind, given) for name, value in one.items() if value is not None}
    options = GangOptions.model_construct(**merged)
    wrong = in_both(options.env, options.secret_env)
    if wrong:
        raise ConfigurationError(f"{wrong}. Each comes whole from the first of runner, setting and pool that has it")
    return options
