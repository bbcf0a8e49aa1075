"""checkpoint_dir follows what is trained: the same training finds its own files again, and nobody else's."""

from __future__ import annotations

import asyncio
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from pathlib import Path
from typing import Any

import prefect
import pytest
from prefect import flow
from prefect.futures import as_completed

from prefect_tpu import ConfigurationError, LocalFleet, TpuMultisliceRunner, materialize, task
from tests.waiting import eventually

Runner = TpuMultisliceRunner[Any]


@pytest.fixture(scope="module")
def runner(fleet: LocalFleet, tmp_path_factory: pytest.TempPathFactory) -> Runner:
    """One slice, process 0's answer, checkpoints in a folder of these tests."""
    root = tmp_path_factory.mktemp("checkpoints")
    return TpuMultisliceRunner(pool=fleet, jax_distributed=False, returns="process0", checkpoint_root=root)


def who_was_here(mark: str) -> list[str]:
    """On a host: leave a mark in checkpoint_dir, and say whose are there."""
    import pathlib

    from prefect_tpu import runtime

    ctx = runtime.current()
    assert ctx.checkpoint_dir is not None
    if ctx.process_id:
        return []
    place = pathlib.Path(ctx.checkpoint_dir)
    place.mkdir(parents=True, exist_ok=True)
    with (place / "marks").open("a") as file:
        file.write(f"{mark}\n")
    return (place / "marks").read_text().split()


class Turns:
    """Plain tasks end in one order in the first run of the flow, and the other way round in the second."""

    def __init__(self, *names: str) -> None:
        self.names, self.run = list(names), 0
        self.begin()

    def begin(self) -> None:
        self.ended = {name: threading.Event() for name in self.names}

    def wait(self, name: str) -> str:
        before = self.names[: self.names.index(name)]
        for one in before:
            assert self.ended[one].wait(60)
        return name

    def next_run(self) -> None:
        """The flow is retried once, with another order."""
        self.run += 1
        self.names.reverse()
        self.begin()
        if self.run == 1:
            raise ValueError("once")


def trains(runner: Runner, **options: Any) -> Any:
    """A gang that says who used its directory."""

    @task(task_runner=runner, name="train it", **options)
    def train(name: str, rate: float = 0.1) -> list[str]:
        return who_was_here(name)

    return train


def test_a_retried_flow_goes_on_from_its_own_training_whatever_ends_first(runner: Runner) -> None:
    """Plain tasks end in another order in the second run, and as_completed submits a gang for each."""
    turns, train = Turns("a", "b"), trains(runner)

    @prefect.task
    def prepare(name: str) -> str:
        return turns.wait(name)

    @flow(retries=1)
    def training() -> dict[str, list[str]]:
        found = {}
        for done in as_completed([prepare.submit("a"), prepare.submit("b")]):
            name = done.result()
            turns.ended[name].set()
            found[name] = train(name)
        turns.next_run()
        return found

    assert training() == {"a": ["a", "a"], "b": ["b", "b"]}


def test_gather_and_threads_and_map(runner: Runner) -> None:
    """Whoever comes first: the gangs of the second run begin in another order."""
    turns, train = Turns("a", "b"), trains(runner)

    @task(task_runner=runner, name="train it")
    async def train_async(name: str, rate: float) -> list[str]:
        return who_was_here(f"async-{name}")

    def turn(name: str) -> tuple[str, list[str]]:
        turns.wait(name)
        turns.ended[name].set()
        return name, train(name, rate=1.0)

    async def turn_async(name: str) -> tuple[str, list[str]]:
        await asyncio.to_thread(turns.wait, name)
        turns.ended[name].set()
        return name, await train_async(name, rate=2.0)

    @flow
    async def in_gather() -> dict[str, list[str]]:
        return dict(await asyncio.gather(turn_async("a"), turn_async("b")))

    @flow(retries=1)
    def training() -> list[Any]:
        with ThreadPoolExecutor(2) as pool:
            threads = dict([one.result() for one in [pool.submit(copy_context().run, turn, one) for one in "ab"]])
        turns.begin()
        gathered = asyncio.run(in_gather())
        mapped = dict(zip(turns.names, train.map(turns.names, rate=3.0).result(), strict=True))
        equal = [train("c").copy(), train("c")]
        turns.next_run()
        return [threads, gathered, mapped, equal]

    twice = {"a": ["a", "a"], "b": ["b", "b"]}
    again = {"a": ["async-a", "async-a"], "b": ["async-b", "async-b"]}
    assert training() == [twice, again, twice, [["c", "c"]] * 2]


