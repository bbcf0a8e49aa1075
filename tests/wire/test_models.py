"""Classes of pydantic that travel by value: what they check and how they look is the same where they arrive."""

from __future__ import annotations

import dataclasses
import pickle
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, NamedTuple, TypeVar

import pydantic
import pydantic.dataclasses
import pydantic_settings
import pytest
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from prefect_tpu.core.errors import ConfigurationError
from prefect_tpu.wire import pickling

T = TypeVar("T")

ELSEWHERE = """
import sys
from prefect_tpu.wire import host_modules, pickling
host_modules.become_host()
fn, args, _ = pickling.loads([sys.stdin.buffer.read()])
result = fn(*args)
sys.stdout.buffer.write(pickling.dumps_inline(result, known=pickling.ClassesOfDriver()))
"""


def elsewhere(fn: Callable[..., Any], *args: Any, root: Path = Path(__file__).parent) -> Any:
    """What `fn` returns in a process that has none of this project's files."""
    (stream,) = pickling.dumps((fn, args, {}), root)
    ran = subprocess.run([sys.executable, "-c", ELSEWHERE], input=bytes(stream), capture_output=True, cwd="/")
    assert ran.returncode == 0, ran.stderr.decode()
    return pickle.loads(ran.stdout)


class Part(BaseModel):
    width: int = 1


def doubled(value: int) -> int:
    """A validator that has validators itself, one of them of the model it belongs to."""
    MANY.validate_python([])
    return sum(one.width for one in PARTS.validate_python([{"width": value}, {"width": value}]))


