"""Gangs among Prefect's other parts: transactions, assets, futures, progress, and code that hosts do not have."""

from __future__ import annotations

import importlib
import pickle
import sys
from pathlib import Path
from typing import Any

import pytest
from prefect import flow
from prefect import task as prefect_task
from prefect.assets import Asset, materialize
from prefect.client.orchestration import SyncPrefectClient
from prefect.transactions import transaction

from prefect_tpu import LocalFleet, TpuMultisliceRunner, runtime, task
from tests.prefect_runs import log_messages, run_and_state, task_runs

Runner = TpuMultisliceRunner[Any]


def test_code_that_hosts_do_not_have(one_slice: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The flow's file and the modules beside it travel by value, and what comes back is of their classes."""
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "my_model_of_the_test.py").write_text(
        "from dataclasses import dataclass\n\n@dataclass\nclass Net:\n    width: int\n\ndef widen(net):\n"
        "    return Net(net.width * 2)\n\nclass TooWide(Exception):\n    pass\n"
    )
    (tmp_path / "my_flow_of_the_test.py").write_text(
        "from my_model_of_the_test import Net, TooWide, widen\n\nLIMIT = 10\n\ndef make(step):\n"
        "    add = lambda width: width + step\n\n    def body(net):\n        out = widen(Net(add(net.width)))\n"
        "        if out.width > LIMIT:\n            raise TooWide(out.width)\n        return out\n\n    return body\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("my_flow_of_the_test")
    model = sys.modules["my_model_of_the_test"]
    for source in tmp_path.glob("*.py"):
        source.unlink()
    monkeypatch.undo()

    body = task(task_runner=one_slice)(module.make(1))
    results = body(model.Net(2))
    assert results == [model.Net(6), model.Net(6)]
    assert all(type(one) is model.Net for one in results)
    with pytest.raises(model.TooWide, match="20"):
        body(model.Net(9))


def test_transactions_roll_back_gangs(one_slice: Runner) -> None:
    """on_rollback runs when a later task of the transaction fails."""
    heard: list[str] = []

    @task(task_runner=one_slice, on_rollback=[lambda txn: heard.append("rolled back")])
    def write() -> int:
        return 1

    @prefect_task
    def fails() -> None:
        raise ValueError("later")

    @flow
    def pipeline() -> None:
        with transaction():
            write()
            fails()

    with pytest.raises(ValueError, match="later"):
        pipeline()
    assert heard == ["rolled back"]


def test_assets_are_materialized_by_gangs(one_slice: Runner, client: SyncPrefectClient) -> None:
    """@materialize in a flow with this runner is a gang and still a materialization; asset_deps are kept."""
    asset = Asset(key="s3://bucket/model")

    @materialize(asset)
    def model() -> int | None:
        ctx = runtime.current(default=None)
        return None if ctx is None else ctx.process_id

    @task(task_runner=one_slice, asset_deps=["s3://bucket/data"])
    def reads() -> int:
        return 1

    assert [one.key for one in reads.with_options(name="again").asset_deps] == ["s3://bucket/data"]

    @flow(task_runner=one_slice)  # type: ignore[arg-type]
    def makes() -> Any:
        return model.submit().result()

    assert makes() == [0, 1]


def test_gang_futures_pickle(one_slice: Runner) -> None:
    """Prefect's own do not; ours take their state along."""

    @task(task_runner=one_slice)
    def value() -> int:
        return 5

    future: Any = value.submit()
    again = pickle.loads(pickle.dumps(future))
    assert again.task_run_id == future.task_run_id
    assert again.result() == [5, 5]


def test_progress_reaches_the_logs(one_slice: Runner, client: SyncPrefectClient) -> None:
    """runtime.report() of process 0."""

    @task(task_runner=one_slice)
    def steps() -> None:
        runtime.report(step=3, loss=0.25)

    @flow
    def reports() -> None:
        steps()

    flow_run_id, _ = run_and_state(reports)
    (run,) = task_runs(client, flow_run_id)
    assert any("step 3: loss=0.25" in text for _, text in log_messages(client, run.id, "loss="))


def test_runner_is_a_value(fleet: LocalFleet) -> None:
    """Equal by configuration; copies and pickles; entering one twice is refused as in Prefect."""
    runner: Runner = TpuMultisliceRunner(pool=fleet, num_slices=2, env={"A": "b"})
    assert runner == runner.duplicate() == pickle.loads(pickle.dumps(runner))
    assert runner != TpuMultisliceRunner(pool=fleet, num_slices=1, env={"A": "b"})
    assert "num_slices=2" in repr(runner)
    with pytest.raises(RuntimeError, match="not started"):
        runner.submit(task(task_runner=runner)(lambda: 1), {})
    with runner, pytest.raises(RuntimeError, match="already started"):
        runner.__enter__()


def test_a_method_of_an_object(one_slice: Runner) -> None:
    """A gang task on a class runs with its instance."""

    class Model:
        def __init__(self, width: int) -> None:
            self.width = width

        @task(task_runner=one_slice)
        def twice(self) -> int:
            return self.width * 2

    assert Model(4).twice() == [8, 8]
