"""What a local fleet may be told: commands, their arguments, and what these may be. One rule for both ends."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

MAX_LINE_BYTES = 64 * 1024
"""Of one command; what is longer is refused, and the connection closed."""
MAX_DRAIN_SECONDS = 366 * 86_400.0
MAX_TEXT_CHARS = 256
MAX_PATH_CHARS = 4_096
MAX_SHOWN_CHARS = 200
_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
NAME_WORDS = (
    "up to 63 letters, digits, dashes, dots and underscores, with a letter or digit first and last, as for Ray's labels"
)


class BadRequestError(ValueError):
    """The command is none; the text says what is wrong and what there is. `number`: of the command, if it has one."""

    def __init__(self, says: str, number: int | None = None) -> None:
        super().__init__(says)
        self.number = number


def read(line: bytes) -> dict[str, Any]:
    """A command from a line, checked.

    Raises:
        BadRequestError: it is none.
    """
    try:
        found = json.loads(line, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise BadRequestError(f"bad request: {shown(line)} is no JSON: {shown(str(error))}") from error
    return check(found)


def check(request: object) -> dict[str, Any]:
    """The same, of what has been read already.

    Raises:
        BadRequestError: it is no command.
    """
    if not isinstance(request, dict):
        raise BadRequestError(f"bad request: must be a JSON object, not {shown(request)}")
    number = request.get("id")
    if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < 2**53:
        raise BadRequestError(f"bad request: id must be a whole number that is not negative, not {shown(number)}")
    do = request.get("do")
    if not isinstance(do, str) or do not in COMMANDS:
        raise BadRequestError(f"unknown command {shown(do)}; there are: {', '.join(COMMANDS)}", number)
    arguments, given = COMMANDS[do], request.keys() - {"id", "do"}
    if given - arguments.keys():
        takes = ", ".join(arguments) or "nothing"
        raise BadRequestError(f"bad request: {do} takes {takes}, not {shown(sorted(given - arguments.keys()))}", number)
    for name, (is_right, words) in arguments.items():
        value = request.get(name)
        if not is_right(value):
            raise BadRequestError(f"bad request: {do}: {name} must be {words}, not {shown(value)}", number)
    return request


def shown(value: object) -> str:
    """As it is quoted in a message: short, printable."""
    text = repr(value)
    return text if len(text) <= MAX_SHOWN_CHARS else text[:MAX_SHOWN_CHARS] + "..."


def is_name(given: object) -> bool:
    """Whether a slice may be called so."""
    return isinstance(given, str) and _NAME.fullmatch(given) is not None


def _is_text(given: object) -> bool:
    return isinstance(given, str) and len(given) <= MAX_TEXT_CHARS


def _is_path(given: object) -> bool:
    return isinstance(given, str) and given.startswith("/") and "\0" not in given and len(given) <= MAX_PATH_CHARS


def _is_time(given: object) -> bool:
    return (
        isinstance(given, int | float)
        and not isinstance(given, bool)
        and math.isfinite(given)
        and 0 < given <= MAX_DRAIN_SECONDS
    )


def _no_number(word: str) -> float:
    raise ValueError(f"{word} is no number")


_TARGET = (_is_text, f"the name of a slice, or of one of its hosts (slice-1/0), up to {MAX_TEXT_CHARS} characters")
COMMANDS: Mapping[str, Mapping[str, tuple[Callable[[object], bool], str]]] = {
    "preempt": {"target": _TARGET},
    "drain": {
        "target": _TARGET,
        "seconds": (_is_time, f"a number of seconds that is more than 0 and at most {MAX_DRAIN_SECONDS:.0f}"),
    },
    "restore": {"target": _TARGET},
    "add_slice": {"name": (lambda given: given is None or is_name(given), NAME_WORDS)},
    "remove_slice": {"target": _TARGET},
    "status": {},
    "detach": {"state_file": (_is_path, "an absolute path")},
    "stop": {},
}
"""Each with its arguments: what a value may be, and the words for it."""
