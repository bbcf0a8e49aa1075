"""What is sent of a module, and what it is where it arrives."""

from __future__ import annotations

import importlib
import types
from dataclasses import dataclass
from typing import Any

WAITING = "__prefect_tpu_waiting__"
"""In a module's variables: those that did not come with it."""


@dataclass(frozen=True, slots=True)
class Source:
    """The file of a module that is imported on the hosts alone.

    Attributes:
        text: None for a folder without an `__init__.py`.
        file: where the driver has it.
        is_package: whether modules are below it.
    """

    text: str | None
    file: str
    is_package: bool


@dataclass(frozen=True, slots=True)
class ByName:
    """A variable of a module that is looked up elsewhere when somebody asks for it."""

    module: str
    name: str = ""


@dataclass(frozen=True, slots=True)
class LeftBehind:
    """A variable of a module that did not travel, and why."""

    reason: str


class HostModule(types.ModuleType):
    """A module with what has travelled of it."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__dict__[WAITING] = {}

    def __getattr__(self, name: str) -> Any:
        waiting = self.__dict__.get(WAITING, {}).get(name)
        if isinstance(waiting, ByName):
            value = importlib.import_module(waiting.module)
            for part in waiting.name.split(".") if waiting.name else ():
                value = getattr(value, part)
            setattr(self, name, value)
            return value
        what = f"{name!r} of module {self.__name__!r}"
        reason = waiting.reason if waiting is not None else (
            "is not on this host: the module travelled by value, with what the function uses of it. Name it in an "
            "import statement of the function, or install the module on the hosts and name it in by_name"
        )  # fmt: skip
        raise AttributeError(f"{what} {reason}")
