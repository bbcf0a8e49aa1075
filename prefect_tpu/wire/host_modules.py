"""Modules of the user's project on a host, which has none of their files.

What travels by value lies in modules of the same names, so that it is found there: by pickle, by imports inside the
function, by processes that the function starts. A module that only the function imports is run from its source.
Elsewhere (in the driver, for results) nothing of this is set up.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import os
import socket
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from prefect_tpu.wire.modules import WAITING, ByName, HostModule, LeftBehind, Source
from prefect_tpu.wire.unpicklable import CannotPickleError

MAIN = "__main__"
PAYLOAD_VARIABLE = "_PREFECT_TPU_PAYLOAD"
"""Where processes that multiprocessing starts find the payload, and the project's top-level modules."""
SPAWNED = "prefect_tpu.host.process.spawned"
"""What multiprocessing runs in place of the main program, in processes that it starts anew."""


class _Here:
    """What this process has of the user's project.

    Attributes:
        on_host: what arrives by value is put into modules.
        sources: of modules that have not been imported yet.
        names: modules that are here by value.
        tops: names, without what follows a dot, of all modules of the project.
        load: brings it all into a process that multiprocessing has started, when it is first needed.
        main: the main program's module before the user's took its place; its functions still run.
    """

    def __init__(self) -> None:
        self.on_host = False
        self.sources: dict[str, Source] = {}
        self.names: set[str] = set()
        self.tops: set[str] = set()
        self.load: Callable[[], object] | None = None
        self.main: types.ModuleType | None = None


_here = _Here()


def become_host() -> None:
    """From now on what arrives by value in this process is put into modules."""
    if not _here.on_host:
        _here.on_host = True
        sys.meta_path.insert(0, _Finder())
        sys.meta_path.append(_Hint())


def share(payload_path: str) -> None:
    """All is here: let processes that multiprocessing starts anew find the same.

    Args:
        payload_path: of what was loaded, as they can open it.
    """
    _module(MAIN)
    tops = {name.partition(".")[0] for name in (*_here.names, *_here.sources)} - {MAIN}
    os.environ[PAYLOAD_VARIABLE] = os.pathsep.join((payload_path, *sorted(tops)))


def become_spawned(load: Callable[[str], object]) -> None:
    """In such a process: `load`, given that path, is called when something of the project is first needed."""
    path, *tops = os.environ.get(PAYLOAD_VARIABLE, "").split(os.pathsep)
    if path:
        become_host()
        _here.load = lambda: load(path)
        _here.tops |= set(tops)


def load_now() -> None:
    """What `become_spawned` was told of, if that has not been done."""
    load, _here.load = _here.load, None
    if load is not None:
        load()


def has_main() -> bool:
    """Whether something of the user's main program is here by value."""
    return MAIN in _here.names


def names() -> frozenset[str]:
    """Modules of the user that are here by value."""
    return frozenset(_here.names)


def check_by_name(modules: Sequence[str]) -> None:
    """Before anything is unpickled: the hosts have what the driver sends names of.

    Raises:
        CannotPickleError: they have not.
    """
    if not _here.on_host:
        return
    for name in modules:
        try:
            found = importlib.util.find_spec(name) is not None
        except ImportError:
            found = False
        if not found:
            raise CannotPickleError(
                f"by_name: module {name!r} is not installed on host {socket.gethostname()}",
                "install it there (or by runtime_env), or take it out of by_name, so that it travels by value",
            )


def namespace_of(name: str, attributes: Mapping[str, Any]) -> dict[str, Any]:
    """The global variables of functions that travelled by value, those of their module."""
    if not _here.on_host or not name:
        return dict(attributes)
    namespace = vars(_module(name, is_package="__path__" in attributes))
    namespace.update({key: value for key, value in attributes.items() if key != "__path__"})
    return namespace


def namespace_by_name(name: str) -> dict[str, Any]:
    """The global variables of a module that is installed here."""
    return vars(importlib.import_module(name))


def put(module: str, name: str, value: Any) -> None:
    """Let a class that travelled by value be found where it was found in the driver."""
    if _here.on_host:
        vars(_module(module)).setdefault(name, value)


def make_module(name: str, is_package: bool) -> types.ModuleType:
    """A module that travels whole, still empty."""
    return _module(name, is_package=is_package) if _here.on_host else HostModule(name)


