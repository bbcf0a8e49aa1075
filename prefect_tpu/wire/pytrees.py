"""Classes that are registered with JAX as pytrees: the registration travels with a class that travels by value."""

from __future__ import annotations

import dataclasses
import importlib
import operator
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

from prefect_tpu.core.errors import ConfigurationError
from prefect_tpu.wire import unpicklable

_TREE_UTIL = "jax._src.tree_util"
_HARMLESS = frozenset({"abc", "typing", "enum"})
"""Modules of metaclasses that register nothing."""


def registration(cls: type, *, by_value: bool = True) -> tuple[str, tuple[Any, ...]] | None:
    """How `cls` was registered in this process: with which function of `jax.tree_util`, and with what beside it.

    Raises:
        RefusedError: the class travels by value, and its metaclass would register it where it arrives, still empty.
    """
    entry = _entry(cls)
    if entry is None:
        return None
    metaclass = type(cls)
    if by_value and isinstance(metaclass.__new__, types.FunctionType) and metaclass.__module__ not in _HARMLESS:
        raise unpicklable.RefusedError(
            cls,
            f"class {cls.__module__}.{cls.__qualname__} is made, and registered with JAX, by its metaclass "
            f"{metaclass.__module__}.{metaclass.__qualname__}: it cannot travel by value. Put it into a package that "
            "is installed on the hosts, and name that in by_name",
        )
    flatten, unflatten = entry.to_iter, entry.from_iter
    inside = _closure(flatten)
    of_jax = getattr(flatten, "__module__", None) == _TREE_UTIL
    if of_jax and {"data_fields", "meta_fields"} <= inside.keys():
        data, meta = inside["data_fields"], inside["meta_fields"]
        fields = dataclasses.fields(cls) if dataclasses.is_dataclass(cls) else ()
        dropped = tuple(one.name for one in fields if one.init and one.name not in (*data, *meta))
        return "register_dataclass", (data, meta, dropped)
    if of_jax and "flatten_with_keys" in inside:
        return "register_pytree_with_keys", (inside["flatten_with_keys"], unflatten)
    if hasattr(cls, "tree_flatten_with_keys"):
        return "register_pytree_with_keys", (operator.methodcaller("tree_flatten_with_keys"), unflatten, flatten)
    return "register_pytree_node", (flatten, unflatten)


def registered_by(is_users: Callable[[str | None], bool]) -> Iterator[tuple[type, tuple[str, tuple[Any, ...]]]]:
    """Classes that functions of the user's modules were registered for, and how.

    Args:
        is_users: whether a module is.
    """
    for cls, entry in list(getattr(sys.modules.get(_TREE_UTIL), "_registry", {}).items()):
        if isinstance(cls, type) and any(
            is_users(getattr(one, "__module__", None)) for one in (entry.to_iter, entry.from_iter)
        ):
            found = registration(cls, by_value=False)
            if found is not None:
                yield cls, found


class Registration:
    """Of a class that the hosts have, by the user: made again where it arrives."""

    def __init__(self, cls: type, registration: tuple[str, tuple[Any, ...]]) -> None:
        self._reduced = cls.__module__, cls.__qualname__, registration

    def __reduce__(self) -> Any:
        return registered, self._reduced


def registered(module: str, name: str, registration: tuple[str, tuple[Any, ...]]) -> Any:
    """A class that is installed here, once it is registered."""
    found: Any = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    register(found, *registration)
    return found


def register(cls: type, how: str, what: tuple[Any, ...]) -> None:
    """Repeat it where the class has arrived, if JAX does not know the class there.

    Raises:
        ConfigurationError: JAX does not take it.
    """
    try:
        import jax

        if _entry(cls) is None:
            getattr(jax.tree_util, how)(cls, *what)
    except Exception as error:
        raise ConfigurationError(
            f"class {cls.__module__}.{cls.__qualname__} is a pytree of JAX, and its registration cannot be repeated "
            f"here ({type(error).__name__}: {error}). Put the class into a package that is installed on the hosts, and "
            "name that in by_name"
        ) from error


def _entry(cls: type) -> Any:
    """JAX's record of it; None for no pytree, or where JAX is not imported."""
    return getattr(sys.modules.get(_TREE_UTIL), "_registry", {}).get(cls)


def _closure(function: Any) -> dict[str, Any]:
    code, cells = getattr(function, "__code__", None), getattr(function, "__closure__", None)
    return {name: cell.cell_contents for name, cell in zip(code.co_freevars, cells or (), strict=True)} if code else {}
