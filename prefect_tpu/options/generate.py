"""Writes given.py from gang.py: `python -m prefect_tpu.options.generate`; with --check it only compares.

What may be given is written down, so that editors and type checkers see it: every option, or None for "not said".
"""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from prefect_tpu.options.declare import form_of
from prefect_tpu.options.gang import GangOptions
from prefect_tpu.options.types import Takes

WIDTH = 120
"""Of a line, as for ruff."""


@dataclass(frozen=True, slots=True)
class Written:
    """A file that is generated from a class of options.

    Attributes:
        model: the class.
        target: the file.
        head: its first lines, up to the first class; `{types}` are the names of the types that it needs.
        classes: how each class in it begins, and what makes the line of a field.
    """

    model: type[BaseModel]
    target: Path
    head: str
    classes: tuple[tuple[str, Callable[[str, str, FieldInfo], str]], ...]

    def text(self) -> str:
        """What is to be in the file."""
        types = _annotations(self.model)
        needed = {one.id for text in types.values() for one in ast.walk(ast.parse(text)) if isinstance(one, ast.Name)}
        text = self.head.replace("{types}", "".join(f"    {name},\n" for name in sorted(needed - {"None"})))
        for beginning, line in self.classes:
            lines = [line(name, written, self.model.model_fields[name]) for name, written in types.items()]
            text += f"\n\n{beginning}\n" + "\n".join([*lines, ""])
        return text


def _annotations(model: type[BaseModel]) -> dict[str, str]:
    """As they are written in the class."""
    tree = ast.parse(inspect.getsource(model))
    assert isinstance(tree.body[0], ast.ClassDef)
    found = [one for one in tree.body[0].body if isinstance(one, ast.AnnAssign)]
    return {one.target.id: ast.unparse(one.annotation) for one in found if isinstance(one.target, ast.Name)}


def argument(name: str, text: str, field: FieldInfo) -> str:
    """What callers may pass, or None."""
    return f"    {name}: {_or_none(next((one.text for one in markers(field) if isinstance(one, Takes)), text))}"


def markers(field: FieldInfo) -> list[Any]:
    """What is beside a field's type, None or not."""
    return [*field.metadata, *(m for one in _arguments(field.annotation) for m in _arguments(one)[1:])]


def _arguments(annotation: Any) -> tuple[Any, ...]:
    """Of a union, or of Annotated with its metadata."""
    return (*getattr(annotation, "__args__", ()), *getattr(annotation, "__metadata__", ()))


def _or_none(text: str) -> str:
    return text if text.endswith("| None") else f"{text} | None"


def form_field(name: str, text: str, field: FieldInfo) -> str:
    """One field of a block, laid out as ruff does it."""
    form = form_of(field)
    arguments = []
    if not form.shown:
        arguments.append("default=None")
    elif isinstance(field.default, dict | list):
        arguments.append(f"default_factory={type(field.default).__name__}")
    else:
        arguments.append(f"default={quoted(field.default)}")
    title = field.title
    if title is None and name.endswith("_seconds"):
        title = name.removesuffix("_seconds").replace("_", " ").capitalize() + " (seconds)"
    if title is not None:
        arguments.append(f"title={quoted(title)}")
    arguments.append(f"description={quoted(form.text)}")
    head = f"    {name}: {text if form.shown else _or_none(text)} = Field("
    return _call(head, arguments)


def _call(head: str, arguments: list[str]) -> str:
    inside = ", ".join(arguments)
    if len(head) + len(inside) + 1 <= WIDTH:
        return f"{head}{inside})"
    if 8 + len(inside) <= WIDTH:
        return f"{head}\n        {inside}\n    )"
    return "\n".join([head, *(f"        {one}," for one in arguments), "    )"])


def quoted(value: Any) -> str:
    """As it is written in code."""
    if not isinstance(value, str):
        return repr(value)
    quote = "'" if '"' in value else '"'
    return f"{quote}{value}{quote}"


GIVEN = Written(
    model=GangOptions,
    target=Path(__file__).with_name("given.py"),
    head='''\
"""Generated from gang.py by generate.py, do not edit. What runners and pools may be given; None: not given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

from pydantic import Field, SecretStr

from prefect_tpu.options.declare import Options
from prefect_tpu.options.types import (
{types})
''',
    classes=(
        (
            '''\
class GivenOptions(TypedDict, total=False):
    """Arguments of a runner, and of `pool.runner()`."""
''',
            argument,
        ),
        (
            '''\
class PoolOptions(Options):
    """Fields of a pool's block; an empty one is not said there."""
''',
            form_field,
        ),
    ),
)


def run(files: Iterable[Written], arguments: list[str]) -> int:
    """Write the files, or say which are not up to date."""
    old = [one for one in files if not one.target.exists() or one.target.read_text() != one.text()]
    if "--check" in arguments:
        for one in old:
            print(f"{one.target.name} is not what {one.model.__name__} says: run this again without --check")
        return 1 if old else 0
    for one in old:
        one.target.write_text(one.text())
    return 0


if __name__ == "__main__":
    sys.exit(run([GIVEN], sys.argv[1:]))