def test_a_subflow_of_a_retried_flow(runner: Runner) -> None:
    """Its run is another then, and the subflows come in another order; an equal call has a directory of its own."""
    turns, train = Turns("a", "b"), trains(runner)
    runs: set[str] = set()

    @flow(name="Sub flow")
    def inner(name: str, config: dict[str, Any]) -> list[str]:
        from prefect.runtime import flow_run

        runs.add(str(flow_run.id))
        return train("same")

    @flow(retries=1)
    def outer() -> list[Any]:
        found = {name: inner(name, {"rates": {1}}) for name in turns.names}
        equal = [inner("c", {}), inner("c", {})]
        turns.next_run()
        return [found, equal]

    twice = ["same", "same"]
    assert outer() == [{"a": twice, "b": twice}, [twice, twice]]
    assert len(runs) == 8


def test_two_functions_of_one_name(runner: Runner) -> None:
    """Retried in another order, with and without parameters: each finds its own."""

    @task(task_runner=runner, name="same")
    def one(x: int) -> list[str]:
        return who_was_here("one")

    @task(task_runner=runner, name="same")
    def two(x: int) -> list[str]:
        return who_was_here("two")

    @task(task_runner=runner, name="same")
    def third() -> list[str]:
        return who_was_here("third")

    @task(task_runner=runner, name="same")
    def fourth() -> list[str]:
        return who_was_here("fourth")

    runs: list[int] = []

    @flow(retries=1)
    def training() -> dict[str, list[str]]:
        runs.append(1)
        calls = {"one": lambda: one(1), "two": lambda: two(1), "third": third, "fourth": fourth}
        found = {name: calls[name]() for name in (list(calls) if len(runs) == 1 else reversed(calls))}
        if len(runs) == 1:
            raise ValueError("once")
        return found

    assert training() == {name: [name, name] for name in ("one", "two", "third", "fourth")}


def test_what_has_no_hash_is_counted_and_that_is_said(runner: Runner, caplog: pytest.LogCaptureFixture) -> None:
    """Once; `checkpoint_key=` is the way out, and then nothing is said."""

    @task(task_runner=runner, name="by count")
    def train(data: memoryview) -> list[str]:
        return who_was_here(bytes(data).decode())

    def key(context: Any, parameters: dict[str, Any]) -> str:
        return f"{context.task_run.flow_run_id}/{bytes(parameters['data']).decode()}"

    keyed = train.with_options(checkpoint_key=key)
    runs: list[Any] = []

    @flow(retries=1)
    def training() -> list[Any]:
        found = [train(memoryview(b"a")), train(memoryview(b"b"))]
        runs.append(found)
        if len(runs) == 1:
            raise ValueError("once")
        return [*found, keyed(memoryview(b"k"))]

    assert training() == [["a", "a"], ["b", "b"], ["k"]]
    said = [one.getMessage() for one in caplog.records if "named by the order of calls" in one.getMessage()]
    assert len(said) == 2  # in each run of the flow
    assert "checkpoint_dir of task 'by count' is named by the order of calls, as its parameter 'data'" in said[0]
    assert "memoryview does not pickle: TypeError" in said[0]
    assert "checkpoint_key= on the task" in said[0]


