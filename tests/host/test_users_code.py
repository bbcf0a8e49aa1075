"""What users have in the file of their flow and in their project: it runs on a host as it does at home."""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import datetime
import enum
import functools
import importlib
import multiprocessing
import pickle
import subprocess
import sys
import textwrap
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pydantic
import pytest
from prefect import flow, task

from prefect_tpu.core.messages import Raised, Returned
from prefect_tpu.host.supervisor import HostSupervisor
from prefect_tpu.wire import failures, pickling
from tests.host.host_support import CPU_JAX, PRELOAD, Run, supervisor

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def host() -> Iterator[HostSupervisor]:
    """Its processes have this test's `sys.path` as it is before any project is there."""
    with supervisor() as one:
        one.prepare(PRELOAD, CPU_JAX)
        yield one


def raised(run: Run) -> Raised:
    """What the run ended with; its process is gone."""
    ended = run.until_type(Raised, Returned)
    assert isinstance(ended, Raised), ended
    run.host.stop(run.id, 0)
    run.exited()
    return ended


# -- pytrees of JAX


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class State:
    w: Any
    rate: float = dataclasses.field(default=0.5, metadata={"static": True})


@jax.tree_util.register_pytree_node_class
class Pair:
    def __init__(self, a: Any, b: Any) -> None:
        self.a, self.b = a, b

    def tree_flatten(self) -> Any:
        return (self.a, self.b), None

    @classmethod
    def tree_unflatten(cls, _: Any, children: Any) -> Pair:
        return cls(*children)


@jax.tree_util.register_pytree_with_keys_class
class Keyed(Pair):
    def tree_flatten_with_keys(self) -> Any:
        return ((jax.tree_util.GetAttrKey("a"), self.a), (jax.tree_util.GetAttrKey("b"), self.b)), None


class Box:
    def __init__(self, x: Any) -> None:
        self.x = x


jax.tree_util.register_pytree_node(Box, lambda box: ((box.x,), None), lambda _, children: Box(*children))


@jax.tree_util.register_static
class Mode(str):
    __slots__ = ()


jax.tree_util.register_pytree_node(
    textwrap.TextWrapper, lambda one: ((one.width,), None), lambda _, children: textwrap.TextWrapper(*children)
)


jax.tree_util.register_pytree_node(
    collections.UserDict, lambda one: (tuple(one.values()), None), lambda _, children: collections.UserDict()
)


def test_registrations_of_installed_classes_travel(host: HostSupervisor) -> None:
    """The class goes by its name; who has registered it is a file that hosts do not have."""

    def fn(given: Any) -> int:
        return int(jax.jit(lambda one: one.width + 1)(given))

    assert Run(host, fn, textwrap.TextWrapper(70)).value() == 71


def test_registrations_travel_however_the_function_comes_by_the_class(host: HostSupervisor) -> None:
    """Through its module, for one."""

    def fn() -> int:
        return len(jax.tree.leaves(collections.UserDict(a=1, b=2)))

    assert Run(host, fn).value() == 2


class Attributes(dict[str, Any]):
    """As many configurations have it: each name is a key."""

    __getattr__ = dict.__getitem__


def test_a_result_that_answers_to_no_name(host: HostSupervisor) -> None:
    """JAX would ask it whether it can be waited for."""
    assert Run(host, lambda: Attributes(loss=1)).value() == {"loss": 1}


def test_registrations_of_pytrees_travel(host: HostSupervisor) -> None:
    """Each way to register a class."""

    def fn(state: State) -> Any:
        @jax.jit
        def step(state: State, pair: Pair, keyed: Keyed, box: Box, mode: Mode) -> Any:
            scale = 2.0 if mode == "double" else 1.0
            return State(state.w * state.rate * scale, state.rate), Pair(pair.b, pair.a), keyed, Box(box.x + 1)

        result = step(state, Pair(1.0, 2.0), Keyed(3.0, 4.0), Box(5.0), Mode("double"))
        paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(result[2])]
        return result, paths

    (state, pair, keyed, box), paths = Run(host, fn, State(jnp.ones(2), 0.25)).value()
    assert type(state) is State
    assert (state.w.tolist(), state.rate) == ([0.5, 0.5], 0.25)
    assert [float(one) for one in (pair.a, pair.b, keyed.a, box.x)] == [2.0, 1.0, 3.0, 6.0]
    assert paths == [".a", ".b"]


