"""What was given is checked at once: by the same rules, and in the same words, wherever it is given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from prefect_tpu.core.errors import ConfigurationError
from prefect_tpu.core.secrets import shown
from prefect_tpu.options.given import PoolOptions

SHOWN_CHARACTERS = 200
"""Of a value in an error."""


def check_given(given: Mapping[str, Any]) -> dict[str, Any]:
    """What is not None of it, as it is kept. Strictly: True is no number, and "5" neither.

    Args:
        given: arguments of a runner by name.

    Raises:
        ConfigurationError: by name, with its value, what is allowed, and where to set it.
    """
    present = {name: value for name, value in given.items() if value is not None}
    try:
        return PoolOptions.model_validate(present, strict=True).model_dump(exclude_unset=True)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        raise refused(name, present[name], in_words(first["msg"])) from None


def refused(name: str, value: Any, says: str) -> ConfigurationError:
    """For an argument of a runner that cannot be."""
    text = f"{shown(value, name):.{SHOWN_CHARACTERS}}"
    return ConfigurationError(f"TpuMultisliceRunner({name}={text}): {says}; set it where the runner is made")


def in_words(message: str) -> str:
    """What pydantic says of a value, as we say it."""
    return message.removeprefix("Value error, ")
