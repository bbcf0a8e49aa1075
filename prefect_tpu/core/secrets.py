"""What may be shown of values that people give: names of variables without their values, URLs without credentials."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

NAMES_ONLY = frozenset({"env", "secret_env", "env_vars"})
"""Mappings of variables: only their names are shown."""
HIDDEN = frozenset({"startup_script"})
"""Nothing of them is shown."""
LEFT_OUT = "..."

_USER = re.compile(
    r"(?<=://)(?:"
    r"[^\s/?#'\"]*@"
    r"|[^\s/@'\"]*:(?!\d+(?:[/?#\s'\"]|$))[^\s'\"]*?@"  # a password with a slash, which no library takes
    r")"
)
_QUERY = re.compile(r"(://[^\s?#'\"]*\?)[^\s#'\"]+")
_SIGNED = re.compile(r"[?&][\w.-]*(?:token|sig|signature|secret|password|key)=[^&\s]", re.IGNORECASE)
_PRIVATE_KEY = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----")
_EVERYBODY = "git@"
"""Whom `ssh://git@github.com/...` names."""


def shown(value: Any, name: str = "") -> str:
    """`repr(value)` as far as it may be in an error, a log or a representation.

    Args:
        value: what was given.
        name: of the option that it was given for.
    """
    if name in NAMES_ONLY:
        return _names(value)
    if name in HIDDEN and value is not None:
        return LEFT_OUT
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key!r}: {shown(one, str(key))}" for key, one in value.items()) + "}"
    if type(value) is list:
        return "[" + ", ".join(shown(one) for one in value) + "]"
    if type(value) is tuple:
        return "(" + ", ".join(shown(one) for one in value) + (",)" if len(value) == 1 else ")")
    return without_credentials(repr(value))


def variable(name: str) -> str:
    """The name of a variable for an error; of "NAME=VALUE" the first half."""
    first, found, _ = name.partition("=")
    return repr(f"{first}={LEFT_OUT}" if found else name)


def without_credentials(text: str) -> str:
    """The same text with `...` for who logs in, and for what is asked, in each URL."""
    hidden = _USER.sub(lambda found: found[0] if found[0] == _EVERYBODY else f"{LEFT_OUT}@", text)
    return _QUERY.sub(rf"\g<1>{LEFT_OUT}", hidden)


def has_credentials(text: str) -> bool:
    """Whether a text has a URL that lets whoever has it in, or a private key."""
    if any(found != _EVERYBODY for found in _USER.findall(text)) or _PRIVATE_KEY.search(text):
        return True
    return "://" in text and bool(_SIGNED.search(text))


class Shown:
    """Stands for a value in a representation."""

    def __init__(self, value: Any, name: str = "") -> None:
        self._text = shown(value, name)

    def __repr__(self) -> str:
        return self._text


def _names(given: Any) -> str:
    if not isinstance(given, Mapping):
        return LEFT_OUT
    names = [variable(one) if isinstance(one, str) else LEFT_OUT for one in given]
    return "{" + ", ".join(f"{one}: {LEFT_OUT}" for one in names) + "}"
