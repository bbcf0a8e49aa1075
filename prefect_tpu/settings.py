"""Settings of prefect_tpu: `PREFECT_INTEGRATIONS_TPU_*`, from the environment or Prefect's own files."""

from __future__ import annotations

import functools
import json
import os

from prefect.settings.base import PrefectBaseSettings, build_settings_config
from pydantic import Field, ValidationError

from prefect_tpu.core.errors import ConfigurationError
from prefect_tpu.linux.places import current_directory
from prefect_tpu.options.check import in_words
from prefect_tpu.options.gang import GangOptions
from prefect_tpu.options.tuning import Tuning


class TpuSettings(Tuning, GangOptions, PrefectBaseSettings):
    """Defaults for every gang: `GangOptions` and `Tuning` from the environment, and where slices come from."""

    model_config = build_settings_config(("integrations", "tpu"))

    pool: str | None = Field(
        default=None, description='Saved pool for runners without one, such as "tpu-slice-pool/v6e-spot".'
    )
    ray_address: str | None = Field(
        default=None,
        description='Ray cluster for runners without a pool: "auto" or host:port; unset: simulated slices.',
    )


def describe_settings() -> list[dict[str, str]]:
    """Every setting: "name" of its variable, "value", "source" ("environment", "file" or "default"), "meaning"."""
    settings, found = current_settings(), []
    prefix = str(settings.model_config.get("env_prefix", "")).upper()
    own = [name for name in TpuSettings.model_fields if name in TpuSettings.__annotations__]
    for name in [*own, *(one for one in TpuSettings.model_fields if one not in own)]:
        field = TpuSettings.model_fields[name]
        variable = f"{prefix}{name.upper()}"
        source = "default"
        if name in settings.model_fields_set:
            source = "environment" if variable in os.environ else "file"
        value = getattr(settings, name)
        shown = "" if value is None else json.dumps(value) if isinstance(value, list | dict | bool) else str(value)
        found.append({"name": variable, "value": shown, "source": source, "meaning": field.description or ""})
    return found


def current_settings() -> TpuSettings:
    """The settings as they are now; never read at import, and again whenever a variable of Prefect has changed.

    Raises:
        ConfigurationError: one of them cannot be; by the name of its variable, with what is allowed. Or the current
            directory, which may have a file with some, is gone.
    """
    variables = tuple(sorted(item for item in os.environ.items() if item[0].startswith("PREFECT_")))
    return _read(variables, current_directory())


@functools.lru_cache(maxsize=8)
def _read(variables: tuple[tuple[str, str], ...], directory: str) -> TpuSettings:  # noqa: ARG001 - what they depend on
    try:
        return TpuSettings()
    except ValidationError as error:
        prefix = str(TpuSettings.model_config.get("env_prefix", "")).upper()
        wrong: dict[str, list[str]] = {}
        for one in error.errors():
            name = f"{prefix}{str(one['loc'][0]).upper()}"
            given = os.environ.get(name)
            wrong.setdefault(name if given is None else f"{name}={given!r}", []).append(in_words(one["msg"]))
        raise ConfigurationError("; ".join(f"{one}: {', or '.join(says)}" for one, says in wrong.items())) from error
    except ValueError as error:  # JSON that is none
        raise ConfigurationError(_not_json(error)) from error


def _not_json(error: ValueError) -> str:
    prefix = str(TpuSettings.model_config.get("env_prefix", "")).upper()
    for name, field in TpuSettings.model_fields.items():
        given = os.environ.get(f"{prefix}{name.upper()}")
        if given is not None and f'"{name}"' in str(error):
            like = json.dumps(field.default)
            return f"{prefix}{name.upper()}={given!r}: must be JSON, such as its default, {like}: {error.__cause__}"
    return f"settings of prefect_tpu: {error}; {error.__cause__}"