def test_another_flow_run_goes_on_by_key(runner: Runner, caplog: pytest.LogCaptureFixture) -> None:
    """By a key that both have, or by the automatic name that the first one says; a warning names other parameters."""
    train = trains(runner)

    @flow
    def training(name: str, key: str | None = None) -> list[str]:
        return train.with_options(checkpoint_key=key)(name)

    assert training("a", "shared/sweep-7") == ["a"]
    assert training("a", "shared/sweep-7") == ["a", "a"]
    assert "used by others" not in caplog.text
    assert training("b", "shared/sweep-7") == ["a", "a", "b"]
    (warning,) = [one for one in caplog.records if "used by others" in one.getMessage()]
    assert warning.levelname == "WARNING"
    assert "shared/sweep-7 has been used by others: name differs (task 'train it', flow run" in warning.getMessage()
    caplog.clear()
    assert training("c") == ["c"]
    (said,) = re.findall(
        r"checkpoint_dir is \S+; checkpoint_key='(\S+)' goes on from it in another flow run", caplog.text
    )
    assert training("c", said) == ["c", "c"]


def test_the_runners_key_is_for_tasks_without_one(runner: Runner) -> None:
    """And is a value of the runner: two flow runs share it."""
    one: Runner = TpuMultisliceRunner(**(runner._given.arguments() | {"checkpoint_key": "of-the-runner"}))
    train = trains(one)
    assert flow(lambda: train("a"), name="first")() == ["a"]
    assert flow(lambda: train("b"), name="second")() == ["a", "b"]
    own = train.with_options(checkpoint_key="of-the-task")
    assert own("c") == ["c"]
    assert own.with_options(name="still").checkpoint_key == "of-the-task"


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (lambda context, parameters: f"../{parameters['name']}", r"returned '\.\./a': must be names of letters"),
        (lambda context, parameters: None, "returned None: must be a string, not NoneType"),
        (lambda context, parameters: parameters["nam"], "raised KeyError: 'nam'"),
        (lambda: "a", "raised TypeError: .*takes 0 positional arguments"),
    ],
)
def test_a_key_function_that_fails(runner: Runner, function: Any, says: str) -> None:
    """Before anything is reserved, not retried, and the task is named."""
    train = trains(runner, checkpoint_key=function, retries=3, retry_delay_seconds=3600)
    with pytest.raises(ConfigurationError, match=rf"(?s)checkpoint_key function of task 'train it' {says}"):
        train("a")


def test_keys_that_can_never_be_are_refused_where_they_are_given(runner: Runner) -> None:
    """The task and the value are named."""

    async def later(context: Any, parameters: dict[str, Any]) -> str:
        return "a"

    for key in ("", "a/../b", later, 3):
        with pytest.raises(ConfigurationError, match=r"task 'train it', checkpoint_key=.*must be"):
            trains(runner, checkpoint_key=key)
        with pytest.raises(ConfigurationError, match="must be"):
            trains(runner).with_options(checkpoint_key=key)
    with pytest.raises(ConfigurationError, match="checkpoint_key='a' without task_runner="):
        task(checkpoint_key="a")  # type: ignore[call-overload]
    with pytest.raises(ConfigurationError, match="checkpoint_key='a' without task_runner="):
        materialize("s3://x/y", checkpoint_key="a")  # type: ignore[call-overload]


