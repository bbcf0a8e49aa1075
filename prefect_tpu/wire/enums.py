"""Enums by value: their members are made again as they are, without running what makes them."""

from __future__ import annotations

import enum
from typing import Any

from prefect_tpu.wire import cloudpickle_api

_MADE_BY_ENUM = frozenset(
    {
        "_generate_next_value_",
        "_member_names_",
        "_member_map_",
        "_member_type_",
        "_value2member_map_",
        "_unhashable_values_",
        "_unhashable_values_map_",
        "_hashable_values_",
    }
)
_OF_EVERY_MEMBER = frozenset({"_value_", "_name_", "__objclass__", "_sort_order_", "_inverted_"})
_PLACEHOLDERS = ("__init__", "__new_member__")
"""Of the empty class; gone when it gets its own."""

Row = tuple[str, Any, tuple[Any, ...]]
"""Of a member: name, value, what its data type is made from."""


def skeleton(cls: type[enum.Enum]) -> tuple[Any, tuple[Any, ...]]:
    """What makes the class with its members, aliases and combinations, without methods and attributes."""
    data = getattr(cls, "_member_type_", object)
    rows: list[Row] = []
    for name, member in cls.__members__.items():
        rows.append((name, member.value, _made_from(data, member)))
    boundary = getattr(cls, "_boundary_", None) if issubclass(cls, enum.Flag) else None
    identity = (cls.__name__, cls.__qualname__, cls.__module__, cloudpickle_api.id_of_class(cls))
    return _make, (type(cls), cls.__bases__, identity, boundary, rows)


def state(cls: type[enum.Enum]) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Attributes of the class, and of each member."""
    attributes = {
        name: value
        for name, value in cloudpickle_api.class_state(cls).items()
        if name not in _MADE_BY_ENUM and name not in cls.__members__
    }
    of_members = {
        name: {key: value for key, value in vars(member).items() if key not in _OF_EVERY_MEMBER}
        for name, member in cls.__members__.items()
    }
    return attributes, {name: one for name, one in of_members.items() if one}


def set_state(cls: type[enum.Enum], given: tuple[dict[str, Any], dict[str, dict[str, Any]]]) -> None:
    """Give the class and its members what `state` has."""
    attributes, of_members = given
    for name in _PLACEHOLDERS:
        if name in vars(cls):
            delattr(cls, name)
    cloudpickle_api.set_class_state(cls, attributes)
    for name, one in of_members.items():
        vars(cls.__members__[name]).update(one)


def _make(
    kind: Any, bases: tuple[type, ...], identity: tuple[str, str, str, str], boundary: Any, rows: list[Row]
) -> type:
    name, qualname, module, tracker_id = identity
    known = cloudpickle_api.class_of_id(tracker_id)
    if known is not None:
        return known
    namespace = kind.__prepare__(name, bases)
    waiting = iter(rows)

    def make_member(cls: Any, *_: Any) -> Any:
        value, of_data = next(waiting)[1:]
        member = cls._member_type_.__new__(cls, *of_data)
        member._value_ = value
        return member

    if rows:
        namespace["__new__"] = make_member
        namespace["__init__"] = _do_nothing
    for index, (member_name, _, _) in enumerate(rows):
        namespace[member_name] = index
    made = kind.__new__(kind, name, bases, namespace, **({} if boundary is None else {"boundary": boundary}))
    made.__module__, made.__qualname__ = module, qualname
    return cloudpickle_api.known_class(tracker_id, made)


def _made_from(data: Any, member: enum.Enum) -> tuple[Any, ...]:
    """What the data type of an enum makes the member's own data from: a number, a text, a date."""
    if hasattr(data, "__getnewargs__"):
        return tuple(data.__getnewargs__(member))
    return () if data.__reduce__ is object.__reduce__ else tuple(data.__reduce__(member)[1])


def _do_nothing(*_: Any) -> None:
    """In place of an __init__ that has run already, where the enum was defined."""
