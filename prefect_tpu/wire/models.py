"""Classes of pydantic by value: with their schemas as they are, made into validators anew where they arrive.

A validator is pickled as its schema, and is built from that as soon as the schema has arrived. So no part of a schema
may be one of another schema, which may still be arriving; and a class that is still empty must not be asked for its
validator.
"""

from __future__ import annotations

import contextlib
import operator
import sys
import typing
from collections.abc import Callable, Iterator
from typing import Any

from prefect_tpu.wire import cloudpickle_api, unpicklable

_BUILT = ("__pydantic_core_schema__", "__pydantic_validator__", "__pydantic_serializer__")
"""What pydantic makes of the fields of a class."""


def skeleton(cls: type) -> tuple[Callable[..., type], tuple[Any, ...]]:
    """What makes an empty class like `cls`, one of pydantic's or any other.

    pydantic does not build an empty model then: it would be taken for the whole one.
    """
    more = {"model_config": {"defer_build": True}} if _is_built(cls) and hasattr(cls, "model_rebuild") else {}
    return cloudpickle_api.class_skeleton(cls, more)


def state(cls: type) -> dict[str, Any]:
    """The attributes of the class that travel. A class that waits for forward references is completed before.

    Raises:
        RefusedError: one of pydantic's dataclasses is not complete.
    """
    if not _is_built(cls):
        return cloudpickle_api.class_state(cls)
    if not _complete(cls):
        if not hasattr(cls, "model_rebuild"):
            raise unpicklable.RefusedError(
                cls,
                f"{cls.__module__}.{cls.__qualname__} is a dataclass of pydantic whose annotations name something that "
                "is not there yet",
                "call pydantic.dataclasses.rebuild_dataclass on it, where all that they name is there",
            )
        return {name: value for name, value in cloudpickle_api.class_state(cls).items() if name not in _BUILT}
    attributes = cloudpickle_api.class_state(cls)
    if "__pydantic_parent_namespace__" in attributes:  # variables of the function around it: for annotations only
        attributes["__pydantic_parent_namespace__"] = None
    return attributes


def reduce_built(obj: Any) -> Any:
    """How a validator, and what has one beside classes, travels; None for other things.

    Raises:
        RefusedError: it waits for a type that is not there yet.
    """
    reduce = _REDUCERS.get((type(obj).__module__, type(obj).__name__))
    return None if reduce is None else reduce(obj)


def _reduce_built(obj: Any) -> Any:
    make, given = obj.__reduce__()
    return make, _copied(given, {})


def _check_adapter(adapter: Any) -> Any:
    if not getattr(adapter, "pydantic_complete", True):
        with contextlib.suppress(Exception):
            adapter.rebuild(raise_errors=False, _types_namespace={})
        if not adapter.pydantic_complete:
            raise unpicklable.RefusedError(
                adapter, f"{adapter!r} names something that is not there yet", "call its .rebuild() where it is"
            )


def _complete_call(call: Any) -> Any:
    if not getattr(call, "__pydantic_complete__", True):
        call._create_validators()  # noqa: SLF001 - what its first call does


def _reduce_names(names: Any) -> Any:
    """What annotations were evaluated with: the variables of a whole module, which have done their work."""
    return type(names), ()


def _reduce_config(config: Any) -> Any:
    """It would look for its dict in its dict, before it has one."""
    return type(config), (config.config_dict,)


_REDUCERS: dict[tuple[str, str], Callable[[Any], Any]] = {
    ("pydantic_core._pydantic_core", "SchemaValidator"): _reduce_built,
    ("pydantic_core._pydantic_core", "SchemaSerializer"): _reduce_built,
    ("pydantic.type_adapter", "TypeAdapter"): _check_adapter,
    ("pydantic._internal._validate_call", "ValidateCallWrapper"): _complete_call,
    ("pydantic._internal._namespace_utils", "NsResolver"): _reduce_names,
    ("pydantic._internal._config", "ConfigWrapper"): _reduce_config,
}


def is_generic(cls: type) -> bool:
    """Whether it is a `Model[int]`: pydantic may have put that into the module of Model, where hosts have none."""
    return _generic(cls)[0] is not None


def reduce_generic(cls: type, is_there: Callable[[type], bool]) -> Any:
    """`Model[int]` on its way to the driver, which has Model and may have that; None for other classes.

    Args:
        cls: a class that the driver has not sent.
        is_there: whether the driver has a class.
    """
    origin, args = _generic(cls)
    if origin is None or not is_there(origin) or not all(is_there(one) for arg in args for one in _classes_in(arg)):
        return None
    return operator.getitem, (origin, args)


def note_generic(cls: type) -> None:
    """`Model[int]` gives the class that has arrived, instead of a new one."""
    origin, args = _generic(cls)
    generics = sys.modules.get("pydantic._internal._generics")
    if origin is not None and hasattr(generics, "set_cached_generic_type"):
        generics.set_cached_generic_type(origin, args, cls, origin, args)  # type: ignore[union-attr]


def _generic(cls: type) -> tuple[Any, tuple[Any, ...]]:
    found = vars(cls).get("__pydantic_generic_metadata__") or {}
    return found.get("origin"), found.get("args", ())


def _classes_in(annotation: Any) -> Iterator[type]:
    if isinstance(annotation, type):
        origin, inside = _generic(annotation)
        inside = inside or typing.get_args(annotation)
        if origin is not None or not inside:
            yield origin or annotation
    else:
        inside = tuple(annotation) if isinstance(annotation, list | tuple) else typing.get_args(annotation)
    for one in inside:
        yield from _classes_in(one)


def _is_built(cls: type) -> bool:
    return "pydantic" in sys.modules and "__pydantic_validator__" in vars(cls) and hasattr(cls, "__pydantic_complete__")


def _complete(cls: Any) -> bool:
    """Whether the class has its validator. It may get it now, as at its first use."""
    if not cls.__pydantic_complete__:
        rebuild = getattr(cls, "model_rebuild", None)
        with contextlib.suppress(Exception):  # then it stays as it is
            if rebuild is not None:
                rebuild(raise_errors=False, _types_namespace={})
            else:
                sys.modules["pydantic.dataclasses"].rebuild_dataclass(cls, raise_errors=False, _types_namespace={})
    return bool(vars(cls).get("__pydantic_complete__"))


def _copied(part: Any, done: dict[int, Any]) -> Any:
    """The dicts, lists and tuples of a schema anew; the same classes, functions and values in them."""
    if type(part) not in (dict, list, tuple):
        return part
    if id(part) not in done:
        if type(part) is dict:
            made: Any = {key: _copied(value, done) for key, value in part.items()}
        else:
            made = type(part)(_copied(one, done) for one in part)
        done[id(part)] = made
    return done[id(part)]
