"""How an address of a Ray cluster is written."""

from __future__ import annotations

import re

_ADDRESS = re.compile(r"[^\s/]+:([0-9]{1,5})")
MAX_PORT = 65_535


def check_address(given: object) -> str:
    """The address as it was given. Whether somebody is there is seen when it is used; ray:// is refused there, too.

    Raises:
        ValueError: it is none; with what is allowed.
    """
    if isinstance(given, str):
        found = _ADDRESS.fullmatch(given)
        if given == "auto" or given.startswith("ray://") or (found and 0 < int(found[1]) <= MAX_PORT):
            return given
    raise ValueError(f"must be 'auto' or 'host:port', such as '10.0.0.2:6379', not {given!r}")
