"""A hash of a value that is the same in every process, so that a run that is retried elsewhere finds what it knows.

Prefect's own hash of inputs is not for what JSON does not take: an instance of a class in the flow's file, a set, a
function of it have another one in each process. Here, what JSON takes is hashed as JSON, as Prefect does; everything
else by what it pickles to, with sets in a fixed order, and classes and functions by their names.
"""

from __future__ import annotations

import copyreg
import hashlib
import json
import pickle
import types
from collections.abc import ItemsView, Iterable, KeysView, ValuesView
from enum import Enum
from typing import Any

MOST_PARTS = 2_000_000
"""Of one value; more are not looked at, in a process that has to train as well."""
_NAMELESS_MODULES = ("__main__", "__prefect_loader")
"""A flow's own file has such a name, and not the same one in each process."""


class UnhashableError(Exception):
    """A value has no hash that another process would find again."""


class NotThereYetError(UnhashableError):
    """A value stands for one that comes later."""


def stable_hash(value: Any, later: tuple[type, ...] = ()) -> str:
    """Of a value, in hexadecimal digits. Nothing secret is in it: a pydantic SecretStr counts by its type alone.

    Args:
        value: whatever pickles.
        later: types that stand for values that are not there yet.

    Raises:
        NotThereYetError: one of `later` is in it.
        UnhashableError: something in it does not pickle.
    """
    try:
        text = json.dumps(value, sort_keys=True)
    except (TypeError, ValueError, RecursionError):
        return _Walk(later).hash(value)
    return _hash(b"json", text.encode("utf-8", "surrogatepass"))


def _hash(*parts: bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(b"%d:" % len(part))
        digest.update(part)
    return digest.hexdigest()


class _Walk:
    """Through one value; `above` are the objects that it is inside of, by id."""

    def __init__(self, later: tuple[type, ...]) -> None:
        self._later = later
        self._above: list[int] = []
        self._parts = 0

    def hash(self, value: Any) -> str:
        self._parts += 1
        if self._parts > MOST_PARTS:
            raise UnhashableError(f"it has more than {MOST_PARTS} parts")
        if value is None or type(value) in (bool, int, float, complex, str):
            return _hash(type(value).__name__.encode(), repr(value).encode("utf-8", "surrogatepass"))
        if type(value) in (bytes, bytearray):
            return _hash(b"bytes", bytes(value))
        if isinstance(value, self._later):
            raise NotThereYetError(type(value).__name__)
        if id(value) in self._above:
            return _hash(b"above", b"%d" % self._above.index(id(value)))
        self._above.append(id(value))
        try:
            return _hash(*(one.encode() for one in self._inside(value)))
        except UnhashableError:
            raise
        except Exception as error:
            raise UnhashableError(f"{type(value).__name__} does not pickle: {type(error).__name__}") from error
        finally:
            self._above.pop()

    def _inside(self, value: Any) -> list[str]:
        """What makes the value the one that it is: a word for its kind, then hashes."""
        kind = type(value)
        if kind in (list, tuple):
            return ["list", *map(self.hash, value)]
        if kind is dict:
            return ["dict", *self._pairs(value.items())]
        if kind in (set, frozenset):
            return ["set", *sorted(map(self.hash, value))]
        if isinstance(value, type | types.FunctionType | types.BuiltinFunctionType | types.ModuleType):
            return self._named(value)
        if isinstance(value, types.CodeType):
            return ["code", value.co_code.hex(), self.hash(value.co_consts), self.hash(value.co_names)]
        if isinstance(value, Enum):
            return [*self._named(kind), value.name or self.hash(value.value)]
        if (
            kind.__module__ == "numpy"
            and hasattr(value, "dtype")
            and hasattr(value, "reshape")
            and not value.dtype.hasobject
        ):
            whole = value.reshape(-1).view("u1")  # however it lies in memory; copied only where it lies in pieces
            return ["array", self.hash(value.dtype), str(value.shape), hashlib.sha256(whole).hexdigest()]
        if isinstance(value, pickle.PickleBuffer):
            return ["buffer", hashlib.sha256(value.raw()).hexdigest()]
        if hasattr(kind, "get_secret_value"):
            return ["secret", kind.__qualname__]
        if isinstance(value, KeysView | ValuesView | ItemsView):
            return ["list", *map(self.hash, value)]
        special = copyreg.dispatch_table.get(kind)
        reduced = special(value) if special is not None else value.__reduce_ex__(5)
        if isinstance(reduced, str):
            return ["global", reduced]
        make, arguments, state, items, pairs = (*reduced, None, None, None)[:5]
        return [
            "object",
            self.hash(make),
            *map(self.hash, arguments),
            self.hash(state),
            *map(self.hash, items or ()),
            *self._pairs(pairs or ()),
        ]

    def _pairs(self, pairs: Iterable[tuple[Any, Any]]) -> list[str]:
        return sorted(self.hash(key) + self.hash(value) for key, value in pairs)

    def _named(self, value: Any) -> list[str]:
        """A lambda has no name to know it by: its code counts as well."""
        if isinstance(value, types.ModuleType):
            return ["module", value.__name__]
        module = value.__module__ or ""
        found = ["name", "" if module.startswith(_NAMELESS_MODULES) else module, value.__qualname__]
        if isinstance(value, types.BuiltinFunctionType) and not isinstance(value.__self__, types.ModuleType | None):
            return [*found, self.hash(value.__self__)]
        if isinstance(value, types.FunctionType):
            found.append(self.hash([value.__defaults__, value.__kwdefaults__]))
            found += [self.hash(cell.cell_contents) for cell in value.__closure__ or ()]
            if value.__name__ == "<lambda>":
                found.append(self.hash(value.__code__))
        return found