class Checked(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", title="The checked")
    x: Annotated[int, Field(gt=2)]
    part: Part = Part()
    parts: dict[str, Part] = {}
    _seen: list[int] = pydantic.PrivateAttr(default_factory=list)

    @pydantic.field_validator("x")
    @classmethod
    def _double(cls, value: int) -> int:
        return doubled(value)

    @pydantic.model_validator(mode="after")
    def _note(self) -> Checked:
        self._seen.append(self.x)
        return self

    @pydantic.computed_field  # type: ignore[prop-decorator]
    @property
    def area(self) -> int:
        return self.x * self.part.width

    @pydantic.field_serializer("x")
    def _text(self, value: int) -> str:
        return f"<{value}>"


PARTS = TypeAdapter(list[Part])
MANY = TypeAdapter(list[Checked])


class Child(Checked):
    more: Checked


def test_what_a_model_checks_and_shows() -> None:
    """Validators, constraints, private attributes, computed fields, serializers, its schema; and in a child of it."""

    def fn() -> Any:
        one = Checked(x=3)
        with pytest.raises(pydantic.ValidationError, match="greater than 2"):
            Checked(x=1)
        with pytest.raises(pydantic.ValidationError, match="Extra inputs"):
            Checked(x=3, other=1)  # type: ignore[call-arg]
        with pytest.raises(pydantic.ValidationError, match="frozen"):
            one.x = 3  # type: ignore[misc]
        child = Child(x=3, more={"x": 4, "parts": {"a": {}}})  # type: ignore[arg-type]
        return one, one._seen, child.model_dump(), Child.model_json_schema()

    one, seen, dumped, schema = elsewhere(fn)
    assert type(one) is Checked
    assert (one.x, seen) == (6, [6])
    plain = {"x": "<6>", "part": {"width": 1}, "parts": {}, "area": 6}
    assert dumped == plain | {"more": plain | {"x": "<8>", "area": 8, "parts": {"a": {"width": 1}}}}
    assert schema == Child.model_json_schema()


class Tree(BaseModel):
    name: str
    below: list[Tree] = []


class Cat(BaseModel):
    kind: Literal["cat"] = "cat"
    part: Part = Part()


class Dog(BaseModel):
    kind: Literal["dog"] = "dog"
    part: Part = Part()


class Home(BaseModel):
    pet: Annotated[Cat | Dog, Field(discriminator="kind")]
    others: list[Cat | Dog] = []


class Env(pydantic_settings.BaseSettings):
    a: Part = Part()
    b: Part = Part()


class Lazy(BaseModel):
    model_config = ConfigDict(defer_build=True)
    a: Part
    b: Part


class Parts(pydantic.RootModel[list[Part]]): ...


class Row(NamedTuple):
    a: Part
    b: Part


@dataclasses.dataclass
class Plain:
    a: Part
    other: Plain | None = None


@pydantic.dataclasses.dataclass
class Strict:
    a: Part
    b: Part
    other: Strict | None = None


class Mixed(BaseModel):
    row: Row
    plain: Plain
    strict: Strict


class Box(BaseModel, Generic[T]):
    item: T
    more: list[T] = []


class HasBox(BaseModel):
    box: Box[int]
    trees: Box[Tree]


@pytest.mark.parametrize(
    ("model", "given"),
    [
        (Tree, {"name": "a", "below": [{"name": "b", "below": [{"name": "c"}]}]}),
        (Home, {"pet": {"kind": "dog"}, "others": [{"kind": "cat"}]}),
        (Env, {"b": {"width": 5}}),
        (Lazy, {"a": {}, "b": {}}),
        (Parts, [{}, {"width": 2}]),
        (Mixed, {"row": [{}, {}], "plain": {"a": {}, "other": {"a": {}}}, "strict": {"a": {}, "b": {}}}),
        (HasBox, {"box": {"item": 1}, "trees": {"item": {"name": "a"}, "more": [{"name": "b"}]}}),
        (Box[list[Tree]], {"item": [{"name": "a"}]}),
    ],
)
def test_kinds_of_models(model: type[BaseModel], given: Any) -> None:
    """Sent as an argument, made there, and back as the driver's own."""

    def fn(like: BaseModel, given: Any) -> Any:
        made = type(like).model_validate(given)
        assert made == like
        assert type(made).model_validate_json(made.model_dump_json()) == made
        return made

    here = model.model_validate(given)
    there = elsewhere(fn, here, given)
    assert type(there) is model
    assert there == here


def test_a_generic_model_has_its_parameters_once() -> None:
    """`Box[int]` there is the one that arrived, and `Box[Box[Part]]`, which only the function names, is ours here."""

    def fn(given: HasBox) -> Any:
        return type(given.box) is Box[int], Box[Box[Part]](item={"item": {}})  # type: ignore[arg-type]

    same, boxes = elsewhere(fn, HasBox(box={"item": 1}, trees={"item": {"name": "a"}}))  # type: ignore[arg-type]
    assert same
    assert type(boxes) is Box[Box[Part]]


def test_models_of_a_function() -> None:
    """They come back by value if they were made there; a lock beside them here does not matter."""
    lock = threading.Lock()

    class Inside(BaseModel):
        part: Part
        other: Beside | None = None

    class Beside(BaseModel):
        inside: Inside | None = None

    Inside.model_rebuild()

    def fn() -> Any:
        class A(BaseModel):
            b: B | None = None
            part: Part
            again: Part

        class B(BaseModel):
            a: A | None = None

        A.model_rebuild()
        return Inside(part={}, other={"inside": {"part": {}}}), A(b={}, part={}, again={})  # type: ignore[arg-type]

    inside, made = elsewhere(fn)
    assert not lock.locked()
    assert type(inside.other) is Beside
    assert type(made).model_validate({"b": {}, "part": {}, "again": {}}) == made
    assert type(made.part) is Part


def test_models_of_the_main_program_and_of_a_project(tmp_path: Path) -> None:
    """Only their function is named: nothing else of their file needs to be there for the annotations."""
    code = """
        from __future__ import annotations
        from pydantic import BaseModel
        class One(BaseModel):
            two: Two
            again: Two
        class Two(BaseModel):
            one: One | None = None
        def fn():
            return One(two={}, again={"one": {"two": {}, "again": {}}}).model_dump_json()
    """
    (tmp_path / "program.py").write_text(textwrap.dedent(code))
    dump = """
import sys
from pathlib import Path
from prefect_tpu.wire import pickling
sys.stdout.buffer.write(pickling.dumps((fn, (), {}), Path.cwd())[0])
"""
    for head in (textwrap.dedent(code), "from program import fn\n"):
        sent = subprocess.run([sys.executable, "-c", head + dump], cwd=tmp_path, capture_output=True, check=True)
        show = ELSEWHERE.replace("pickling.dumps_inline(result, known=pickling.ClassesOfDriver())", "result.encode()")
        ran = subprocess.run([sys.executable, "-c", show], input=sent.stdout, capture_output=True, cwd="/")
        assert ran.stdout == b'{"two":{"one":null},"again":{"one":{"two":{"one":null},"again":{"one":null}}}}', ran


class Never(BaseModel):
    x: Nowhere  # type: ignore[name-defined]  # noqa: F821


@pydantic.dataclasses.dataclass
class NeverEither:
    x: Nowhere  # type: ignore[name-defined]  # noqa: F821


def test_what_is_not_defined_is_so_there() -> None:
    """As at home: a model that waits for a name is no hindrance until it is used."""

    def fn() -> str:
        with pytest.raises(pydantic.PydanticUserError, match="`Never` is not fully defined") as caught:
            Never(x=1)
        return str(caught.value.code)

    assert elsewhere(fn) == "class-not-fully-defined"


def test_what_cannot_wait_is_refused_here() -> None:
    """Dataclasses of pydantic and adapters that wait for a name; the error says what to do."""
    adapter = TypeAdapter("list[Nowhere]", config=ConfigDict(defer_build=True))
    with pytest.raises(ConfigurationError, match=r"NeverEither is a dataclass of pydantic.*rebuild_dataclass.*by_name"):
        pickling.dumps((lambda: NeverEither(1), (), {}), Path(__file__).parent)
    with pytest.raises(ConfigurationError, match=r"closure variable 'adapter'.*Call its \.rebuild\(\)"):
        pickling.dumps((lambda: adapter, (), {}), Path(__file__).parent)
