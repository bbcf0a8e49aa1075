"""References and actors of Ray mean something to processes of Ray only, which hosts of a gang are not."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from prefect_tpu.wire import unpicklable

Fetch = Callable[[Any], Any]
"""Brings the value of one of Ray's ObjectRefs."""


class NoValueError(Exception):
    """The computation of an array, or of what a reference stands for, failed: not a matter of pickling."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(str(cause))
        self.cause = cause


def reduce(obj: Any, fetch: Fetch | None) -> Any:
    """How to pickle `obj` if it is of Ray, else None: a reference as the value that `fetch` brings.

    Raises:
        RefusedError: it cannot travel, with what to do.
        NoValueError: `fetch` failed.
    """
    kind = type(obj).__name__
    if _is_of_ray(obj, "ray._raylet", "ObjectRef"):
        if fetch is None:
            raise unpicklable.RefusedError(obj, f"a Ray {kind} means nothing outside of its process; return the value")
        try:
            value = fetch(obj)
        except Exception as error:
            raise NoValueError(error) from error
        return _itself, (value,)
    if _is_of_ray(obj, "ray._raylet", "ObjectRefGenerator") or _is_of_ray(obj, "ray.actor", "ActorHandle"):
        raise unpicklable.RefusedError(
            obj, f"a Ray {kind} can be used in processes of Ray only; ask it in the flow, and pass its answers"
        )
    return None


def _is_of_ray(obj: Any, module: str, name: str) -> bool:
    """Ray is not imported for it: without it nobody has such an object."""
    cls = getattr(sys.modules.get(module), name, None)
    return cls is not None and isinstance(obj, cls)


def _itself(value: Any) -> Any:
    return value
