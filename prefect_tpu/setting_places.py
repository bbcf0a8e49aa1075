"""Where settings come from, and what stands there that is none: Prefect takes no notice of a misspelt one."""

from __future__ import annotations

import difflib
import os
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

from prefect.settings.base import PrefectBaseSettings
from prefect.settings.sources import (
    FilteredDotEnvSettingsSource,
    PrefectTomlConfigSettingsSource,
    ProfileSettingsTomlLoader,
    PyprojectTomlConfigSettingsSource,
)

Settings = type[PrefectBaseSettings]


@dataclass(frozen=True, slots=True)
class Place:
    """One place, with the settings that stand there.

    Attributes:
        words: "in the environment".
        written: by the setting's name, how it is written there.
    """

    words: str
    written: dict[str, str]


def places(settings: Settings) -> Iterator[Place]:
    """All of them; of those that have a setting the first one counts."""
    prefix = str(settings.model_config.get("env_prefix", "")).upper()

    def variables(names: Iterable[str]) -> dict[str, str]:
        return {name[len(prefix) :].lower(): name for name in names if name.upper().startswith(prefix)}

    def keys(names: Iterable[str]) -> dict[str, str]:
        return {name: name for name in names}

    dotenv = FilteredDotEnvSettingsSource(settings, env_blacklist=[])
    toml, pyproject = PrefectTomlConfigSettingsSource(settings), PyprojectTomlConfigSettingsSource(settings)
    table = ".".join(toml.toml_table_header)
    yield Place("in the environment", variables(os.environ))
    yield Place("in .env", variables(name.upper() for name in dotenv.env_vars))  # it has them in small letters
    yield Place(f"in prefect.toml, [{table}]", keys(toml.toml_data))
    yield Place(f"in pyproject.toml, [tool.prefect.{table}]", keys(pyproject.toml_data))
    yield Place("in Prefect's profile", variables(ProfileSettingsTomlLoader(settings).profile_settings))


def where_set(settings: Settings, name: str) -> str:
    """The place that a setting has its value from, in words; how it is written there first."""
    for place in places(settings):
        if name in place.written:
            return f"{place.written[name]} {place.words}"
    return f"the setting {name}"


def unknown(settings: Settings, known: Collection[str]) -> Iterator[tuple[str, str, str]]:
    """What stands where settings do and is none: as it is written, its place, and what to do.

    Args:
        settings: the class that reads them.
        known: names of all settings.
    """
    for place in places(settings):
        for name, written in sorted(place.written.items()):
            if name not in known:
                near = difflib.get_close_matches(name, known, 1)
                beginning, key = written[: -len(name)], near[0] if near else ""
                hint = f"is {beginning}{key.upper() if beginning else key} meant? " if near else ""
                yield written, place.words, f"{hint}`prefect-tpu settings` has all of them"
