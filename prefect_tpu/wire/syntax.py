"""Source code as a tree."""

from __future__ import annotations

import ast
from typing import Literal

TRIES = 3


def parse(text: str, mode: Literal["exec", "eval"] = "exec") -> ast.AST:
    """As `ast.parse`, which Python before 3.11.8 and 3.12.2 now and then fails if it is called in two places at once.

    Raises:
        SyntaxError, ValueError: as `ast.parse`.
    """
    for _ in range(TRIES - 1):
        try:
            return ast.parse(text, mode=mode)
        except SystemError:  # of the depth that it counts for all of its calls together
            continue
    return ast.parse(text, mode=mode)