def test_a_class_that_its_metaclass_registers_is_refused() -> None:
    """As those of equinox: made empty, as classes are that travel, it would be registered without its fields."""

    class Meta(type):
        def __new__(cls, *args: Any) -> Any:
            made = super().__new__(cls, *args)
            fields = tuple(made.__annotations__)
            jax.tree_util.register_pytree_node(made, lambda one: (fields, None), lambda _, given: made())  # type: ignore[arg-type]
            return made

    class Layer(metaclass=Meta):
        weights: Any

    with pytest.raises(ValueError, match=r"Layer is made, and registered with JAX, by its metaclass .*by_name"):
        pickling.dumps((len, (Layer(),), {}), Path(__file__).parent)


@jax.custom_vjp
def clipped(x: Any) -> Any:
    return x


clipped.defvjp(lambda x: (x, None), lambda _, g: (g * 10,))


@jax.jit
def jitted(x: Any) -> Any:
    return x + 1


checkpointed = jax.checkpoint(lambda x: x**2)


def test_transformed_functions_travel(host: HostSupervisor) -> None:
    """jit, custom_vjp, checkpoint at the top of a file: what JAX has made of a function keeps JAX's own modules."""

    def fn() -> list[float]:
        return [float(jax.grad(clipped)(1.0)), float(jitted(1.0)), float(jax.grad(checkpointed)(3.0))]

    assert Run(host, fn).value() == [10.0, 2.0, 6.0]


# -- caches and their relatives


@functools.cache
def fibonacci(n: int) -> int:
    return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)


@functools.lru_cache(maxsize=2, typed=True)
def table(n: int) -> list[int]:
    return [n]


@functools.singledispatch
def kind_of(x: object) -> str:
    return "object"


@kind_of.register
def _(x: int) -> str:
    return "int"


@kind_of.register(list)
def _(x: list[object]) -> str:
    return "+".join(kind_of(one) for one in x)


UserId = typing.NewType("UserId", int)
T = typing.TypeVar("T")
P = typing.ParamSpec("P")


class Tool(typing.Generic[T]):
    @functools.cached_property
    def size(self) -> int:
        return 7

    def add(self, a: int, b: int) -> int:
        return a + b

    add_1 = functools.partialmethod(add, 1)

    @functools.singledispatchmethod
    def show(self, x: object) -> str:
        return "object"

    @show.register
    def _(self, x: int) -> str:
        return "int"

    @functools.cache  # noqa: B019 - people write it
    def square(self, x: UserId) -> int:
        return x * x


def test_caches_travel_empty(host: HostSupervisor) -> None:
    fibonacci(5)
    table(1)

    def fn() -> Any:
        before = fibonacci.cache_info().currsize, table.cache_info()
        same = table(3) is table(3)
        return before, fibonacci(30), same, table.cache_parameters(), table.__name__

    (sizes, info), number, same, parameters, name = Run(host, fn).value()
    assert (sizes, info.currsize, number, same) == (0, 0, 832040, True)
    assert (parameters, name) == ({"maxsize": 2, "typed": True}, "table")


def test_relatives_of_caches_travel(host: HostSupervisor) -> None:
    """Generic functions, cached properties, partial methods, names of types."""

    def fn() -> Any:
        tool = Tool[int]()
        wrapped: Callable[P, T] | None = None
        return (
            kind_of([1, "a", [2]]), tool.size, tool.size, tool.add_1(2), tool.show(1), tool.show("a"),
            tool.square(UserId(3)), UserId.__name__, wrapped,
        )  # fmt: skip

    assert Run(host, fn).value() == ("int+object+int", 7, 7, 3, "int", "object", 9, "UserId", None)


RATE = 0.5


def test_classes_inside_the_function_see_the_files_variables(host: HostSupervisor) -> None:
    """Also those that only the body of the class names."""

    def fn() -> Any:
        @dataclasses.dataclass
        class Inner:
            ident: UserId = dataclasses.field(default=UserId(3))
            rate: float = RATE

        return dataclasses.astuple(Inner())

    assert Run(host, fn).value() == (3, 0.5)


# -- enums


