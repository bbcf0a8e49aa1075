"""What travels, how it travels, and what an error says about what cannot."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import importlib
import pickle
import socket
import subprocess
import sys
import textwrap
import threading
import weakref
from enum import Enum
from pathlib import Path

import cloudpickle
import numpy
import pytest

from prefect_tpu.core.errors import ConfigurationError
from prefect_tpu.wire import payload, pickling
from prefect_tpu.wire.project import check_by_name


def in_another_process(code: str, stdin: bytes, cwd: Path) -> bytes:
    """Run code that has the pickled bytes as `data`; it must print its answer."""
    program = f"import sys; data = sys.stdin.buffer.read()\n{textwrap.dedent(code)}"
    return subprocess.run(
        [sys.executable, "-c", program], input=stdin, capture_output=True, check=True, cwd=cwd
    ).stdout.strip()


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's project: a package beside a flow file, found by its pyproject.toml."""
    root = tmp_path / "project"
    (root / "userpackage").mkdir(parents=True)
    (root / "pyproject.toml").touch()
    (root / "userpackage" / "__init__.py").touch()
    (root / "userpackage" / "parts.py").write_text("SIZE = 4\nclass Net:\n    def size(self):\n        return SIZE\n")
    (root / "userflow.py").write_text(
        "import userpackage.parts\nfrom userpackage.parts import Net\n"
        "def fn():\n    return Net().size() + userpackage.parts.SIZE\n"
    )
    monkeypatch.syspath_prepend(str(root))
    yield root
    for name in ("userpackage", "userpackage.parts", "userflow"):
        sys.modules.pop(name, None)


def test_project_root_is_the_nearest_directory_with_a_marker(project: Path, tmp_path: Path) -> None:
    import userflow  # type: ignore[import-not-found]
    from userpackage.parts import Net  # type: ignore[import-not-found]

    assert pickling.project_root_of(userflow.fn) == project
    assert pickling.project_root_of(Net.size) == project
    assert pickling.project_root_of(functools.wraps(userflow.fn)(lambda: None)) == project
    assert pickling.project_root_of(len) is None
    assert pickling.project_root_of(textwrap.dedent) is None  # the standard library is on the hosts
    assert pickling.project_root_of(cloudpickle.dumps) is None
    assert pickling.project_root_of(eval("lambda: None")) == Path(__file__).parents[2]  # the file that has made it