def set_module_state(module: Any, state: tuple[dict[str, Any], dict[str, ByName | LeftBehind]]) -> None:
    """Fill it."""
    values, waiting = state
    for name, value in values.items():
        vars(module).setdefault(name, value)
    vars(module)[WAITING].update(waiting)


def take_late(_: list[types.ModuleType], more: Any) -> Any:
    """Modules that the function imports, and that have arrived by value."""
    return more


def take_sources(sources: dict[str, Source], tops: Sequence[str]) -> None:
    """Modules that the function imports, to be run here."""
    if _here.on_host:
        _here.sources.update(sources)
        _here.tops |= set(tops)


def first_then(_: Any, obj: Any, __: Any) -> Any:
    """What was sent, between what comes before and after it."""
    return obj


def _module(name: str, is_package: bool = False) -> types.ModuleType:
    found = sys.modules.get(name)
    if name in _here.names and found is not None:
        if is_package and not hasattr(found, "__path__"):
            found.__path__ = []
            assert found.__spec__ is not None
            found.__spec__.submodule_search_locations = []
        return found
    made = HostModule(name)
    made.__loader__ = _Loader(None)
    if name == MAIN:
        _here.main = found
        made.__spec__ = importlib.machinery.ModuleSpec(SPAWNED, None)
    else:
        made.__spec__ = importlib.machinery.ModuleSpec(name, made.__loader__, is_package=is_package)
        if is_package:
            made.__path__ = []
    _here.names.add(name)
    sys.modules[name] = made
    parent, _, last = name.rpartition(".")
    if parent in sys.modules:
        setattr(sys.modules[parent], last, made)
    return made


class _Finder(importlib.abc.MetaPathFinder):
    """Modules of the project come from the driver, also where their files are there by chance."""

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None = None,
        target: Any = None,  # noqa: ARG002 - the protocol has it
    ) -> importlib.machinery.ModuleSpec | None:
        if _here.load is not None and fullname.partition(".")[0] in _here.tops:
            load_now()
            if fullname in _here.names:
                return importlib.machinery.ModuleSpec(fullname, _Loader(None, sys.modules[fullname]))
        source = _here.sources.get(fullname)
        if source is None:
            below = any(name.startswith(f"{fullname}.") for name in (*_here.names, *_here.sources))
            if not below or importlib.machinery.PathFinder.find_spec(fullname, path) is not None:
                return None
            source = Source(None, "", is_package=True)
        loader = _Loader(source)
        spec = importlib.machinery.ModuleSpec(
            fullname, loader, origin=source.file or None, is_package=source.is_package
        )
        spec.has_location = bool(source.file)
        return spec


class _Loader(importlib.abc.InspectLoader):
    """Runs a source, or has the module already."""

    def __init__(self, source: Source | None, made: types.ModuleType | None = None) -> None:
        self._source = source
        self._made = made

    def create_module(self, _: importlib.machinery.ModuleSpec) -> types.ModuleType | None:
        return self._made

    def get_source(self, fullname: str) -> str | None:  # noqa: ARG002 - the protocol has it
        return None if self._source is None else self._source.text

    def is_package(self, fullname: str) -> bool:  # noqa: ARG002
        return self._source is not None and self._source.is_package

    def exec_module(self, module: types.ModuleType) -> None:
        source = self._source
        if source is not None and source.text is not None:
            exec(compile(source.text, source.file, "exec", dont_inherit=True), vars(module))  # noqa: S102 - an import
        below = f"{module.__name__}."
        for name, child in list(sys.modules.items()):
            if name.startswith(below) and "." not in name[len(below) :]:
                vars(module).setdefault(name[len(below) :], child)


class _Hint(importlib.abc.MetaPathFinder):
    """Asked last: says why a module of the project is not here."""

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None = None,  # noqa: ARG002 - the protocol has it
        target: Any = None,  # noqa: ARG002
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname.partition(".")[0] not in _here.tops:
            return None
        raise ModuleNotFoundError(
            f"No module named {fullname!r} on host {socket.gethostname()}: of the project only those modules travel "
            "that the function, or what it calls, names in an import statement. Name it in one, or install it on the "
            "hosts and name it in by_name",
            name=fullname,
        )