def test_two_at_the_same_time_are_refused(runner: Runner, tmp_path: Path) -> None:
    """The error names both; one after the other is all right, and a run without a flow has a directory of its own."""

    @task(task_runner=runner, name="held", checkpoint_key="one-for-all", task_run_name="run {name}")
    def held(name: str, folder: str) -> list[str]:
        import pathlib
        import time

        found = who_was_here(name)
        pathlib.Path(folder, name).touch()
        while not pathlib.Path(folder, "go on").exists():
            time.sleep(0.05)
        return found

    @flow
    def training() -> list[Any]:
        first = held.submit("a", str(tmp_path))
        eventually((tmp_path / "a").exists, "the first runs")
        with pytest.raises(ConfigurationError) as caught:
            held("b", str(tmp_path))
        text = str(caught.value)
        assert text.startswith("task run 'run b' of flow run ")
        assert "and task run 'run a' of flow run " in text
        assert "one-for-all at the same time; give each a checkpoint_key= of its own" in text
        with pytest.raises(ConfigurationError, match="one-for-all/7 at the same time, one inside of the other; give"):
            held.with_options(checkpoint_key="one-for-all/7")("b", str(tmp_path))
        (tmp_path / "go on").touch()
        return [first.result(), held("c", str(tmp_path))]

    assert training() == [["a"], ["a", "c"]]
    train = trains(runner)
    assert [train("a"), train("a")] == [["a"], ["a"]]


def test_what_is_left_of_the_run_before_is_ended_first(runner: Runner, tmp_path: Path) -> None:
    """A flow is retried while its gang still runs: the directory has one user at a time."""
    runs: list[int] = []

    @task(task_runner=runner, name="left over")
    def long(folder: str) -> list[str]:
        import pathlib
        import time

        from prefect_tpu import runtime

        found = who_was_here("x")
        if len(found) == 1 and runtime.current().process_id == 0:
            pathlib.Path(folder, "began").touch()
            time.sleep(3600)
        return found

    @flow(retries=1)
    def training() -> list[str]:
        runs.append(1)
        if len(runs) == 1:
            long.submit(str(tmp_path))
            eventually((tmp_path / "began").exists, "the first runs")
            raise ValueError("once")
        return list(long(str(tmp_path)))

    assert training() == ["x", "x"]


def test_runs_of_the_release_before_are_not_begun_anew_silently(runner: Runner) -> None:
    """An error, not retried, that says how to go on; and by that key it does."""
    root = Path(runner.resolve().checkpoint_root)
    train = trains(runner, retries=3, retry_delay_seconds=3600)
    keys: list[str] = []

    @flow(retries=1)
    def training() -> list[str]:
        from prefect.runtime import flow_run

        if keys:
            return list(train.with_options(checkpoint_key=keys[0])("a"))
        old = root / flow_run.id / "train-it-0"
        old.mkdir(parents=True)
        (old / "marks").write_text("old\n")
        with pytest.raises(ConfigurationError) as caught:
            train("a")
        assert (
            f"release 0.1.0 of prefect_tpu has left checkpoints of task 'train it' of this flow run in {old.parent}"
            in str(caught.value)
        )
        keys.extend(re.findall(r'To go on from one: checkpoint_key="(\S+)" \(', str(caught.value)))
        raise caught.value

    assert training() == ["old", "a"]


def test_a_relative_root_is_one_of_the_driver(runner: Runner, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Hosts have another working directory and another home. URLs stay."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for given, absolute in (
        ("ckpt", f"{tmp_path}/ckpt"), ("./a/../ckpt/", f"{tmp_path}/ckpt"), ("~/ckpt", f"{tmp_path}/home/ckpt"),
        ("~", f"{tmp_path}/home"), ("gs://bucket/a/", "gs://bucket/a"), ("memory://a", "memory://a"), ("/x//", "/x"),
    ):  # fmt: skip
        assert TpuMultisliceRunner[Any](checkpoint_root=given).resolve().checkpoint_root == absolute
    with pytest.raises(ConfigurationError, match="no home directory is known"):
        _ = TpuMultisliceRunner[Any](checkpoint_root="~nobody-of-that-name/x").resolve().checkpoint_root
    relative: Runner = TpuMultisliceRunner(**(runner._given.arguments() | {"checkpoint_root": "here"}))
    assert trains(relative, checkpoint_key="a")("m") == ["m"]
    assert (tmp_path / "here" / "a" / "marks").read_text() == "m\n"
    resolved, gone = relative.resolve(), tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(ConfigurationError, match="'here' is relative to the working directory, which is gone"):
        _ = resolved.checkpoint_root
