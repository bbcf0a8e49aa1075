"""Finds the object inside a function, an argument or a result that cannot be pickled, and names it."""

from __future__ import annotations

import functools
import inspect
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from prefect_tpu.core.errors import ConfigurationError
from prefect_tpu.wire.cloudpickle_api import global_names
from prefect_tpu.wire.project import is_installed

MAX_DEPTH = 12
MAX_TRIES = 2_000


OPEN_THERE = "open or create such objects inside the function, on the host"


class CannotPickleError(ConfigurationError):
    """Something cannot travel.

    Attributes:
        what: what, and why.
        advice: the way out, "" if there is none of its own.
    """

    def __init__(self, what: str, advice: str = "") -> None:
        super().__init__(f"{what}. {advice[:1].upper()}{advice[1:]}." if advice else what)
        self.what, self.advice = what, advice


class RefusedError(CannotPickleError):
    """An object that our own pickler refuses, with the advice for it."""

    def __init__(self, culprit: object, what: str, advice: str = "") -> None:
        super().__init__(what, advice)
        self.culprit = culprit


def explain(obj: Any, error: Exception, attempt: Callable[[Any], Exception | None]) -> CannotPickleError:
    """The error for `obj`, which could not be pickled.

    Args:
        obj: what could not be pickled.
        error: what pickling it raised.
        attempt: pickles a part of it and returns what that raises, None if nothing.
    """
    path: list[str] = []
    module = _module_of(obj)
    tries = MAX_TRIES
    seen: set[int] = set()
    culprit, reason = obj, error
    whole = ""
    while len(path) < MAX_DEPTH and not (isinstance(reason, RefusedError) and reason.culprit is culprit):
        seen.add(id(culprit))
        for name, part in parts(culprit, top=not path):
            tries -= 1
            if tries < 0 or id(part) in seen:
                continue
            failure = attempt(part)
            if failure is not None:
                path.append(name)
                module = _module_of(culprit) or _module_of(part) or module
                whole = culprit.__name__ if isinstance(culprit, types.ModuleType) else whole
                culprit, reason = part, failure
                break
        else:
            break
    kind = f"{type(culprit).__module__}.{type(culprit).__qualname__}".removeprefix("builtins.")
    where = " -> ".join([*path, kind])
    if isinstance(reason, CannotPickleError):
        detail, advice = reason.what, reason.advice
    else:
        detail, advice = f"{type(reason).__name__}: {reason}", OPEN_THERE if _is_call(obj) else ""
    if whole and _is_call(obj):
        advice += f"; or import what the function uses alone: from {whole} import ..."
    if module is not None and _is_call(obj):
        by_name = f"install module {module!r} on the hosts and send its name: by_name=({module!r},)"
        advice = f"{advice}; or {by_name}" if advice else by_name
    return CannotPickleError(f"cannot be pickled: {where} ({detail})", advice)


def _is_call(obj: Any) -> bool:
    """Function, args and kwargs: on the way to a host."""
    return isinstance(obj, tuple) and len(obj) == 3 and callable(obj[0]) and isinstance(obj[2], dict)


def _module_of(obj: Any) -> str | None:
    """The module, which can be imported, whose function, class or variable it is."""
    found = obj.__name__ if isinstance(obj, types.ModuleType) else getattr(obj, "__module__", None)
    defines = isinstance(obj, types.ModuleType | types.FunctionType | type)
    return found if defines and isinstance(found, str) and found != "__main__" and not _is_installed(found) else None


def _is_installed(name: str) -> bool:
    """Hosts have it in any case, or it is not the user's to install."""
    file = getattr(sys.modules.get(name), "__file__", None)
    return file is None or is_installed(Path(file))


def parts(obj: Any, *, top: bool = False) -> Iterator[tuple[str, Any]]:
    """What `obj` is made of, with the words for each part."""
    if top and _is_call(obj):
        yield from _call_parts(*obj)
    elif isinstance(obj, types.FunctionType):
        yield from _function_parts(obj)
    elif isinstance(obj, types.MethodType):
        yield "the object of the bound method", obj.__self__
        yield "the function of the bound method", obj.__func__
    elif isinstance(obj, functools.partial):
        yield "the function of the partial", obj.func
        for index, value in enumerate(obj.args):
            yield f"argument {index} of the partial", value
        for name, value in obj.keywords.items():
            yield f"argument {name!r} of the partial", value
    elif isinstance(obj, dict):
        for key, value in obj.items():
            yield f"key {key!r:.50}", key
            yield f"[{key!r:.50}]", value
    elif isinstance(obj, list | tuple | set | frozenset):
        for index, value in enumerate(obj):
            yield f"[{index}]", value
    elif isinstance(obj, types.ModuleType):
        for name, value in vars(obj).items():
            if not name.startswith("__"):
                yield f"variable {name!r} of module {obj.__name__!r}", value
    else:
        yield from _attributes(obj)


def _call_parts(fn: Any, args: Any, kwargs: Any) -> Iterator[tuple[str, Any]]:
    for index, value in enumerate(args):
        yield f"parameter {_parameter_name(fn, index)}", value
    for name, value in kwargs.items():
        yield f"parameter {name!r}", value
    yield f"function {getattr(fn, '__qualname__', type(fn).__qualname__)!r}", fn


def _parameter_name(fn: Any, index: int) -> str:
    try:
        names = list(inspect.signature(fn).parameters)
    except (TypeError, ValueError):
        return str(index)
    return repr(names[min(index, len(names) - 1)]) if names else str(index)


def _function_parts(fn: types.FunctionType) -> Iterator[tuple[str, Any]]:
    for name, cell in zip(fn.__code__.co_freevars, fn.__closure__ or (), strict=True):
        try:
            yield f"closure variable {name!r}", cell.cell_contents
        except ValueError:  # not bound yet
            continue
    module = fn.__globals__.get("__name__")
    for name in global_names(fn.__code__):
        if name in fn.__globals__:
            yield f"global variable {name!r} of module {module!r}", fn.__globals__[name]
    parameters = fn.__code__.co_varnames[: fn.__code__.co_argcount]
    defaults = fn.__defaults__ or ()
    for name, value in zip(parameters[len(parameters) - len(defaults) :], defaults, strict=True):
        yield f"default of parameter {name!r}", value
    for name, value in (fn.__kwdefaults__ or {}).items():
        yield f"default of parameter {name!r}", value
    for name, value in vars(fn).items():
        yield f"attribute {name!r}", value


def _attributes(obj: Any) -> Iterator[tuple[str, Any]]:
    own = getattr(obj, "__dict__", None)
    if isinstance(own, dict | types.MappingProxyType):
        for name, value in own.items():
            if not (isinstance(obj, type) and name.startswith("__") and not callable(value)):
                yield f"attribute {name!r}", value
    for cls in type(obj).__mro__:
        slots = cls.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if name not in ("__dict__", "__weakref__") and hasattr(obj, name):
                yield f"attribute {name!r}", getattr(obj, name)
