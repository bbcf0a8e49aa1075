"""A runner as a value: copies, equality, start and stop."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import cloudpickle
import prefect
import pytest
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner
from pydantic import SecretStr

from prefect_tpu import LocalFleet, TpuMultisliceRunner
from prefect_tpu.options.gang import GangOptions
from prefect_tpu.task_run.arguments import RunnerOptions
from tests.conformance.conftest import until_there


def one() -> int:
    return 1


def test_a_duplicate_is_equal_and_another_object(runner: Any) -> None:
    """Prefect duplicates a flow's runner before each run."""
    again = runner.duplicate()
    assert isinstance(again, TaskRunner)
    assert type(again) is type(runner)
    assert again == runner
    assert again is not runner


def test_a_duplicate_of_a_started_runner_is_not_started(runner: Any) -> None:
    """The state of a runner is not part of its value."""
    with runner:
        again = runner.duplicate()
        assert again == runner
        with again:
            pass


def test_runners_differ_by_configuration_and_by_class(runner: Any) -> None:
    """And not by what is no runner."""
    other: Any = ThreadPoolTaskRunner(max_workers=2)
    if isinstance(runner, TpuMultisliceRunner):
        other = TpuMultisliceRunner(num_slices=2)
    assert runner != other
    assert runner != 7
    assert (runner == ThreadPoolTaskRunner(max_workers=7)) is not isinstance(runner, TpuMultisliceRunner)
    assert (ThreadPoolTaskRunner(max_workers=7) == runner) is not isinstance(runner, TpuMultisliceRunner)


def other_than(default: Any) -> Any:
    """Some value of the same type."""
    match default:
        case bool():
            return not default
        case int() | float():
            return default + 1
        case list():
            return ["json"]
        case str():
            return default + "x"
        case _:
            return 3


def test_a_gangs_duplicate_keeps_every_option() -> None:
    """Each argument with a value other than its default."""
    options: dict[str, Any] = {
        "pool": LocalFleet(slices=3),
        "flatten": False,
        "returns": "all",
        "max_workers": 3,
        "checkpoint_key": "sweep-7/rate-0.1",
    } | {name: other_than(field.default) for name, field in GangOptions.model_fields.items()}
    options |= {"env": {"A": "b"}, "runtime_env": {"env_vars": {"A": "b"}}, "checkpoint_root": "/checkpoints"}
    options |= {"secret_env": {"S": SecretStr("s")}, "jax_distributed": False}
    made: TpuMultisliceRunner[Any] = TpuMultisliceRunner(**options)
    assert set(options) == {*RunnerOptions.__annotations__, "flatten", "returns"}, "a new option is missing here"
    assert made._given.arguments() == {name: value for name, value in options.items() if name != "returns"}
    assert made.duplicate() == made
    assert made.duplicate()._max_workers == 3
    for name in options:
        if name != "returns":
            assert TpuMultisliceRunner[Any](**{key: options[key] for key in options if key != name}) != made, name
    assert TpuMultisliceRunner[Any](**(options | {"returns": "process0"})) != made


def test_a_runner_pickles(runner: Any) -> None:
    """Flows travel to subprocesses with their runner."""
    for dumps in (pickle.dumps, cloudpickle.dumps):
        again = pickle.loads(dumps(runner))
        assert again == runner
        with again:
            pass


def test_work_needs_a_started_runner(runner: Any) -> None:
    """The error says so."""
    task = prefect.task(one)
    with pytest.raises(RuntimeError, match="not started"):
        runner.submit(task, {})
    with pytest.raises(RuntimeError, match="must be started"):
        runner.map(task, {})
    with runner:
        pass
    with pytest.raises(RuntimeError, match="not started"):
        runner.submit(task, {})


def test_a_runner_starts_once_at_a_time(runner: Any) -> None:
    """And may be started again when it was stopped."""
    with runner, pytest.raises(RuntimeError, match="already started"):
        runner.__enter__()
    with runner:
        assert runner.submit(prefect.task(one), {}).result() == 1


def test_submit_and_map_without_a_flow(runner: Any) -> None:
    """A started runner needs no flow."""
    double = prefect.task(lambda x: 2 * x)
    with runner:
        assert runner.submit(double, {"x": 4}).result() == 8
        assert runner.map(double, {"x": [1, 2]}).result() == [2, 4]


def test_the_end_of_the_runner_waits_for_what_runs(runner: Any, tmp_path: Path) -> None:
    """A future can be asked after the `with` block. Prefect's drops what has not begun, gangs are all joined."""
    began, go = str(tmp_path / "began"), str(tmp_path / "go")

    def meet(mine: str, other: str) -> bool:
        Path(mine).touch()
        return until_there(other)

    with runner:
        future = runner.submit(prefect.task(meet), {"mine": began, "other": go})
        not_begun = runner.submit(prefect.task(one), {}) if isinstance(runner, TpuMultisliceRunner) else None
        assert until_there(began)
        (tmp_path / "go").touch()
    assert future.result()
    assert not_begun is None or not_begun.result() == 1


def test_importing_a_file_with_gangs_starts_nothing() -> None:
    """Neither Ray nor a thread nor a process, as for any Prefect flow."""
    code = (
        "import threading\n"
        "from prefect import flow\n"
        "from prefect_tpu import TpuMultisliceRunner, task\n"
        "@task(task_runner=TpuMultisliceRunner)\n"
        "def body(): ...\n"
        "@flow(task_runner=TpuMultisliceRunner(num_slices=2))\n"
        "def main(): body()\n"
        "import ray\n"
        "print(ray.is_initialized(), threading.active_count())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "1"]
