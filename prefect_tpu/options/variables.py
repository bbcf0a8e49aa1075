"""The rule of variables for host processes: those of `env`, and those of `secret_env`, whose values nothing shows."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import SecretStr

from prefect_tpu.core.environment import check_values
from prefect_tpu.core.errors import ConfigurationError
from prefect_tpu.core.secrets import variable

MAX_VARIABLE_BYTES = 128 * 1024
"""Of NAME=VALUE with the byte that ends it: Linux's own limit for one (MAX_ARG_STRLEN, execve(2))."""
MAX_SECRETS_BYTES = 64 * 1024
"""Of all secret variables together: they go with the call, never through an object store, which writes to disk."""
REFERENCE = re.compile(r"secret/([a-z0-9]+(?:-[a-z0-9]+)*)")
"""In place of a value: the Prefect Secret block that has it, as `prefect block inspect` takes it."""
READ_AT_START = ("JAX_", "XLA_", "LIBTPU_", "TPU_", "MEGASCALE_", "EXECUTOR_CALL_", "PYTHON", "LD_", "PREFECT_", "RAY_")
"""Beginnings of names that are read before secrets are set, or say what the gang is."""

_OWN = "_PREFECT_TPU_"
_TEMPLATE = re.compile(r"\{\{\s*prefect\.(blocks|variables)\.")


class Withheld(SecretStr):
    """What a pickle has in place of a secret value."""

    def __init__(self, *_: Any) -> None:
        super().__init__("")

    def get_secret_value(self) -> str:
        raise ConfigurationError(
            "secret_env: its values do not travel in pickles, which may be stored. Name the Secret block that has the "
            'value, such as secret_env={"HF_TOKEN": "secret/hf-token"}'
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Withheld)

    def __hash__(self) -> int:
        return hash(Withheld)

    def __len__(self) -> int:
        return 0


def are_texts(given: Any) -> Any:
    """A mapping as a dict; says which of its values is none, as values are not shown."""
    if not isinstance(given, Mapping):
        return given
    for name, value in given.items():
        if isinstance(name, str) and not isinstance(value, str | SecretStr):
            raise ValueError(  # noqa: TRY004 - what pydantic takes for wrong input
                f"must be a mapping of strings to strings, and the value of {variable(name)} is of type "
                f"{type(value).__name__}"
            )
    return dict(given)


def check_variables(given: dict[str, str]) -> dict[str, str]:
    """Every variable can be one of a process; raises ValueError."""
    for name, value in given.items():
        _check_name(name)
        _check_value(name, value)
        if _TEMPLATE.search(value):
            raise ValueError(
                f"{variable(name)}: Prefect fills '{{{{ prefect... }}}}' in only in deployments; a secret is "
                f'secret_env={{{variable(name)}: "secret/NAME"}}'
            )
    check_values(given)
    return given


def check_secrets(given: dict[str, SecretStr]) -> dict[str, SecretStr]:
    """Every secret variable can be one, and names that look like a block's are one's; raises ValueError."""
    for name, value in given.items():
        _check_name(name)
        if name.startswith(READ_AT_START):
            raise ValueError(
                f"{variable(name)} is read before secret variables are set, as modules are imported: put it into env. "
                f"Not in secret_env: {', '.join(f'{one}*' for one in READ_AT_START)}"
            )
        if not isinstance(value, Withheld):
            _check_secret(name, value.get_secret_value())
    check_size(given)
    return given


def _check_secret(name: str, value: str) -> None:
    if value.lower().lstrip().startswith("secret/") and not REFERENCE.fullmatch(value):
        raise ValueError(
            f"{variable(name)}: what begins with 'secret/' is the name of a Secret block, such as 'secret/hf-token', "
            "in lower case letters, digits and dashes"
        )
    if _TEMPLATE.search(value):
        raise ValueError(f"{variable(name)}: a Secret block is named 'secret/NAME' here, not '{{{{ prefect... }}}}'")
    check_secret_value(name, value)


def check_secret_value(name: str, value: str) -> None:
    """It can be the value of a variable; raises ValueError."""
    if not value:
        raise ValueError(f"{variable(name)} is empty")
    _check_value(name, value, most_bytes=MAX_SECRETS_BYTES)


def check_size(given: Mapping[str, SecretStr]) -> None:
    """Of all values together; raises ValueError."""
    size = sum(
        len(os.fsencode(name)) + len(os.fsencode(one.get_secret_value()))
        for name, one in given.items()
        if not isinstance(one, Withheld)
    )
    if size > MAX_SECRETS_BYTES:
        raise ValueError(f"has {size} bytes, and {MAX_SECRETS_BYTES} are allowed: bring what is big in a file")


def _check_name(name: str) -> None:
    if not name or "=" in name or not name.isprintable() or _bytes(name) is None:
        raise ValueError(
            f"{variable(name)} is no name of a variable: at least one character, no '=', no control characters"
        )
    if name == "PYTHONHOME":
        raise ValueError("'PYTHONHOME' cannot be set: host processes run the Python of the host's Ray")
    if name.startswith(_OWN):
        raise ValueError(f"{variable(name)} is prefect_tpu's own: a name must not begin with {_OWN!r}")


def _check_value(name: str, value: str, *, most_bytes: int = MAX_VARIABLE_BYTES) -> None:
    encoded = _bytes(value)
    if "\0" in value or encoded is None:
        raise ValueError(f"the value of {variable(name)} cannot be a variable's: no NUL, and text that can be encoded")
    size = len(os.fsencode(name)) + len(encoded) + 2
    if size > most_bytes:
        raise ValueError(
            f"{variable(name)} has {size} bytes, and {most_bytes} are allowed: bring what is big in a file, or as an "
            "argument of the task"
        )


def _bytes(text: str) -> bytes | None:
    try:
        return os.fsencode(text)
    except UnicodeEncodeError:
        return None


def in_both(env: Iterable[str], secret_env: Iterable[str]) -> str:
    """What is wrong if a variable is in both; "" if none is."""
    both = sorted(set(env) & set(secret_env))
    if not both:
        return ""
    return f"{variable(both[0])} is in env and in secret_env: take it out of one of them"


def withhold(given: Mapping[str, SecretStr]) -> dict[str, SecretStr]:
    """For a pickle: names of blocks stay, values do not."""
    return {name: one if reference_of(one) else Withheld() for name, one in given.items()}


def reference_of(value: SecretStr) -> str:
    """The name of the Secret block that stands for the value; "" if it is the value."""
    if isinstance(value, Withheld):
        return ""
    found = REFERENCE.fullmatch(value.get_secret_value())
    return found[1] if found else ""