class Planet(enum.Enum):
    EARTH = (5.97e24, 6.37e6)
    MARS = (6.42e23, 3.39e6)

    def __init__(self, mass: float, radius: float) -> None:
        self.mass, self.radius = mass, radius

    def heavier(self, other: Planet) -> bool:
        return self.mass > other.mass


class Perm(enum.IntFlag):
    R = 1
    W = 2
    RW = 3
    READ = 1


class Unit(bytes, enum.Enum):
    def __new__(cls, number: int, label: str) -> Unit:
        made = bytes.__new__(cls, [number])
        made._value_ = number
        made.label = label  # type: ignore[attr-defined]
        return made

    METRE = (1, "m")


class Day(datetime.date, enum.Enum):
    FIRST = 2020, 1, 2


class Size(enum.StrEnum):
    SMALL = enum.auto()
    LARGE = enum.auto()


class Strict(enum.Flag, boundary=enum.STRICT):
    A = enum.auto()
    B = enum.auto()


def test_members_of_enums_are_the_same_on_both_ends(host: HostSupervisor) -> None:
    """With what `__init__` and `__new__` gave them, aliases, and combinations."""

    def fn(planet: Planet, perms: list[Perm], unit: Unit, by_size: dict[Size, int]) -> Any:
        assert planet is Planet.MARS
        assert perms == [Perm.RW, Perm.R | Perm.W, Perm.READ]
        assert perms[0] is Perm.RW is Perm(3)
        assert perms[2] is Perm.R
        assert Planet.EARTH.heavier(planet)
        assert (bytes(unit), unit.label, unit is Unit(1)) == (b"\x01", "m", True)  # type: ignore[attr-defined]
        assert by_size[Size.SMALL] == 1
        assert Day.FIRST.year == 2020
        assert [one.name for one in Perm] == ["R", "W"]
        assert Strict(3) == Strict.A | Strict.B
        with pytest.raises(ValueError, match="8"):
            Strict(8)
        return planet.radius, Planet.EARTH, [*Size], Perm.RW, unit, Strict.A

    sent = (Planet.MARS, [Perm.RW, Perm.R | Perm.W, Perm.R], Unit.METRE, {Size.SMALL: 1})
    radius, planet, sizes, perm, unit, strict = Run(host, fn, *sent).value()
    assert radius == 3.39e6
    assert planet is Planet.EARTH
    assert (sizes, perm, strict) == ([Size.SMALL, Size.LARGE], Perm.RW, Strict.A)
    assert perm is Perm.RW
    assert unit is Unit.METRE


# -- models of pydantic


class Inner(pydantic.BaseModel):
    width: int = 1


class Outer(pydantic.BaseModel):
    a: Inner
    b: Inner


class Left(pydantic.BaseModel):
    right: Right | None = None
    count: typing.Annotated[int, pydantic.Field(gt=0)] = 1


class Right(pydantic.BaseModel):
    left: Left | None = None


class Unfinished(pydantic.BaseModel):
    """Its annotation is there now, but pydantic has not looked yet."""

    first: Later
    second: Later


class Later(pydantic.BaseModel):
    x: int


class Labelled(pydantic.BaseModel, typing.Generic[T]):
    label: str
    value: T


@pydantic.validate_call
def widths(a: Inner, b: Inner) -> int:
    return a.width + b.width


def test_models_of_pydantic_travel(host: HostSupervisor) -> None:
    """One used twice, models that name each other, a forward reference; results are the driver's own classes."""

    def fn(given: Left) -> Any:
        with pytest.raises(pydantic.ValidationError, match=r"left\.count"):
            Left(right={"left": {"count": 0}})  # type: ignore[arg-type]
        outer = Outer(a={}, b={"width": "3"})  # type: ignore[arg-type]
        return outer, Left(right=given.right), Unfinished(first={"x": 1}, second={"x": 2})  # type: ignore[arg-type]

    outer, left, unfinished = Run(host, fn, Left(right=Right(left=Left()))).value()
    assert (type(outer), outer) == (Outer, Outer(a=Inner(), b=Inner(width=3)))
    assert type(outer.b) is Inner
    assert (type(left), type(left.right)) == (Left, Right)
    assert (type(unfinished), unfinished.second.x) == (Unfinished, 2)


