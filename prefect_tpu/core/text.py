"""Text from elsewhere: cut, cleaned of what no store takes, and of what no page or terminal is to act on."""

from __future__ import annotations

import unicodedata
from dataclasses import fields
from typing import Any, cast

MAX_LINE_CHARS = 20_000
"""Of a line, a message, a cause."""
MAX_TEXT_CHARS = 100_000
"""Of any text that a host says: a traceback is the longest."""
LAYOUT = "\n\t"
"""Of what has no shape of its own, all that a terminal or a page may act on."""


def clean(text: str) -> str:
    r"""`text` as every store takes it: a lone surrogate is spelled out (\udcff), and so is NUL (\x00).

    JSON, and with it Prefect's API, has no place for the first, PostgreSQL none for the second. Names of files
    that are not UTF-8 have them. Everything else stays as it is.
    """
    if "\0" in text:
        text = text.replace("\0", r"\x00")
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


def clean_all(value: Any) -> Any:
    """Every text in lists, tuples and dicts, keys among them, cleaned; the value itself if there is nothing to do."""
    if isinstance(value, str):
        return clean(value)
    if type(value) in (list, tuple):
        return type(value)(clean_all(one) for one in value)
    if type(value) is dict:
        return {clean_all(key): clean_all(one) for key, one in value.items()}
    return value


def cut(text: str, left_out: int = 0, *, limit: int = MAX_LINE_CHARS) -> str:
    """`text`, clean, shortened to `limit`, with a mark that counts what is missing (`left_out` before)."""
    if len(text) <= limit and not left_out:
        return clean(text)
    return f"{clean(text[:limit])}... [{max(0, len(text) - limit) + left_out} more characters]"


def visible(text: str) -> str:
    r"""`text` with everything spelled out that has no shape: control characters, ESC (\x1b), U+200B, U+202E.

    A terminal would obey them, and a person would not see them. Ends of lines and tabs stay.
    """
    if text.isprintable():
        return text
    return "".join(
        one.encode("unicode_escape").decode()
        if unicodedata.category(one).startswith("C") and one not in LAYOUT
        else one
        for one in text
    )


class CleanText:
    """For frozen dataclasses that are sent or kept: whatever they are made of, their texts are clean and bounded."""

    __slots__ = ()

    def __post_init__(self) -> None:
        for one in fields(cast("Any", self)):
            value = getattr(self, one.name)
            if value and type(value) in (str, tuple, dict):
                object.__setattr__(self, one.name, _bounded(value))


def _bounded(value: Any) -> Any:
    if isinstance(value, str):
        return cut(value, limit=MAX_TEXT_CHARS)
    if type(value) is tuple:
        return tuple(_bounded(one) for one in value)
    if type(value) is dict:
        return {_bounded(key): one for key, one in value.items()}
    return value
