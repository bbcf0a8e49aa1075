"""Every private name of cloudpickle that is used; pyproject.toml bounds the release for it."""

from __future__ import annotations

import ast
import dis
import inspect
import pickle
import types
import typing
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from cloudpickle import cloudpickle as _internals

from prefect_tpu.wire import syntax

_LOADS_IN_CLASS_BODIES = frozenset({"LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS"})
_names_of_code: weakref.WeakKeyDictionary[types.CodeType, dict[str, None]] = weakref.WeakKeyDictionary()

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


def id_of_class(cls: type) -> str:
    """cloudpickle's id of a class; a new one for a class that has not travelled yet."""
    found: str = _internals._get_or_create_tracker_id(cls)
    return found


def known_class(tracker_id: str, made: type) -> type:
    """The class of this process that has the id, `made` if there is none yet."""
    found: type = _internals._lookup_class_or_track(tracker_id, made)
    return found


def goes_by_name(obj: Any, name: str) -> bool:
    """Whether `obj` is found under its module and name, as cloudpickle asks for functions and classes."""
    return _internals._lookup_module_and_qualname(obj, name=name) is not None


def is_dynamic(cls: type) -> bool:
    """Whether a class is not found under its module and name, so that cloudpickle sends it by value."""
    of_python = cls in _internals._BUILTIN_TYPE_NAMES or cls in (type(None), type(Ellipsis), type(NotImplemented))
    return not of_python and not goes_by_name(cls, cls.__qualname__)


def class_state(cls: type) -> dict[str, Any]:
    """The attributes of a class that travel."""
    attributes: dict[str, Any] = _internals._class_getstate(cls)[0]
    return attributes


def set_class_state(cls: type, attributes: dict[str, Any]) -> None:
    """Give a class that was made empty its attributes."""
    _internals._class_setstate(cls, (attributes, {}))


def class_skeleton(cls: type, also: dict[str, Any]) -> tuple[Callable[..., type], tuple[Any, ...]]:
    """What makes an empty class like `cls`, but for the attributes `also`."""
    kind, name, bases, attributes, *more = _internals._class_getnewargs(cls)
    return _internals._make_skeleton_class, (kind, name, bases, attributes | also, *more)


def function_skeleton(function: types.FunctionType, namespace: Any) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """What makes a function with the code of `function`, in `namespace`, without its state."""
    cells = function.__closure__
    closure = None if cells is None else tuple(_internals._make_empty_cell() for _ in cells)
    return _internals._make_function, (function.__code__, namespace, None, None, closure)


def function_state(function: types.FunctionType, *, with_globals: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """Its attributes; and defaults, closure, names, and the global variables that it uses."""
    attributes, slots = _internals._function_getstate(function)
    variables = function.__globals__
    names = global_names(function.__code__) if with_globals else ()
    slots["__globals__"] = {name: variables[name] for name in names if name in variables}
    return attributes, slots


def set_function_state(function: types.FunctionType, state: tuple[dict[str, Any], dict[str, Any]]) -> None:
    """Give a function that was made by `function_skeleton` its state."""
    _internals._function_setstate(function, state)


def reduce_code(code: types.CodeType) -> Any:
    """A code object. cloudpickle 3.1.3 takes the file's name out, and with it the source lines in tracebacks."""
    make, arguments = _internals._code_reduce(code)
    return make, tuple(code.co_filename if one == NO_FILE else one for one in arguments)


def reduce_typevar(variable: typing.TypeVar) -> Any:
    """A type variable, by value."""
    return _internals._make_typevar, _internals._decompose_typevar(variable)


def global_names(code: types.CodeType) -> Iterable[str]:
    """Names of the global variables that travel with a function. cloudpickle overlooks those in bodies of classes."""
    found = _names_of_code.get(code)
    if found is None:
        found = _names_of_code[code] = dict.fromkeys((*_internals._extract_code_globals(code), *_in_class_bodies(code)))
    return found


def _in_class_bodies(code: types.CodeType) -> Iterator[str]:
    for inner in code.co_consts:
        if isinstance(inner, types.CodeType):
            if not inner.co_flags & inspect.CO_OPTIMIZED:
                steps = list(dis.get_instructions(inner))
                yield from (one.argval for one in steps if one.opname in _LOADS_IN_CLASS_BODIES)
                for text, where, _, store in zip(steps, steps[1:], steps[2:], steps[3:], strict=False):
                    if where.argval == "__annotations__" and store.opname == "STORE_SUBSCR":
                        yield from _in_annotation(text.argval)
            yield from _in_class_bodies(inner)


def _in_annotation(text: Any) -> Iterator[str]:
    """Names in an annotation that is kept as its text, which pydantic evaluates when it makes the class."""
    try:
        parsed = ast.walk(syntax.parse(text, "eval")) if isinstance(text, str) else ()
    except SyntaxError:
        return
    for one in parsed:
        if isinstance(one, ast.Name):
            yield one.id
        elif isinstance(one, ast.Constant):
            yield from _in_annotation(one.value)


def find_class(tracker_id: str, name: str) -> type:
    """The class of this process that another one has by value.

    Raises:
        UnpicklingError: it came from a process that is not this one, or is gone from it.
    """
    found = class_of_id(tracker_id)
    if found is None:
        raise pickle.UnpicklingError(f"class {name} came from a process that is not this one, or is gone from it")
    return found
