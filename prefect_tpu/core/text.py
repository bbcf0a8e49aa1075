"""Text that is too long, cut."""

from __future__ import annotations

MAX_LINE_CHARS = 20_000


def cut(text: str, left_out: int = 0) -> str:
    """`text`, shortened to `MAX_LINE_CHARS`, with a mark that counts what is missing (`left_out` before)."""
    if len(text) <= MAX_LINE_CHARS and not left_out:
        return text
    return f"{text[:MAX_LINE_CHARS]}... [{max(0, len(text) - MAX_LINE_CHARS) + left_out} more characters]"
