"""Hashes of arguments: equal values have one, in every process; other values have another."""

from __future__ import annotations

import collections
import dataclasses
import enum
import functools
import os
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pydantic
import pytest

from prefect_tpu.core.stable_hash import NotThereYetError, UnhashableError, stable_hash


class Plain:
    def __init__(self, rate: float) -> None:
        self.rate, self.names = rate, {"b", "a"}


@dataclasses.dataclass
class Config:
    rate: float


class Model(pydantic.BaseModel):
    rate: float
    key: pydantic.SecretStr = pydantic.SecretStr("")


class Kind(enum.Enum):
    ADAM = 1
    SGD = 2


def scaled(by: float) -> Any:
    return lambda x: x * by


def update(x: int) -> int:
    return x


DIFFERENT: list[Any] = [
    None, True, 1, 1.5, "1", b"1", [1, 2], [2, 1], {1, 2}, frozenset({"a"}), {"a": 1}, {"a": 2}, {"a": {"b"}},
    Plain(0.1), Plain(0.2), Config(0.1), Config(0.2), Model(rate=1), Model(rate=2), Kind.ADAM, Kind.SGD, Path("/a"),
    Path("/b"), np.arange(3), np.arange(4), np.arange(3.0), np.float32(1), np.zeros((0, 3)), np.zeros((3, 0)),
    np.array(["a", None], dtype=object), np.array(["b", None], dtype=object),
    np.arange(3).astype("datetime64[s]"), update, scaled, scaled(1), scaled(2),
    lambda x: x, lambda x: x + 1, functools.partial(update, 1), functools.partial(update, 2), Plain, Config, len, abs,
    re.compile("a"), re.compile("b"), {"k": 1}.keys(), {"l": 1}.keys(),
    "abc".upper, "abd".upper, os, collections.deque("ab"), np.random.default_rng(1),
    np.random.default_rng(2), Config(0.1).__init__,
]  # fmt: skip


def test_other_values_have_other_hashes() -> None:
    """However alike they are."""
    found = [stable_hash(one) for one in DIFFERENT]
    twice = [DIFFERENT[i] for i, one in enumerate(found) if found.index(one) != i]
    assert twice == []


def test_equal_values_have_one_hash() -> None:
    """Another object, another order of a dictionary, another object for an equal text inside."""
    text = "ab!"[:2]  # not the same object
    for one, same in (
        (Plain(0.1), Plain(0.1)),
        (scaled(2), scaled(2)),
        (np.arange(6).reshape(2, 3)[:, :2], np.ascontiguousarray(np.arange(6).reshape(2, 3)[:, :2])),
        ({"a": Plain(1), "b": {1}}, {"b": {1}, "a": Plain(1)}),
        ([Plain(1), "ab", text], [Plain(1), text, "ab"]),
        ((1, 2), [1, 2]),
        (Model(rate=1, key=pydantic.SecretStr("one")), Model(rate=1, key=pydantic.SecretStr("another"))),
    ):
        assert stable_hash(one) == stable_hash(same), one


ELSEWHERE = """
import dataclasses, sys
from prefect_tpu.core.stable_hash import stable_hash
class Plain:
    def __init__(self): self.names = {"adam", "sgd", "lion"}
@dataclasses.dataclass
class Config:
    rate: float
def update(x): return {"a", "b"}
for one in (Plain(), Config(0.1), update, lambda x: x in {"a", "b", "c"}, {"x", "y", "z"}, [{"k": {"u", "v", "w"}}]):
    print(stable_hash(one))
"""


def test_the_same_in_every_process() -> None:
    """Instances of classes in the script itself, sets, functions: what Prefect's own hash does not find again."""
    found = {
        subprocess.run(
            [sys.executable, "-c", ELSEWHERE], capture_output=True, text=True, check=True,
            env=os.environ | {"PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2", "3")
    }  # fmt: skip
    assert len(found) == 1
    assert len(set(next(iter(found)).split())) == 6


def test_circles_have_one_too() -> None:
    """By how far up the circle closes."""
    one: list[Any] = [1]
    one.append(one)
    same: list[Any] = [1]
    same.append(same)
    assert stable_hash(one) == stable_hash(same)


@pytest.mark.parametrize("value", [threading.Lock(), [threading.Lock()], (i for i in "a"), Plain(threading.Lock())])  # type: ignore[arg-type]
def test_what_does_not_pickle_has_none(value: Any) -> None:
    """The error says what it is."""
    with pytest.raises(UnhashableError, match=r"(lock|generator) does not pickle"):
        stable_hash(value)


def test_what_comes_later_is_told_apart() -> None:
    """Anywhere inside."""
    with pytest.raises(NotThereYetError):
        stable_hash({"a": [Config(0.1)]}, later=(Config,))
