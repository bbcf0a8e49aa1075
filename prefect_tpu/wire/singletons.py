"""Objects of which there is one, and which are known by being it: they travel as their names."""

from __future__ import annotations

import copyreg
import importlib
import sys
from typing import Any

from prefect_tpu.wire.project import ProjectModules

_NAMES: dict[type, dict[int, str]] = {}
"""Of each class that was asked for: its instances among the variables of its module."""


class _Variable:
    """Stands in a state for what is a variable of a module."""

    def __init__(self, module: str, name: str) -> None:
        self.module, self.name = module, name

    def __reduce__(self) -> Any:
        return _find, (self.module, self.name)


def reduce_singleton(obj: Any, modules: ProjectModules) -> Any:
    """Of an installed package, and with nothing in it, such as `dataclasses.MISSING`; None for all other things."""
    cls = type(obj)
    if cls.__module__ in ("builtins", "__main__") or cls.__module__ in modules:
        return None
    if cls not in _NAMES:
        variables = vars(sys.modules[cls.__module__]) if cls.__module__ in sys.modules else {}
        _NAMES[cls] = {id(value): name for name, value in list(variables.items()) if type(value) is cls}
    name = _NAMES[cls].get(id(obj))
    if name is None or getattr(sys.modules[cls.__module__], name, None) is not obj:
        return None
    return (_find, (cls.__module__, name)) if _is_empty(obj) else None


def _is_empty(obj: Any) -> bool:
    try:
        reduced = obj.__reduce_ex__(2)
    except Exception:  # noqa: BLE001 - whatever its class does
        return False
    return isinstance(reduced, tuple) and reduced[0] is copyreg.__newobj__ and not any(reduced[2:])  # type: ignore[attr-defined]


def reduce_of_argparse(obj: Any) -> Any:
    """Parsers and their arguments: a default that is suppressed is known by being that very string."""
    argparse = sys.modules.get("argparse")
    if argparse is None or not isinstance(obj, (argparse.Action, argparse._ActionsContainer)):  # noqa: SLF001
        return None
    reduced = obj.__reduce_ex__(2)
    if reduced[0] is not copyreg.__newobj__ or not isinstance(reduced[2], dict):  # type: ignore[attr-defined]
        return None
    suppress = _Variable("argparse", "SUPPRESS")
    state = {name: suppress if value is argparse.SUPPRESS else value for name, value in reduced[2].items()}
    return reduced[0], reduced[1], state


def _find(module: str, name: str) -> Any:
    return getattr(importlib.import_module(module), name)
