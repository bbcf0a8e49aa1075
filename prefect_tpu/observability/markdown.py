"""Names and messages in markdown: they are text, whatever they contain."""

from __future__ import annotations

import re

from prefect_tpu.core.text import visible

MAX_CHARS = 200
MAX_NAME_CHARS = 40
_ESCAPED = {one: f"\\{one}" for one in "\\|`*_[]#$~@"} | {"<": "&lt;", ">": "&gt;", "&": "&amp;"}
_LINK = re.compile(r"(?i)(www)(\.)|(https?|ftp)(:)")
"""What begins a link by itself, without brackets."""
_LIST = re.compile(r"^(\d*)([-+.)])")
"""What would begin a list where a text begins a line."""


def plain(value: str, limit: int = MAX_CHARS) -> str:
    """On one line, cut, all of it visible, and with nothing in it that markdown or HTML would take for its own."""
    line = visible(" ".join(value.split()))
    short = line if len(line) <= limit else f"{line[: limit - 1]}…"
    escaped = "".join(_ESCAPED.get(character, character) for character in short)
    escaped = _LINK.sub(lambda found: "\\".join(part for part in found.groups() if part), escaped)
    return _LIST.sub(r"\1\\\2", escaped)
