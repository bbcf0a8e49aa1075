"""What a gang task takes as its function. All else is refused where it is decorated, not on a host after a launch."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from prefect.flows import Flow
from prefect.tasks import Task

from prefect_tpu.core.errors import ConfigurationError


def check_function(given: Callable[..., Any]) -> None:
    """Functions, methods of an object, partials and objects with a `__call__` of their own are taken.

    Raises:
        ConfigurationError: it is something else: what, and the way out.
    """
    inner: Any = given
    while isinstance(inner, functools.partial | staticmethod | classmethod):
        inner = inner.func if isinstance(inner, functools.partial) else inner.__func__
    says = _wrong(inner)
    if says:
        function = getattr(inner, "_function", inner)  # of what Ray has made of it
        name = getattr(function, "__name__", None)
        shown = repr(name) if isinstance(name, str) else f"{type(inner).__name__} object"
        raise ConfigurationError(f"task(task_runner=...): {shown} {says}")


def _wrong(inner: Any) -> str:
    if isinstance(inner, Flow):
        return "is a flow; a gang is a task: call it in the flow"
    if isinstance(inner, Task):
        return "is a task of Prefect; give its function: task(fn.fn, task_runner=...)"
    modules = {base.__module__ for base in type(inner).__mro__}  # Ray is not imported for it
    if "ray.remote_function" in modules:
        return "is a task of Ray; take @ray.remote off, or give its function: task(fn._function, task_runner=...)"
    if "ray.actor" in modules:
        return (
            "is an actor of Ray; take @ray.remote off, and give a method of one of its objects: "
            "task(CLASS(...).METHOD, task_runner=...)"
        )
    if isinstance(inner, type):
        return (
            f"is a class; give a method of one of its objects: task({inner.__name__}(...).METHOD, task_runner=...), "
            "or decorate the methods"
        )
    if not callable(inner):
        return "is no function"
    if hasattr(inner, "__qualname__") and not hasattr(inner, "__code__") and not hasattr(inner.__call__, "__code__"):
        return (
            f"is no plain Python function but a {type(inner).__name__}; write one that calls it, as "
            "def run(x): return fn(x), and decorate that"
        )
    return ""