def test_models_inside_the_function_use_those_of_the_file(host: HostSupervisor) -> None:
    """Named in annotations only, which are texts here; also as parameters of generic models, and of functions."""

    def fn() -> Any:
        class Here(pydantic.BaseModel):
            outer: Outer
            lefts: list[Left]

        here = Here.model_validate({"outer": {"a": {}, "b": {}}, "lefts": [{"right": {}}]})
        labelled = Labelled[list[Inner]](label="a", value=[{"width": 2}])  # type: ignore[list-item]
        return here.model_dump_json(), labelled, widths({}, {"width": 4})  # type: ignore[arg-type]

    text, labelled, total = Run(host, fn).value()
    assert text == '{"outer":{"a":{"width":1},"b":{"width":1}},"lefts":[{"right":{"left":null},"count":1}]}'
    assert type(labelled) is Labelled[list[Inner]]
    assert labelled.value == [Inner(width=2)]
    assert total == 5


# -- found under their names


@dataclasses.dataclass
class Config:
    rate: float


def double(config: Config) -> Config:
    return Config(config.rate * 2)


def test_plain_pickle_finds_classes_and_functions(host: HostSupervisor) -> None:
    """Also of the class of an argument, which no function names."""

    def fn(given: object) -> Any:
        copy = pickle.loads(pickle.dumps((given, double)))
        return copy[0] == given, copy[1] is double, type(given).__module__ in sys.modules

    assert Run(host, fn, Config(0.1)).value() == (True, True, True)


@pytest.mark.parametrize("method", ["spawn", "fork", "forkserver"])
def test_processes_that_the_function_starts_find_them(host: HostSupervisor, method: str) -> None:
    """A pool of multiprocessing; one started anew knows nothing of the project but what the host has."""

    def fn(rates: list[float]) -> list[float]:
        with multiprocessing.get_context(method).Pool(2) as pool:
            return [one.rate for one in pool.map(double, [Config(rate) for rate in rates])]

    assert Run(host, fn, [1.0, 2.0]).value() == [2.0, 4.0]


MAIN_PROGRAM = """
import concurrent.futures, dataclasses, functools, multiprocessing, pickle, typing
Rate = typing.NewType("Rate", float)
@functools.cache
def main_table(rate: Rate):
    return rate + 1
@dataclasses.dataclass
class MainConfig:
    rate: float
def main_double(config):
    return MainConfig(config.rate * 2)
def main_fn(config):
    with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        result = pool.submit(main_double, pickle.loads(pickle.dumps(config))).result()
    import __main__
    return main_table(result.rate), __main__.MainConfig is MainConfig is type(result)
"""


def test_what_the_main_program_has_is_found_too(host: HostSupervisor) -> None:
    main: dict[str, Any] = vars(sys.modules["__main__"])
    before = set(main)
    exec(MAIN_PROGRAM, main)
    try:
        assert Run(host, main["main_fn"], main["MainConfig"](1.5)).value() == (4.0, True)
    finally:
        for name in set(main) - before:
            del main[name]


# -- a project of several modules


@pytest.fixture
def project(host: HostSupervisor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """Writes files of a project and imports its `program`; the host has none of them, nor their folder on its path."""

    def write(**files: str) -> Any:
        (tmp_path / "pyproject.toml").touch()
        for name, text in files.items():
            path = tmp_path / f"{name.replace('__in__', '/')}.py"
            path.parent.mkdir(exist_ok=True)
            path.write_text(textwrap.dedent(text))
        importlib.invalidate_caches()
        return importlib.import_module("program")

    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)
    yield write
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


def test_modules_that_only_the_function_imports_are_run_on_the_host(
    host: HostSupervisor, project: Callable[..., Any]
) -> None:
    """With all that these import, relative imports and packages among them; the driver imports none of it."""
    program = project(
        program="""
            def fn():
                import late
                from package.deep import Deep
                return late.answer() + Deep().value, late.__file__.endswith("late.py")
        """,
        late="import helper\nclass Late: value = 1\ndef answer():\n    return helper.number() + Late.value\n",
        helper="def number():\n    from package import VERSION\n    return VERSION\n",
        package__in____init__="VERSION = 100\n",
        package__in__deep="from . import base\nclass Deep(base.Base):\n    value = 20\n",
        package__in__base="class Base: ...\n",
    )
    assert Run(host, program.fn).value() == (121, True)
    assert not {"late", "helper", "package"} & set(sys.modules)


