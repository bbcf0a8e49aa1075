"""Which variables modules look up while they are imported: for these a value that is set later comes too late."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

ALL = "*"
"""Stands for every variable: somebody has looked through all of them."""


@contextmanager
def watch() -> Iterator[set[str]]:
    """Names that are looked up in `os.environ` meanwhile. What a library reads below Python is not seen."""
    names: set[str] = set()
    plain: Any = type(os.environ)

    class Watched(plain):  # type: ignore[misc]
        def __getitem__(self, key: str) -> Any:
            names.add(str(key))
            return super().__getitem__(key)

        def __iter__(self) -> Iterator[str]:
            names.add(ALL)
            return iter(super().__iter__())

    environ: Any = os.environ
    environ.__class__ = Watched
    try:
        yield names
    finally:
        environ.__class__ = plain
