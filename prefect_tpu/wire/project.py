"""Which modules are the user's own, and travel by value: those of his project, unless he says otherwise."""

from __future__ import annotations

import contextlib
import difflib
import functools
import importlib.util
import inspect
import os
import sys
import sysconfig
import types
from collections.abc import Callable, Iterator, Sequence, Set
from pathlib import Path
from typing import Any

from prefect_tpu.core.errors import ConfigurationError

PROJECT_MARKERS = ("pyproject.toml", "prefect.yaml", "setup.py", ".git")
_INSTALLED_PARTS = frozenset({"site-packages", "dist-packages"})
_STANDARD_LIBRARY = tuple(
    Path(path).resolve() for path in {sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")} if path
)
_OWN_PACKAGE = __name__.partition(".")[0]


def project_root_of(fn: Callable[..., Any]) -> Path | None:
    """The directory whose modules travel by value together with `fn`.

    It is the nearest directory above the function's file that holds one of `PROJECT_MARKERS`, else the file's own, or
    that above the packages that the file is in.
    For what was typed in (a REPL, a notebook) the working directory is taken for the file's. Of a partial, a method
    or an object that can be called, the first part counts that is not installed. None for an installed function.
    """
    for file in _files_of(fn):
        if file is None or not (os.path.exists(file) or _is_imported(file)):
            return _root_of_working_directory()
        path = Path(file).resolve()
        if not is_installed(path):
            return _marked_above(path) or _above_packages(path, fn)
    return None


def _above_packages(file: Path, fn: Any) -> Path:
    """Where imports begin: above what has an `__init__.py`, and above the package by whose name it was imported."""
    folder = file.parent
    while (folder / "__init__.py").exists():
        folder = folder.parent
    package = getattr(sys.modules.get(getattr(fn, "__module__", "")), "__package__", None) or ""
    for part in reversed(package.split(".") if package else []):
        if folder.name != part:
            break
        folder = folder.parent
    return folder


def is_installed(file: Path) -> bool:
    """Whether it is of an installed package, or of Python itself."""
    return not _INSTALLED_PARTS.isdisjoint(file.parts) or any(
        directory in file.parents for directory in _STANDARD_LIBRARY
    )


def check_by_name(modules: Sequence[str]) -> None:
    """Names of modules that the hosts are said to have are those of modules that there are.

    Raises:
        ConfigurationError: this process has no such module.
    """
    for name in modules:
        try:
            there = name in sys.modules or importlib.util.find_spec(name) is not None
        except (ImportError, ValueError):
            there = False
        if not there:
            near = difflib.get_close_matches(name, list(sys.modules), 1)
            meant = f" (is {near[0]!r} meant?)" if near else ""
            raise ConfigurationError(
                f"by_name: there is no module {name!r} in this process{meant}. It takes names of modules as they are "
                "imported, of the flow's project, that the hosts have installed"
            )


class ProjectModules:
    """Tells which modules travel by value: those below the project root that are not installed."""

    def __init__(self, root: Path | None, by_name: Sequence[str] = (), also: Set[str] = frozenset()) -> None:
        """Of one project.

        Args:
            root: None for no project.
            by_name: modules that the hosts have, with all below them.
            also: modules that travel by value, wherever they are.
        """
        self._root = root.resolve() if root is not None else None
        self.by_name = tuple(by_name)
        self._answers = dict.fromkeys(also, True)

    def __contains__(self, name: object) -> bool:
        if not isinstance(name, str):
            return False
        if name not in self._answers:
            self._answers[name] = self._look(name)
        return self._answers[name]

    def has_file(self, name: str, file: str) -> bool:
        """Whether the module `name`, which may not be imported, is the project's if it is in `file`."""
        if self._root is None or not file.endswith(".py") or self.is_named(name):
            return False
        path = Path(file).resolve()
        return self._root in path.parents and not is_installed(path)

    def tops(self) -> tuple[str, ...]:
        """Names, without what follows a dot, of the modules that the project has where the driver would find them."""
        found: set[str] = set()
        for entry in map(Path, dict.fromkeys(sys.path)):
            if self._root is None or not self.has_file("", str(entry / "any.py")):
                continue
            with contextlib.suppress(OSError):
                found |= {one.stem for one in entry.iterdir() if one.suffix == ".py" or (one / "__init__.py").exists()}
        return tuple(sorted(name for name in found if name.isidentifier() and not self.is_named(name)))

    def is_named(self, name: str) -> bool:
        """Whether the hosts have it: by_name says so, or it is this package or their own main program."""
        names = (*self.by_name, _OWN_PACKAGE, "__main__")
        return any(name == one or name.startswith(f"{one}.") for one in names)

    def _look(self, name: str) -> bool:
        file = getattr(sys.modules.get(name), "__file__", None)
        return bool(file) and self.has_file(name, str(file))


def _files_of(fn: Any) -> Iterator[str | None]:
    """Where its parts were written; None for what was typed in."""
    if isinstance(fn, functools.partial):
        for part in (fn.func, *fn.args, *fn.keywords.values()):
            if callable(part):
                yield from _files_of(part)
        return
    fn = inspect.unwrap(fn)
    if isinstance(fn, types.MethodType):
        yield from _files_of(fn.__func__)
        fn = fn.__self__
    code = getattr(fn, "__code__", None)
    if isinstance(code, types.CodeType):
        if not code.co_filename.startswith("<"):
            yield code.co_filename
            return
        module = fn.__module__
    elif isinstance(fn, types.BuiltinFunctionType):
        return
    else:
        module = (fn if isinstance(fn, type) else type(fn)).__module__
    file = getattr(sys.modules.get(module), "__file__", None)
    if file is not None:
        yield file
    elif module == "__main__" or code is not None:
        yield None


def _is_imported(file: str) -> bool:
    """Whether it is a module's, which may be gone since; cells of a notebook have names of files that never were."""
    return any(getattr(one, "__file__", None) == file for one in list(sys.modules.values()))


def _root_of_working_directory() -> Path | None:
    try:
        here = Path.cwd()
    except OSError:
        return None
    return _marked_above(here / "file") or here


def _marked_above(file: Path) -> Path | None:
    for parent in file.parents:
        if any((parent / marker).exists() for marker in PROJECT_MARKERS):
            return parent
    return None
