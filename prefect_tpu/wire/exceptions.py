"""Exceptions whose class has an `__init__` of its own: made again without calling it."""

from __future__ import annotations

import builtins
import types
from typing import Any

_PLAIN_REDUCE = frozenset(
    one.__reduce__ for one in vars(builtins).values() if isinstance(one, type) and issubclass(one, BaseException)
)
_WRITTEN = (types.FunctionType, staticmethod)
"""In Python: what the interpreter brings is neither."""


def reduce_exception(error: BaseException) -> Any:
    """How it travels; None if Python's own way does, or the class has a way of its own.

    Python would call the class with `args`, which are what the class has told its base, not what it was called with.
    """
    cls = type(error)
    if cls.__reduce_ex__ is not object.__reduce_ex__ or cls.__reduce__ not in _PLAIN_REDUCE:
        return None
    if not any(isinstance(vars(one).get(name), _WRITTEN) for one in cls.__mro__ for name in ("__init__", "__new__")):
        return None
    reduced: Any = error.__reduce__()
    _, args, *state = reduced
    return _rebuild, (cls, args), *state


class Bare:
    """An exception with other arguments and attributes than it has: those that travel."""

    def __init__(self, error: BaseException, args: tuple[Any, ...], attributes: dict[str, Any]) -> None:
        self._error = error
        self._args = args
        self._attributes = attributes

    def __reduce__(self) -> Any:
        return _rebuild, (type(self._error), self._args), self._attributes or None


def _rebuild(cls: type[BaseException], args: tuple[Any, ...]) -> BaseException:
    base: Any = next(one for one in cls.__mro__ if one.__module__ == "builtins")
    error: BaseException = base.__new__(cls, *args)
    base.__init__(error, *args)
    return error
