"""Every private name of cloudpickle that is used; pyproject.toml bounds the release for it."""

from __future__ import annotations

import types
from collections.abc import Iterable
from typing import Any

import cloudpickle
from cloudpickle import cloudpickle as _internals

NO_FILE = "<dynamic-code>"
"""What cloudpickle gives for the file of a function that travels by value."""


def class_ids() -> dict[type, str]:
    """The classes that travelled by value, to or from this process, each with cloudpickle's id for it."""
    with _internals._DYNAMIC_CLASS_TRACKER_LOCK:
        return dict(_internals._DYNAMIC_CLASS_TRACKER_BY_CLASS)


def class_of_id(tracker_id: str) -> type | None:
    """The class of this process that has the id."""
    found: type | None = _internals._DYNAMIC_CLASS_TRACKER_BY_ID.get(tracker_id)
    return found


def reduce_class(cls: type) -> Any:
    """A class, by value."""
    return _internals._dynamic_class_reduce(cls)


def reduce_function(pickler: cloudpickle.Pickler, function: types.FunctionType) -> Any:
    """A function, by value."""
    return pickler._dynamic_function_reduce(function)


def reduce_code(code: types.CodeType) -> Any:
    """A code object. cloudpickle 3.1.3 takes the file's name out, and with it the source lines in tracebacks."""
    make, arguments = _internals._code_reduce(code)
    return make, tuple(code.co_filename if one == NO_FILE else one for one in arguments)


def global_names(code: types.CodeType) -> Iterable[str]:
    """Names of the global variables that travel with a function."""
    names: Iterable[str] = _internals._extract_code_globals(code)
    return names
