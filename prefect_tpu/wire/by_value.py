"""The pickler: what belongs to the user's project travels by value, what is installed by its name."""

from __future__ import annotations

import enum
import functools
import pickle
import sys
import types
from collections.abc import Callable
from typing import Any

import cloudpickle

from prefect_tpu.wire import (
    cloudpickle_api,
    enums,
    exceptions,
    host_modules,
    models,
    named,
    pytrees,
    reducers,
    singletons,
    tasks,
)
from prefect_tpu.wire.late_imports import LateImports
from prefect_tpu.wire.modules import WAITING, ByName, LeftBehind
from prefect_tpu.wire.project import ProjectModules
from prefect_tpu.wire.reducers import Fetch

_NOT_OF_A_MODULE = frozenset(
    {"__builtins__", "__loader__", "__spec__", "__cached__", "__path__", "__name__", "__annotations__", WAITING}
)
_OF_PREFECT = "__prefect_"
"""Beginning of what Prefect writes onto functions of tasks: their instance, for one."""
_FOR_DRIVERS = ("prefect_tpu.", "prefect.", "prefect_ray.", "ray.")
"""Beginnings of modules of which a host has no use for instances."""


class _Namespace:
    """The global variables of functions that travel: as what makes them where they arrive."""

    def __init__(
        self, make: Callable[..., dict[str, Any]], arguments: tuple[Any, ...], original: dict[str, Any]
    ) -> None:
        self.reduced = make, arguments
        self.original = original  # kept alive: it is known by its id


class Sent:
    """What goes to a host, with the modules that it needs there."""

    def __init__(self, obj: Any) -> None:
        self.obj = obj


class _Late:
    """Stands behind what was sent: only then is it known what that imports."""


class _ByNameCheck:
    """Stands before what was sent: the hosts look whether they have what travels by name."""


class _Whole:
    """A module that travels because a function imports it."""

    def __init__(self, module: types.ModuleType) -> None:
        self.module = module


class Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    """Decides by value or by reference itself: cloudpickle's registry is global and shared by all threads.

    Attributes:
        whole: the module that is being pickled because a function imports it; None before that.
    """

    def __init__(
        self,
        file: Any,
        beside: Callable[[pickle.PickleBuffer], bool] | None,
        modules: ProjectModules,
        class_of_driver: Callable[[type], str | None] | None = None,
        fetch: Fetch | None = None,
    ) -> None:
        super().__init__(file, protocol=5, buffer_callback=beside)
        self.whole: types.ModuleType | None = None
        self._modules = modules
        self._class_of_driver = class_of_driver
        self._fetch = fetch
        self._imports = LateImports(modules)
        self._by_value: set[str] = set()
        self._sent_whole: set[str] = set()
        self._namespaces: dict[int, _Namespace] = {}

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, type):
            return self._reduce_class(obj)
        if isinstance(obj, types.FunctionType):
            return self._reduce_function(obj)
        if isinstance(obj, types.CodeType):
            return cloudpickle_api.reduce_code(obj)
        if isinstance(obj, types.ModuleType):
            if obj.__name__ in self._modules:
                return self._reduce_module(obj)
        elif isinstance(obj, _Namespace):
            return obj.reduced
        elif isinstance(obj, Sent):
            return host_modules.first_then, ((_ByNameCheck(), self._of_installed_classes()), obj.obj, _Late())
        elif isinstance(obj, _ByNameCheck):
            return host_modules.check_by_name, (self._modules.by_name,)
        elif isinstance(obj, _Late):
            return self._reduce_late()
        elif isinstance(obj, _Whole):
            self.whole = obj.module
            return host_modules.first_then, (None, obj.module, None)
        elif isinstance(obj, BaseException):
            reduced = exceptions.reduce_exception(obj)
            if reduced is not None:
                return reduced
        elif isinstance(obj, functools.cached_property) and type(obj) is functools.cached_property:
            return named.reduce_cached_property(obj)
        else:
            reduced = (
                named.reduce_named(obj, self._modules)
                or singletons.reduce_singleton(obj, self._modules)
                or singletons.reduce_of_argparse(obj)
                or tasks.reduce_prefect(obj)
                or reducers.reduce_jax(obj)
                or reducers.reduce_ray(obj, self._fetch)
                or models.reduce_built(obj)
            )
            if reduced is not None:
                return reduced
        return super().reducer_override(obj)

    # -- classes

    def _of_installed_classes(self) -> list[pytrees.Registration]:
        """What the project has registered with JAX that is not its own: the function may come by it anywhere."""
        return [
            pytrees.Registration(cls, found)
            for cls, found in pytrees.registered_by(lambda name: name in self._modules or name == host_modules.MAIN)
            if cls.__module__ not in self._modules and not cloudpickle_api.is_dynamic(cls)
        ]

    def _reduce_class(self, cls: type) -> Any:
        of_driver = self._class_of_driver(cls) if self._class_of_driver is not None else None
        if of_driver is not None:
            return cloudpickle_api.find_class, (of_driver, cls.__qualname__)
        if self._goes_by_name(cls):
            registration = pytrees.registration(cls, by_value=False) if self._class_of_driver is None else None
            if registration is not None and self._is_users(registration):
                return pytrees.registered, (cls.__module__, cls.__qualname__, registration)
            return super().reducer_override(cls)
        if self._class_of_driver is not None and (generic := models.reduce_generic(cls, self._is_there)) is not None:
            return generic
        is_found = False
        if cls.__module__ in self._modules or cls.__module__ == host_modules.MAIN or not models.is_generic(cls):
            self._by_value.add(cls.__module__)
            is_found = "." not in cls.__qualname__ and _is_found(cls, cls.__module__, cls.__qualname__)
        more = (pytrees.registration(cls), is_found)
        if issubclass(cls, enum.Enum):
            return (*enums.skeleton(cls), (enums.state(cls), *more), None, None, _set_enum_state)
        return (
            *models.skeleton(cls),
            (models.state(cls), *more),
            None,
            None,
            _set_class_state,
        )

    def _is_there(self, cls: type) -> bool:
        """Whether the driver, which gets a result, has the class."""
        known = self._class_of_driver is not None and self._class_of_driver(cls) is not None
        return known or self._goes_by_name(cls)

    def _goes_by_name(self, cls: type) -> bool:
        by_value = cls.__module__ in self._modules or cloudpickle_api.is_dynamic(cls) or models.is_generic(cls)
        return not by_value

    def _is_users(self, registration: tuple[str, tuple[Any, ...]]) -> bool:
        """Whether the project may have registered a class of an installed package; hosts do not import that file."""
        how, what = registration
        modules = [getattr(one, "__module__", None) for one in what]
        return how == "register_dataclass" or any(one in self._modules or one == host_modules.MAIN for one in modules)

    # -- functions

    def _reduce_function(self, function: types.FunctionType) -> Any:
        name = function.__qualname__
        if function.__module__ not in self._modules and cloudpickle_api.goes_by_name(function, name):
            return NotImplemented
        if named.is_dispatch(function):
            return named.reduce_dispatch(function)
        namespace = self._namespace(function.__globals__)
        with_globals = namespace.reduced[0] is host_modules.namespace_of
        if with_globals:
            self._imports.see(function)
        own, slots = cloudpickle_api.function_state(function, with_globals=with_globals)
        own = {key: value for key, value in own.items() if not key.startswith(_OF_PREFECT)}
        is_found = function.__globals__.get(name) is function
        make, arguments = cloudpickle_api.function_skeleton(function, namespace)
        return make, arguments, ((own, slots), is_found), None, None, _set_function_state

    def _namespace(self, variables: dict[str, Any]) -> _Namespace:
        found = self._namespaces.get(id(variables))
        if found is None:
            found = self._namespaces[id(variables)] = self._new_namespace(variables)
        return found

    def _new_namespace(self, variables: dict[str, Any]) -> _Namespace:
        name = variables.get("__name__")
        module = sys.modules.get(name) if isinstance(name, str) else None
        is_its = module is not None and vars(module) is variables
        if is_its and name not in self._modules and name != host_modules.MAIN:
            return _Namespace(host_modules.namespace_by_name, (name,), variables)
        attributes = {
            key: variables[key] for key in ("__package__", "__name__", "__path__", "__file__") if key in variables
        }
        taken = name in self._by_value and any(one.reduced[1][0] == name for one in self._namespaces.values())
        if not isinstance(name, str) or taken or (module is not None and not is_its):
            name = ""  # another one of that name: on its own
        else:
            self._by_value.add(name)
        return _Namespace(host_modules.namespace_of, (name, attributes), variables)

    # -- modules

    def _reduce_module(self, module: types.ModuleType) -> Any:
        name = module.__name__
        self._by_value.add(name)
        self._sent_whole.add(name)
        values: dict[str, Any] = {}
        waiting: dict[str, ByName | LeftBehind] = {}
        for key, value in vars(module).items():
            if key in _NOT_OF_A_MODULE:
                continue
            elsewhere = self._elsewhere(value)
            if elsewhere is None:
                values[key] = value
            else:
                waiting[key] = elsewhere
        make = host_modules.make_module, (name, hasattr(module, "__path__"))
        return *make, (values, waiting), None, None, host_modules.set_module_state

    def _elsewhere(self, value: Any) -> ByName | LeftBehind | None:
        """What is there in place of a module's variable that hosts get by its name, or do not need."""
        if isinstance(value, types.ModuleType):
            return None if value.__name__ in self._modules else ByName(value.__name__)
        if isinstance(value, type | types.FunctionType):
            module, name = value.__module__, value.__qualname__
            by_name = module not in self._modules and cloudpickle_api.goes_by_name(value, name)
            return ByName(module, name) if by_name else None
        cls = type(value)
        if cls.__module__.startswith(_FOR_DRIVERS) and not tasks.is_plain(value):
            return LeftBehind(f"is a {cls.__qualname__}, which is of no use on a host, so it did not travel")
        return None

    def _reduce_late(self) -> Any:
        whole, sources = self._imports.needed(self._by_value)
        more = [one for one in whole if one.__name__ not in self._sent_whole]
        if more:
            return host_modules.take_late, ([_Whole(one) for one in more], _Late())
        return host_modules.take_sources, (sources, self._modules.tops())


def _is_found(obj: Any, module: str, name: str) -> bool:
    return getattr(sys.modules.get(module), name, None) is obj


def _set_class_state(cls: type, state: tuple[Any, Any, bool]) -> None:
    attributes, registration, is_found = state
    cloudpickle_api.set_class_state(cls, attributes)
    models.note_generic(cls)
    _conclude(cls, registration, is_found)


def _set_enum_state(cls: type[enum.Enum], state: tuple[Any, Any, bool]) -> None:
    attributes, registration, is_found = state
    enums.set_state(cls, attributes)
    _conclude(cls, registration, is_found)


def _conclude(cls: type, registration: Any, is_found: bool) -> None:
    if is_found:
        host_modules.put(cls.__module__, cls.__qualname__, cls)
    if registration is not None:
        pytrees.register(cls, *registration)


def _set_function_state(function: types.FunctionType, state: tuple[Any, bool]) -> None:
    own_and_slots, is_found = state
    cloudpickle_api.set_function_state(function, own_and_slots)
    if is_found:
        function.__globals__.setdefault(function.__name__, function)
