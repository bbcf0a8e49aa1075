"""Settings of prefect_tpu: `PREFECT_INTEGRATIONS_TPU_*`, from the environment or Prefect's own files."""

from __future__ import annotations

import functools
import json
import os
from typing import Annotated

from prefect.settings import get_current_settings
from prefect.settings.base import PrefectBaseSettings, build_settings_config
from pydantic import AfterValidator, Field, ValidationError

from prefect_tpu import setting_places
from prefect_tpu.core.errors import ConfigurationError
from prefect_tpu.core.ray_address import check_address
from prefect_tpu.core.secrets import LEFT_OUT, NAMES_ONLY, shown, without_credentials
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
    ray_address: Annotated[str, AfterValidator(check_address)] | None = Field(
        default=None,
        description='Ray cluster for runners without a pool: "auto" or host:port; unset: simulated slices.',
    )


def describe_settings() -> list[dict[str, str]]:
    """Every setting: "name" of its variable, "value", "source" ("environment", "file" or "default"), "meaning"."""
    settings, found = current_settings(), []
    own = [name for name in TpuSettings.model_fields if name in TpuSettings.__annotations__]
    for name in [*own, *(one for one in TpuSettings.model_fields if one not in own)]:
        field = TpuSettings.model_fields[name]
        variable = f"{_prefix()}{name.upper()}"
        source = "default"
        if name in settings.model_fields_set:
            source = "environment" if variable in os.environ else "file"
        value = getattr(settings, name)
        if isinstance(value, dict):
            text = shown(value, name)
        else:
            text = "" if value is None else json.dumps(value) if isinstance(value, list | bool) else str(value)
            text = without_credentials(text)
        found.append({"name": variable, "value": text, "source": source, "meaning": field.description or ""})
    return found


def unknown_settings() -> list[tuple[str, str, str]]:
    """What stands where settings do and is none: as it is written, its place, and what to do."""
    return list(_unknown(_variables(), current_directory()))


def where_set(name: str) -> str:
    """Where a setting that is set has its value from, in words."""
    return setting_places.where_set(TpuSettings, name)


def current_settings() -> TpuSettings:
    """The settings as they are now; never read at import, and again whenever a variable of Prefect has changed.

    Raises:
        ConfigurationError: one of them cannot be; by the name of its variable, with what is allowed. Or the current
            directory, which may have a file with some, is gone.
    """
    return _read(_variables(), current_directory())


def _variables() -> tuple[tuple[str, str], ...]:
    return tuple(sorted(item for item in os.environ.items() if item[0].startswith("PREFECT_")))


@functools.lru_cache(maxsize=8)
def _unknown(
    variables: tuple[tuple[str, str], ...],  # noqa: ARG001 - what it depends on
    directory: str,  # noqa: ARG001
) -> tuple[tuple[str, str, str], ...]:
    return tuple(setting_places.unknown(TpuSettings, TpuSettings.model_fields))


@functools.lru_cache(maxsize=8)
def _read(variables: tuple[tuple[str, str], ...], directory: str) -> TpuSettings:  # noqa: ARG001 - what they depend on
    try:
        return TpuSettings()
    except ValidationError as error:
        wrong: dict[str, list[str]] = {}
        for one in error.errors():
            name = f"{_prefix()}{str(one['loc'][0]).upper()}"
            wrong.setdefault(_as_set(name), []).append(in_words(one["msg"]))
        raise ConfigurationError("; ".join(f"{one}: {', or '.join(says)}" for one, says in wrong.items())) from None
    except ValueError as error:  # JSON that is none
        raise ConfigurationError(_not_json(error)) from None


def _as_set(variable: str) -> str:
    """A variable as it stands in the environment, as far as it may be shown; only its name if it is not there."""
    given, name = os.environ.get(variable), variable.removeprefix(_prefix()).lower()
    if given is None:
        return variable
    if name not in NAMES_ONLY:
        return f"{variable}={without_credentials(repr(given))}"
    try:
        return f"{variable}={shown(json.loads(given), name)}"
    except ValueError:
        return f"{variable}={LEFT_OUT}"


def _prefix() -> str:
    return str(TpuSettings.model_config.get("env_prefix", "")).upper()


def _not_json(error: ValueError) -> str:
    for name, field in TpuSettings.model_fields.items():
        variable = f"{_prefix()}{name.upper()}"
        if variable in os.environ and f'"{name}"' in str(error):
            like = json.dumps(field.default)
            return f"{_as_set(variable)}: must be JSON, such as its default, {like}: {error.__cause__}"
    return f"settings of prefect_tpu: {error}; {error.__cause__}"


TELEMETRY = "PREFECT_SERVER_ANALYTICS_ENABLED"
"""Prefect's own variable: whether a server sends telemetry."""


def embedded_server_without_telemetry() -> None:
    """The server that Prefect starts by itself, for a program that is given none, sends no telemetry.

    On an empty database its telemetry writes while the server's other services do. SQLite refuses one of them at once,
    whatever the timeouts are: an error of 90 lines before a user's first run. Without a network it is another error.
    Who has an API, or has said what they want, keeps it.
    """
    settings = get_current_settings()
    if settings.api.url is None and "analytics_enabled" not in settings.server.model_fields_set:
        os.environ[TELEMETRY] = "false"


embedded_server_without_telemetry()  # before the first flow: Prefect starts that server then