def test_no_class_is_there_twice(host: HostSupervisor, project: Callable[..., Any]) -> None:
    """A module that travels by value, and is imported inside the function and by what that imports, is one module."""
    program = project(
        program="""
            from package.model import Net

            def fn(net):
                import late
                import package.model
                from package.model import Other
                import pickle

                return (
                    isinstance(net, package.model.Net), late.Net is Net is package.model.Net,
                    issubclass(Other, Net), late.make(), pickle.loads(pickle.dumps(net)).size,
                )
        """,
        late="from package.model import Net, make\n",
        package__in____init__="",
        package__in__model="""
            import prefect
            from prefect import task

            class Net:
                size = 3

            class Other(Net): ...

            def make():
                return type(Other()).__mro__[1] is Net
        """,
    )
    assert Run(host, program.fn, program.Net()).value() == (True, True, True, True, 3)


def test_a_module_that_does_not_travel_says_what_to_do(host: HostSupervisor, project: Callable[..., Any]) -> None:
    """It is named nowhere, so nobody can know of it: the error is the same wherever hosts are."""
    program = project(
        program="def fn():\n    import importlib\n    return importlib.import_module('plug' + 'in').x\n",
        plugin="x = 1\n",
    )
    error = raised(Run(host, program.fn))
    assert (error.stage, error.type_name) == ("function", "ModuleNotFoundError")
    assert "Name it in" in error.message
    assert "by_name" in error.message


def test_what_is_on_the_hosts_travels_by_its_name(host: HostSupervisor, project: Callable[..., Any]) -> None:
    """by_name: a module of the project that the hosts have is not sent, whatever cannot be pickled in it."""
    program = project(
        program="import wave\ndef fn():\n    return wave.WAVE_FORMAT_PCM, mine.held()\nimport mine\n",
        mine="import threading\nLOCK = threading.Lock()\ndef held():\n    return LOCK.locked()\n",
    )
    root = pickling.project_root_of(program.fn)
    with pytest.raises(ValueError, match=r"'LOCK' of module 'mine' -> _thread.lock.*by_name=\('mine',\)"):
        pickling.dumps((program.fn, (), {}), root)
    error = raised(Run(host, program.fn, by_name=("mine",)))
    assert error.stage == "unpickle"  # which no repetition mends
    assert "by_name: module 'mine' is not installed on host" in error.message
    path = str(Path(program.__file__).parent)
    assert Run(host, program.fn, by_name=("mine",), user_env=CPU_JAX | {"PYTHONPATH": path}).value() == (1, False)


# -- what can be called


class Trainer:
    def __init__(self, start: int) -> None:
        self.start = start

    def __call__(self, x: int) -> Config:
        return Config(self.start + x)

    def method(self, x: int) -> Config:
        return double(self(x))


def plain(a: int, b: int = 0) -> Config:
    return Config(a + b)


@pytest.mark.parametrize(
    ("fn", "rate"),
    [
        (Trainer(1), 3),
        (Trainer(1).method, 6),
        (functools.partial(plain, b=3), 5),
        (functools.partial(Trainer(1)), 3),
        (functools.partial(functools.reduce, lambda _, x: Config(x)), None),
        (Trainer, None),
    ],
)
def test_objects_that_can_be_called_travel_with_their_project(
    host: HostSupervisor, fn: Callable[..., Any], rate: int | None
) -> None:
    assert pickling.project_root_of(fn) == Path(__file__).parents[2]
    if rate is not None:
        assert Run(host, fn, 2).value() == Config(rate)


# -- Prefect's tasks


@task(name="adds")
def add_task(a: int, b: int = 1) -> int:
    return a + b


@task
async def add_later(a: int) -> int:
    return a + 1


@flow
def whole_flow() -> int:
    return 1


class WithTasks:
    def __init__(self, start: int) -> None:
        self.start = start

    @task
    def add(self, a: int) -> int:
        return self.start + a

    def run(self) -> int:
        return self.add(1)