def test_without_a_marker_the_project_begins_above_its_packages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`python -m app.cli.main` in an image without pyproject.toml: what it imports of `app` is the project's."""
    for folder in ("app", "app/cli", "spaces/deep"):
        (tmp_path / folder).mkdir(parents=True)
    for package in ("app", "app/cli"):
        (tmp_path / package / "__init__.py").touch()
    (tmp_path / "app" / "lib.py").write_text("def f():\n    return 4\n")
    (tmp_path / "app" / "cli" / "run.py").write_text("from ..lib import f\ndef fn():\n    return f()\n")
    (tmp_path / "spaces" / "deep" / "one.py").write_text("def fn():\n    return 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    run, one = importlib.import_module("app.cli.run"), importlib.import_module("spaces.deep.one")
    try:
        assert pickling.project_root_of(run.fn) == tmp_path
        assert pickling.project_root_of(one.fn) == tmp_path
        (stream,) = pickling.dumps(run.fn, pickling.project_root_of(run.fn))
        assert in_another_process("import pickle; print(pickle.loads(data)())", bytes(stream), Path("/")) == b"4"
    finally:
        for name in ("app", "app.lib", "app.cli", "app.cli.run", "spaces", "spaces.deep", "spaces.deep.one"):
            sys.modules.pop(name, None)


@dataclasses.dataclass
class Options:
    """With a default that there is not, and one that is made."""

    rate: float
    tags: list[str] = dataclasses.field(default_factory=list)


def test_what_is_known_by_being_it_is_the_same_there() -> None:
    """`dataclasses.MISSING`: else a subclass that is made on the host would take it for a default."""

    def fn() -> tuple[list[str], list[str]]:
        @dataclasses.dataclass
        class More(Options):
            pass

        required = [one.name for one in dataclasses.fields(Options) if one.default is dataclasses.MISSING]
        return required, More(1.0).tags

    (stream,) = pickling.dumps(fn, Path(__file__).parents[2])
    code = "import pickle; print(pickle.loads(data)())"
    assert in_another_process(code, bytes(stream), Path("/")) == b"(['rate', 'tags'], [])"


def test_parsers_of_the_command_line(tmp_path: Path) -> None:
    """What is suppressed stays so."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rate", type=float)
    (stream,) = pickling.dumps(parser)
    code = "import pickle; print(vars(pickle.loads(data).parse_args(['--rate', '2'])))"
    assert in_another_process(code, bytes(stream), tmp_path) == b"{'rate': 2.0}"


def test_every_module_of_the_project_travels_by_value(project: Path, tmp_path: Path) -> None:
    """A process that has none of its files can call the function."""
    import userflow

    (stream,) = pickling.dumps(userflow.fn, project)
    code = "import pickle; print(pickle.loads(data)(), 'userpackage' in sys.modules)"
    assert in_another_process(code, bytes(stream), tmp_path) == b"8 False"


def test_installed_packages_and_prefect_tpu_travel_by_reference(project: Path) -> None:
    """Even when the project root is above them, as with a virtual environment inside the project."""
    root = Path(cloudpickle.__file__).parents[1]
    modules = pickling.ProjectModules(root)
    assert "cloudpickle" not in modules
    assert "prefect_tpu.core.gang" not in pickling.ProjectModules(Path(payload.__file__).parents[2])
    assert "json" not in pickling.ProjectModules(Path("/"))
    import userflow  # noqa: F401

    assert "userflow" in pickling.ProjectModules(project)


def test_a_project_that_is_installed_as_its_sources_travels_by_value(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What `pip install -e` puts on the path is nothing but a folder: in the project it is the project's."""
    other = tmp_path / "other" / "src"
    (other / "otherpackage").mkdir(parents=True)
    (other / "otherpackage" / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(other))
    import otherpackage  # type: ignore[import-not-found]  # noqa: F401
    import userpackage.parts  # noqa: F401

    modules = pickling.ProjectModules(project)
    assert "userpackage.parts" in modules
    assert "otherpackage" not in modules
    assert "userpackage.parts" not in pickling.ProjectModules(project, by_name=("userpackage",))
    del sys.modules["otherpackage"]


def test_cloudpickles_registry_stays_as_it_was(project: Path) -> None:
    """Threads that pickle at the same time, for different roots, do not see each other."""
    import userflow

    expected = {root: len(bytes(pickling.dumps(userflow.fn, root)[0])) for root in (project, None)}
    assert expected[project] > expected[None] + 200
    wrong: list[object] = []

    def work(root: Path | None) -> None:
        sizes = [len(bytes(pickling.dumps(userflow.fn, root)[0])) for _ in range(100)]
        wrong.extend(size for size in sizes if abs(size - expected[root]) > 20)

    threads = [threading.Thread(target=work, args=(root,)) for root in (project, None) * 2]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert not wrong
    assert cloudpickle.list_registry_pickle_by_value() == set()


def test_arrays_travel_out_of_band_and_arrive_writable() -> None:
    array = numpy.arange(100_000)
    buffers = pickling.dumps({"a": array, "small": numpy.arange(3)})
    assert [memoryview(one).nbytes for one in buffers[1:]] == [800_000]
    assert numpy.shares_memory(numpy.frombuffer(buffers[1], dtype=array.dtype), array)
    result = pickling.loads(buffers)
    result["a"][0] = result["small"][0] = 7
    assert array[0] == 0


def test_mapped_arrays_are_private_copies() -> None:
    """What the child writes into its argument changes neither the file nor another mapping."""
    file = payload.create("test")
    payload.write(file, pickling.dumps(numpy.zeros(100_000)))
    mine = pickling.loads(payload.read(file, writable=True), copy=False)
    mine[0] = 1.0
    assert pickling.loads(payload.read(file))[0] == 0.0
    assert mine.ctypes.data % payload.ALIGNMENT_BYTES == 0


@pytest.mark.parametrize("sizes", [[], [0], [1, 0, 64, 65], [3, 1 << 20]])
def test_payload_keeps_buffers_apart(sizes: list[int]) -> None:
    buffers = [bytes([index]) * size for index, size in enumerate(sizes)]
    file = payload.create("test")
    payload.write(file, [b"longer than what follows" * 9])
    payload.write(file, buffers)
    assert [bytes(one) for one in payload.read(file)] == buffers


def test_loading_jax_arrays_starts_no_backend(tmp_path: Path) -> None:
    """In the driver: on a TPU VM a backend would take the chips."""
    import jax.numpy as jnp

    stream = b"".join(bytes(one) for one in pickling.dumps({"w": jnp.ones(3), "b": jnp.ones((), jnp.bfloat16)}))
    code = """
        from prefect_tpu.wire import pickling
        value = pickling.loads([data])
        import jax._src.xla_bridge as bridge
        print(type(value["w"]).__module__, value["b"].dtype, bridge.backends_are_initialized())
    """
    assert in_another_process(code, stream, tmp_path) == b"numpy bfloat16 False"


class Colour(Enum):
    RED = 1


class Model:
    def __init__(self, lock: object) -> None:
        self.lock = lock


def test_classes_of_the_driver_come_back_as_themselves(tmp_path: Path) -> None:
    """Sent by value, pickled again elsewhere: the same class, with its own methods, and the same enum member."""
    root = Path(__file__).parent
    (stream,) = pickling.dumps((Model, Colour.RED), root)
    init = Model.__init__
    code = """
        from prefect_tpu.wire import pickling
        cls, colour = pickling.loads([data])
        known = pickling.ClassesOfDriver()
        sys.stdout.buffer.write(pickling.dumps_inline((cls(3), colour, {colour: 1}), known=known).hex().encode())
    """
    answer = bytes.fromhex(in_another_process(code, bytes(stream), tmp_path).decode())
    model, colour, mapping = pickle.loads(answer)
    assert type(model) is Model
    assert model.lock == 3
    assert Model.__init__ is init
    assert colour is Colour.RED
    assert mapping == {Colour.RED: 1}


def named(obj: object) -> str:
    with pytest.raises(ConfigurationError) as caught:
        pickling.dumps(obj, Path(__file__).parent)
    return str(caught.value)


LOCK = threading.Lock()


def test_error_names_what_cannot_be_pickled() -> None:
    def fn(model: object, rate: float) -> None: ...

    def with_global() -> object:
        return LOCK

    def with_default(lock: object = LOCK) -> None: ...

    with socket.socket() as sock:

        def with_closure() -> object:
            return sock

        assert "function" in named((with_closure, (), {}))
        assert "closure variable 'sock' -> socket.socket" in named((with_closure, (), {}))
    assert "parameter 'model' -> _thread.lock" in named((fn, (LOCK,), {}))
    assert "parameter 'rate' -> _thread.lock" in named((fn, (1, LOCK), {}))
    assert "parameter 'rate' -> [1] -> attribute 'lock' -> _thread.lock" in named((fn, (), {"rate": [1, Model(LOCK)]}))
    assert "global variable 'LOCK' of module 'tests.wire.test_pickling' -> _thread.lock" in named((with_global, (), {}))
    assert "default of parameter 'lock' -> _thread.lock" in named((with_default, (), {}))
    assert "argument 0 of the partial -> _thread.lock" in named(functools.partial(fn, LOCK))
    assert "the object of the bound method -> attribute 'lock' -> _thread.lock" in named(
        Model(LOCK).__repr__.__self__.__init__
    )
    assert "['a'] -> [1] -> generator" in named({"a": [0, (x for x in "ab")]})


def test_one_piece_of_advice_and_the_right_one() -> None:
    """What is sent is opened on the host; what comes back is there already; JAX's things have their own way out."""
    import jax

    def fn(model: object) -> None: ...

    assert named((fn, (LOCK,), {})).endswith(". Open or create such objects inside the function, on the host.")
    assert "inside the function" not in named({"result": LOCK})
    told = named((fn, (jax.devices()[0],), {}))
    assert told.endswith(". Build meshes and shardings on the hosts, with prefect_tpu.runtime.mesh.")
    assert "inside the function" not in told


def test_a_function_alone_or_its_whole_module(project: Path) -> None:
    """The error says that the first is enough."""
    (project / "userpackage" / "locks.py").write_text(
        "import threading\nLOCK = threading.Lock()\ndef pure(x):\n    return x + 1\n"
    )
    (project / "uselocks.py").write_text(
        "from userpackage import locks\nfrom userpackage.locks import pure\n"
        "def whole():\n    return locks.pure(1)\ndef alone():\n    return pure(1)\n"
    )
    uselocks = importlib.import_module("uselocks")
    try:
        with pytest.raises(ConfigurationError) as caught:
            pickling.dumps((uselocks.whole, (), {}), project)
        assert "variable 'LOCK' of module 'userpackage.locks'" in str(caught.value)
        assert "or import what the function uses alone: from userpackage.locks import ..." in str(caught.value)
        data = b"".join(map(bytes, pickling.dumps(uselocks.alone, project)))
        assert in_another_process("import pickle; print(pickle.loads(data)())", data, Path("/")) == b"2"
    finally:
        for name in ("uselocks", "userpackage.locks"):
            sys.modules.pop(name, None)


def test_open_files(tmp_path: Path) -> None:
    """Text that is open for reading travels as its content; what is open in another way is named."""
    (tmp_path / "data.txt").write_text("hello")
    with open(tmp_path / "data.txt") as text:
        assert pickling.loads(pickling.dumps(text)).read() == "hello"
    for mode in ("rb", "w"):
        with open(tmp_path / "other.txt", "w" if mode == "w" else "ab"), open(tmp_path / "other.txt", mode) as file:
            assert "['a'] -> _io." in named({"a": file})


def test_by_name_takes_names_of_modules_that_there_are() -> None:
    """A misspelt one would change nothing."""
    check_by_name(["json", "email.mime.text"])
    with pytest.raises(ConfigurationError, match=r"no module 'pickel' in this process \(is 'pickle' meant\?\)"):
        check_by_name(["pickel"])


def test_an_error_advises_nobody_to_install_pythons_own_modules() -> None:
    """A dictionary of weak references is one of those."""
    assert "by_name" not in named((lambda: None, (weakref.WeakValueDictionary(),), {}))


def test_error_for_something_that_contains_itself() -> None:
    circle: list[object] = []
    circle += [circle, LOCK]
    assert "[1] -> _thread.lock" in named(circle)


def test_jax_things_that_cannot_travel_say_what_to_do() -> None:
    import jax

    assert "jax.random.key_data" in named({"key": jax.random.key(0)})
    mesh = jax.sharding.Mesh(jax.devices()[:1], ("x",))
    assert "runtime.mesh" in named({"mesh": mesh})
    told: list[str] = []
    jax.jit(lambda x: told.append(named(x)) or x)(1.0)  # type: ignore[func-returns-value]
    assert "traced" in told[0]


def test_failing_reducer_is_named() -> None:
    class Bad:
        def __reduce__(self) -> str:
            raise RuntimeError("not today")

    message = named({"x": Bad()})
    assert "['x']" in message
    assert "RuntimeError: not today" in message


class Holder:
    """Something of a library that has a reference inside."""

    def __init__(self, ref: object) -> None:
        self.ref = ref


def test_references_of_ray_arrive_as_their_values() -> None:
    """At the top, in containers, inside of objects; the same one stays the same object."""
    from ray import ObjectRef

    values = {ObjectRef(bytes([number]) * 28): {"number": number} for number in (1, 2)}
    one, two = values
    sent = pickling.dumps(([one, {"deep": (two, one)}], Holder(two)), fetch=values.__getitem__)
    (first, deep), holder = pickling.loads(sent)
    assert first == {"number": 1}
    assert deep == {"deep": ({"number": 2}, {"number": 1})}
    assert deep["deep"][1] is first
    assert holder.ref is deep["deep"][0]


def test_what_a_reference_raises_is_raised() -> None:
    """The Ray task that made it has failed: its error, and not one of pickling."""
    from ray import ObjectRef

    def fetch(ref: object) -> object:
        raise KeyError("of the other task")

    with pytest.raises(KeyError, match="of the other task"):
        pickling.dumps([ObjectRef(b"1" * 28)], fetch=fetch)


def test_references_of_ray_in_a_result_are_refused() -> None:
    """On a host nobody can bring the value: it is named, with what to do."""
    from ray import ObjectRef

    with pytest.raises(ConfigurationError, match=r"\['a'\] -> .*ObjectRef .*Return the value"):
        pickling.dumps({"a": ObjectRef(b"1" * 28)})


def test_actors_of_ray_do_not_travel() -> None:
    """They are reached from processes of Ray only."""
    from ray.actor import ActorHandle

    with pytest.raises(ConfigurationError, match=r"\['a'\] -> .*ActorHandle .*pass its answers"):
        pickling.dumps({"a": ActorHandle.__new__(ActorHandle)}, fetch=lambda ref: ref)
