"""Prefect's tasks and flows on their way to a host: plain functions, for which nobody has to import Prefect."""

from __future__ import annotations

import functools
import sys
import types
from collections.abc import Callable
from typing import Any, NoReturn

from prefect_tpu.core.errors import ConfigurationError

_REFUSED = ("submit", "map", "delay", "apply_async", "serve", "deploy")


def reduce_prefect(obj: Any) -> Any:
    """A task as its function; a flow, or a gang's task, as something that says what to do; None for what is neither."""
    if _is_of_prefect(obj, "prefect.tasks", "Task"):
        if hasattr(obj, "gang_run"):  # `fn` is what launches the gang
            return _not_callable, ("gang task", obj.body, str(obj.name))
        fn = obj.fn
        bound_to = getattr(obj.fn, "__prefect_self__", None)
        if bound_to is not None and not _is_attribute_of(obj, type(bound_to)):
            return types.MethodType, (fn, bound_to)
        return _plain_task, (fn, str(obj.name))
    if _is_of_prefect(obj, "prefect.flows", "Flow"):
        return _not_callable, ("flow", obj.fn, str(obj.name))
    return None


def is_plain(obj: Any) -> bool:
    """Whether it is a task that hosts can call."""
    return _is_of_prefect(obj, "prefect.tasks", "Task") and not hasattr(obj, "gang_run")


def _is_of_prefect(obj: Any, module: str, name: str) -> bool:
    """Prefect is not imported for it: without it nobody has such an object."""
    cls = getattr(sys.modules.get(module), name, None)
    return cls is not None and isinstance(obj, cls)


def _is_attribute_of(obj: Any, cls: type) -> bool:
    """Prefect writes the instance on which a task was last looked up onto the function that all of them share."""
    return any(obj is one for base in cls.__mro__ for one in vars(base).values())


def _plain_task(fn: Any, name: str) -> Any:
    """On the host: the function, which also answers to the names of a task that people use."""
    if isinstance(fn, types.FunctionType):
        fn.fn = fn  # type: ignore[attr-defined]
        fn.with_options = functools.partial(_with_options, fn)  # type: ignore[attr-defined]
        for method in _REFUSED:
            setattr(fn, method, _refuses(f".{method}() of task", name, "Call it: it runs here, as its plain function"))
    return fn


def _not_callable(what: str, fn: Any, name: str) -> Any:
    refuse = _refuses(f"a call of {what}", name, "Call its plain function, `.fn(...)`, or itself in the flow")
    refuse.fn = fn  # type: ignore[attr-defined]
    return refuse


def _with_options(fn: Any, **_: Any) -> Any:
    return fn


def _refuses(what: str, name: str, way_out: str) -> Callable[..., NoReturn]:
    def refuse(*_: Any, **__: Any) -> NoReturn:
        raise ConfigurationError(f"{what} {name!r} on a host of a gang: hosts have no Prefect API. {way_out}")

    return refuse