def test_tasks_travel_as_their_functions(host: HostSupervisor) -> None:
    """Called, by `.fn`, with options, as methods, async; neither Prefect nor Ray is imported for them."""
    bound = WithTasks(20).add

    async def fn(thing: WithTasks) -> Any:
        found = (
            add_task(1), add_task.fn(1, b=2), add_task.with_options(name="x")(5), await add_later(1),
            thing.run(), thing.add(2), bound(3), whole_flow.fn(),
        )  # fmt: skip
        return found, [name for name in ("prefect", "ray", "pydantic") if name in sys.modules]

    assert Run(host, fn, WithTasks(10)).value() == ((2, 3, 6, 2, 11, 12, 23, 1), [])


@pytest.mark.parametrize(
    ("fn", "says"),
    [
        (lambda: add_task.submit(1), r"\.submit\(\) of task 'adds'.*Call it"),
        (lambda: add_task.map([1]), r"\.map\(\) of task 'adds'"),
        (lambda: whole_flow(), r"flow 'whole-flow'.*\.fn"),
    ],
)
def test_what_needs_prefects_api_is_refused_at_once(host: HostSupervisor, fn: Callable[..., Any], says: str) -> None:
    error = raised(Run(host, fn))
    with pytest.raises(ValueError, match=says):
        raise ValueError(error.message)


# -- exceptions


class Diverged(Exception):  # noqa: N818
    def __init__(self, step: int, loss: float) -> None:
        super().__init__(f"diverged at step {step}")
        self.step, self.loss = step, loss


class Halved(Exception):  # noqa: N818
    def __init__(self, text: str, part: object = None) -> None:
        super().__init__(f"<{text}>")
        self.part = part


class Missing(FileNotFoundError):  # noqa: N818
    def __init__(self, path: str) -> None:
        super().__init__(2, "not there", path)


class Of(ExceptionGroup):
    def __new__(cls, names: list[str]) -> Of:
        return super().__new__(cls, "several", [KeyError(name) for name in names])

    def __init__(self, names: list[str]) -> None:
        self.names = names


class Answered(Exception):  # noqa: N818
    def __init__(self, response: Any) -> None:
        super().__init__(response)
        self.response = response

    def __str__(self) -> str:
        return f"the server said {self.response.code}"


def test_an_exception_whose_text_needs_what_does_not_travel(host: HostSupervisor) -> None:
    """It is of its class, with the text that it had: who shows it, as Prefect does, must not fail."""

    def fn() -> None:
        import threading
        import types

        raise Answered(types.SimpleNamespace(code=503, lock=threading.Lock()))

    error = failures.rebuild(raised(Run(host, fn)))
    assert isinstance(error, Answered)
    assert (type(error).__name__, str(error)) == ("Answered", "the server said 503")
    assert repr(error) == "Answered('the server said 503')"


def test_exceptions_arrive_as_they_were(host: HostSupervisor) -> None:
    """Classes whose `__init__` takes something else than they tell their base; attributes that do not pickle stay."""

    def fn(which: str) -> None:
        import threading

        if which == "diverged":
            raise Diverged(3, 0.5)
        if which == "halved":
            raise Halved("a", threading.Lock())
        if which == "missing":
            raise Missing("/x")
        raise Of(["a", "b"])

    def error_of(which: str) -> Any:
        return failures.rebuild(raised(Run(host, fn, which)))

    diverged = error_of("diverged")
    assert type(diverged) is Diverged
    assert (str(diverged), diverged.step, diverged.loss) == ("diverged at step 3", 3, 0.5)
    halved = error_of("halved")
    assert (type(halved), str(halved), hasattr(halved, "part")) == (Halved, "<a>", False)
    missing = error_of("missing")
    assert (type(missing), missing.errno, missing.filename) == (Missing, 2, "/x")
    several = error_of("several")
    assert (type(several), several.names, len(several.exceptions)) == (Of, ["a", "b"], 2)


def test_the_typed_in(host: HostSupervisor, tmp_path: Path) -> None:
    """A function of a REPL or a notebook: the working directory is its project."""
    (tmp_path / "mine_too.py").write_text("def number():\n    return 4\n")
    code = """
        import sys
        from prefect_tpu.wire import pickling
        import mine_too
        exec("def fn():\\n    return mine_too.number()")
        sys.stdout.buffer.write(pickling.dumps((fn, (), {}), pickling.project_root_of(fn))[0])
    """
    made = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], cwd=tmp_path, capture_output=True, check=True)
    loaded = concurrent.futures.ThreadPoolExecutor(1).submit(pickling.loads, [made.stdout]).result()
    assert loaded[0]() == 4
