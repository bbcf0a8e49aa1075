"""Modules of the project that the function imports while it runs: found by its import statements, in the driver."""

from __future__ import annotations

import ast
import dis
import functools
import importlib.util
import sys
import tokenize
import types
import weakref
from collections.abc import Iterator, Sequence, Set
from typing import Any

from prefect_tpu.wire import syntax
from prefect_tpu.wire.modules import Source
from prefect_tpu.wire.project import ProjectModules

_of_code: weakref.WeakKeyDictionary[types.CodeType, tuple[tuple[str, int, tuple[str, ...]], ...]] = (
    weakref.WeakKeyDictionary()
)


class LateImports:
    """What the functions that travel import. What travels by value anyway goes whole, all else as its source.

    So no class is there twice: a module either travels by value or runs on the host.
    """

    def __init__(self, modules: ProjectModules) -> None:
        self._modules = modules
        self._named: dict[str, None] = {}
        self._sources: dict[str, Source | None] = {}

    def see(self, function: types.FunctionType) -> None:
        """Take in the import statements of a function that travels by value."""
        package = function.__globals__.get("__package__")
        for name, level, items in _imports_of(function.__code__):
            self._named.update(dict.fromkeys(_names(name, level, items, package)))

    def needed(self, by_value: Set[str]) -> tuple[list[types.ModuleType], dict[str, Source]]:
        """Modules that have to travel whole, and sources.

        Args:
            by_value: modules of which something travels by value.
        """
        whole: list[types.ModuleType] = []
        sources: dict[str, Source] = {}
        waiting, seen = list(self._named), set[str]()
        while waiting:
            name = waiting.pop()
            if name in seen:
                continue
            seen.add(name)
            if name in by_value and name in sys.modules and not self._modules.is_named(name):
                whole.append(sys.modules[name])
            elif (source := self._source(name)) is not None:
                sources[name] = source
                waiting.extend(_imports_in(source, name))
        return sorted(whole, key=lambda one: one.__name__), dict(sorted(sources.items()))

    def _source(self, name: str) -> Source | None:
        if name not in self._sources:
            self._sources[name] = self._find(name)
        return self._sources[name]

    def _find(self, name: str) -> Source | None:
        """Nothing is imported for it."""
        if name.partition(".")[0] in sys.stdlib_module_names or self._modules.is_named(name):
            return None
        spec = _spec(name)
        if spec is None:
            return None
        below = list(spec.submodule_search_locations or ())
        if spec.origin is None:  # a folder without an __init__.py
            inside = below and all(self._modules.has_file(name, f"{folder}/any.py") for folder in below)
            return Source(None, "", is_package=True) if inside else None
        if not self._modules.has_file(name, spec.origin):
            return None
        with tokenize.open(spec.origin) as file:
            return Source(file.read(), spec.origin, is_package=spec.submodule_search_locations is not None)


def _spec(name: str) -> Any:
    parent = name.rpartition(".")[0]
    try:
        loaded = sys.modules.get(name)
        if loaded is not None:
            return loaded.__spec__
        if not parent:
            return importlib.util.find_spec(name)
        above = _spec(parent)
        path = getattr(sys.modules.get(parent), "__path__", None) or getattr(above, "submodule_search_locations", None)
        if path is None:
            return None
        for finder in sys.meta_path:
            found = finder.find_spec(name, list(path), None)
            if found is not None:
                return found
    except (ImportError, AttributeError, ValueError):
        return None
    return None


def _imports_of(code: types.CodeType) -> Sequence[tuple[str, int, tuple[str, ...]]]:
    """Name, level and what is taken from it, of each import statement in the code and in what it defines."""
    found = _of_code.get(code)
    if found is None:
        _of_code[code] = found = tuple(_walk(code))
    return found


def _walk(code: types.CodeType) -> Iterator[tuple[str, int, tuple[str, ...]]]:
    before: list[Any] = [None, None]
    for one in dis.get_instructions(code):
        if one.opname == "IMPORT_NAME":
            level, items = before
            yield str(one.argval), level if isinstance(level, int) else 0, items if isinstance(items, tuple) else ()
        before = [before[1], one.argval]
    for inner in code.co_consts:
        if isinstance(inner, types.CodeType):
            yield from _imports_of(inner)


@functools.lru_cache(maxsize=256)
def _imports_in(source: Source, name: str) -> tuple[str, ...]:
    """The modules that a module's import statements may bring, wherever in it they are."""
    return tuple(dict.fromkeys(_named_in(source, name)))


def _named_in(source: Source, name: str) -> Iterator[str]:
    package = name if source.is_package else name.rpartition(".")[0]
    try:
        tree = syntax.parse(source.text or "")
    except SyntaxError:
        return  # it is said where it is imported
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for one in node.names:
                yield from _names(one.name, 0, (), package)
        elif isinstance(node, ast.ImportFrom):
            yield from _names(node.module or "", node.level, tuple(one.name for one in node.names), package)


def _names(name: str, level: int, items: tuple[str, ...], package: str | None) -> Iterator[str]:
    """All modules that an import statement may bring: those above it, itself, and what is taken from it."""
    if level:
        try:
            name = importlib.util.resolve_name("." * level + name, package or "")
        except ImportError:
            return
    parts = name.split(".")
    yield from (".".join(parts[: end + 1]) for end in range(len(parts)))
    yield from (f"{name}.{one}" for one in items if one != "*")
