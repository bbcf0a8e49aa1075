"""What Python itself would send as a mere name, or not at all: caches, generic functions, names of types."""

from __future__ import annotations

import functools
import sys
import types
import typing
from collections.abc import Callable
from typing import Any

from prefect_tpu.wire import cloudpickle_api
from prefect_tpu.wire.project import ProjectModules

_DISPATCH: Any = functools.singledispatch(lambda _: None)
_MADE_BY_DISPATCH = frozenset({*vars(_DISPATCH)})


def reduce_named(obj: Any, modules: ProjectModules) -> Any:
    """How it travels: by value, or its name if it lies in a module that the hosts have; None for other things."""
    reduce = _REDUCERS.get(type(obj)) or _of_jax(obj)
    if reduce is None:
        return None
    module = getattr(obj, "__module__", None)
    name = str(getattr(obj, "__qualname__", None) or getattr(obj, "__name__", ""))
    return name if module not in modules and cloudpickle_api.goes_by_name(obj, name) else reduce(obj)


def is_dispatch(function: types.FunctionType) -> bool:
    """Whether `functools.singledispatch` has made it."""
    return function.__code__ is _DISPATCH.__code__


def reduce_dispatch(function: Any) -> Any:
    """A generic function: with all its implementations, and no cache of choices."""
    registry = dict(function.registry)
    own = {name: value for name, value in vars(function).items() if name not in _MADE_BY_DISPATCH}
    return _make_dispatch, (registry.pop(object),), (registry, own), None, None, _set_dispatch_state


def reduce_cached_property(obj: Any) -> Any:
    """Without the lock that Python 3.11 has in it."""
    return _make_cached_property, (obj.func, obj.attrname, obj.__doc__)


def _of_jax(obj: Any) -> Callable[[Any], Any] | None:
    jax = sys.modules.get("jax")
    kinds = tuple(cls for name in ("custom_jvp", "custom_vjp") if (cls := getattr(jax, name, None)) is not None)
    return _reduce_custom if isinstance(obj, kinds) else None


def _reduce_custom(obj: Any) -> Any:
    """A function with a derivative of its own: its class wants the function, and does not tell pickle so."""
    return _bare, (type(obj),), vars(obj)


def _reduce_cached(obj: Any) -> Any:
    """A cached function, with an empty cache."""
    given = obj.cache_parameters()
    own = {name: value for name, value in vars(obj).items() if name not in ("__wrapped__", "cache_parameters")}
    return _make_cached, (obj.__wrapped__, given["maxsize"], given["typed"]), own


def _reduce_new_type(obj: Any) -> Any:
    return _make_new_type, (obj.__name__, obj.__supertype__, obj.__module__)


def _reduce_dispatch_method(obj: Any) -> Any:
    """Without the cache of choices that Python 3.13 has in it."""
    return _make_dispatch_method, (), (obj.func, obj.dispatcher), None, None, _set_dispatch_method_state


def _reduce_param_spec(obj: Any) -> Any:
    return _make_of_typing, ("ParamSpec", obj.__name__, obj.__module__)


def _reduce_type_var_tuple(obj: Any) -> Any:
    return _make_of_typing, ("TypeVarTuple", obj.__name__, obj.__module__)


def _reduce_type_alias(obj: Any) -> Any:
    return _make_type_alias, (obj.__name__, obj.__value__, obj.__type_params__)


_REDUCERS: dict[type, Callable[[Any], Any]] = {
    type(functools.cache(len)): _reduce_cached,
    functools.singledispatchmethod: _reduce_dispatch_method,
    typing.NewType: _reduce_new_type,
    typing.TypeVar: cloudpickle_api.reduce_typevar,
    typing.ParamSpec: _reduce_param_spec,
    typing.TypeVarTuple: _reduce_type_var_tuple,
}
if sys.version_info >= (3, 12):
    _REDUCERS[typing.TypeAliasType] = _reduce_type_alias


def _bare(cls: type) -> Any:
    return object.__new__(cls)


def _make_cached(function: Any, maxsize: int | None, typed: bool) -> Any:
    return functools.lru_cache(maxsize, typed)(function)


def _make_dispatch(function: Any) -> Any:
    return functools.singledispatch(function)


def _set_dispatch_state(function: Any, state: tuple[dict[Any, Any], dict[str, Any]]) -> None:
    registry, own = state
    for cls, implementation in registry.items():
        function.register(cls, implementation)
    vars(function).update(own)


def _make_dispatch_method() -> Any:
    return functools.singledispatchmethod(lambda *_: None)


def _set_dispatch_method_state(method: Any, state: tuple[Any, Any]) -> None:
    method.func, method.dispatcher = state


def _make_cached_property(function: Any, name: str | None, doc: str | None) -> Any:
    made: Any = functools.cached_property(function)
    made.attrname, made.__doc__ = name, doc
    return made


def _make_new_type(name: str, supertype: Any, module: str) -> Any:
    new_type: Any = typing.NewType
    made = new_type(name, supertype)
    made.__module__ = module
    return made


def _make_of_typing(kind: str, name: str, module: str) -> Any:
    made = getattr(typing, kind)(name)
    made.__module__ = module
    return made


def _make_type_alias(name: str, value: Any, parameters: tuple[Any, ...]) -> Any:
    return typing.TypeAliasType(name, value, type_params=parameters)  # type: ignore[attr-defined]
