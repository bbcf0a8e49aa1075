"""What a function may use of Prefect on a host: what it knows of its run, what it hands over, what is refused."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from typing import Any
from uuid import uuid4

import pytest

from prefect_tpu.core.messages import Carried
from prefect_tpu.core.prefect_run import PrefectRun
from prefect_tpu.host.supervisor import HostSupervisor
from prefect_tpu.wire import pickling
from tests.host.host_support import CPU_JAX, Run, supervisor

pytestmark = pytest.mark.timeout(120)
AHEAD = ("cloudpickle", "prefect")
TASK = {
    "id": str(uuid4()),
    "name": "mine-1",
    "task_key": "mine",
    "dynamic_key": "1",
    "task_name": "mine",
    "tags": ["a"],
}
TASK |= {"run_count": 2}
FLOW = {"id": str(uuid4()), "flow_id": str(uuid4()), "name": "red-fox", "tags": ["f"], "run_count": 3}
FLOW |= {"flow_name": "trains", "flow_version": "7", "has_job_variables": True, "deployment_id": str(uuid4())}
TASK |= {"flow_run_id": FLOW["id"]}


@pytest.fixture(scope="module")
def host() -> Iterator[HostSupervisor]:
    with supervisor() as one:
        yield one


def run_with(**changes: Any) -> PrefectRun:
    buffers = pickling.dumps({"seed": 3})
    known = {"tags": ("a", "b"), "assets": ("s3://mine/model",), "flow_parameters": tuple(map(bytes, buffers))}
    return PrefectRun(TASK, **{"flow": FLOW} | known | changes)  # type: ignore[arg-type]


def go(
    host: HostSupervisor, fn: Callable[..., Any], *args: Any, run: PrefectRun | None = None, ahead: bool = True
) -> Run:
    one = Run(
        host, fn, *args, user_env=CPU_JAX, preload=AHEAD if ahead else ("cloudpickle",), prefect=run or run_with()
    )
    one.result = one.value()  # type: ignore[attr-defined]
    return one


def carried(run: Run) -> list[tuple[str, dict[str, Any]]]:
    return [(one.kind, json.loads(one.body)) for one in run.events if isinstance(one, Carried)]


def attempt(do: Callable[[], Any]) -> str:
    try:
        return str(do())
    except Exception as error:  # noqa: BLE001 - it is the test's result
        return f"{type(error).__name__}: {error}"


@pytest.mark.parametrize("ahead", [True, False])
def test_prefect_runtime_and_tags_are_the_task_runs_own(host: HostSupervisor, ahead: bool) -> None:
    """Names, ids, tags, parameters with defaults, counts; whether Prefect is imported ahead or in the function."""

    def fn(x: int, y: int = 2) -> Any:
        from prefect.context import TagsContext
        from prefect.runtime import deployment, flow_run, task_run

        of_task = [getattr(task_run, one) for one in ("id", "name", "task_name", "tags", "parameters", "run_count")]
        names = ("id", "name", "flow_name", "flow_version", "tags", "parameters", "run_count", "parent_flow_run_id")
        of_flow = [getattr(flow_run, one) for one in names]
        return of_task, of_flow, sorted(TagsContext.get().current_tags), deployment.id

    of_task, of_flow, tags, deployment = go(host, fn, 1, ahead=ahead).result  # type: ignore[attr-defined]
    assert of_task == [TASK["id"], "mine-1", "mine", ["a"], {"x": 1, "y": 2}, 2]
    assert of_flow == [FLOW["id"], "red-fox", "trains", "7", ["f"], {"seed": 3}, 3, None]
    assert (tags, deployment) == (["a", "b"], FLOW["deployment_id"])


def test_what_a_host_does_not_know_of_its_run_is_an_error(host: HostSupervisor) -> None:
    """Never None or {} in place of a value that there is."""

    def fn() -> list[str]:
        from prefect.runtime import deployment, flow_run

        return [
            attempt(lambda: flow_run.parameters), attempt(lambda: flow_run.job_variables),
            attempt(lambda: flow_run.parent_flow_run_id), attempt(lambda: flow_run.root_flow_run_id),
            attempt(lambda: deployment.name),
        ]  # fmt: skip

    run = run_with(
        flow=FLOW | {"parent_task_run_id": str(uuid4())},
        flow_parameters=None,
        why_no_flow_parameters="they are too big",
    )
    texts = go(host, fn, run=run).result  # type: ignore[attr-defined]
    assert "they are too big" in texts[0]
    for text in texts:
        assert text.startswith("ConfigurationError: Prefect's API was needed on a host of a gang: prefect.runtime."), (
            text
        )


def test_outside_a_flow_there_is_no_flow_run(host: HostSupervisor) -> None:
    """As in Prefect."""

    def fn() -> Any:
        from prefect.runtime import flow_run, task_run

        return flow_run.id, flow_run.name, flow_run.parameters, task_run.name

    outside = PrefectRun({**TASK, "flow_run_id": None})
    assert go(host, fn, run=outside).result == (None, None, {}, "mine-1")  # type: ignore[attr-defined]


def test_events_artifacts_and_metadata_go_to_the_driver(host: HostSupervisor) -> None:
    """From any thread, from coroutines, with their contents; progress can be updated; texts are clean."""

    async def fn() -> None:
        from prefect.artifacts import (
            acreate_table_artifact,
            aupdate_progress_artifact,
            create_markdown_artifact,
            create_progress_artifact,
            update_progress_artifact,
        )
        from prefect.assets import Asset
        from prefect.events import emit_event

        def emit() -> None:
            emit_event("mine.happened", resource={"prefect.resource.id": "mine.1"}, payload={"x": "a\0b"})

        thread = threading.Thread(target=emit)
        thread.start()
        thread.join()
        create_markdown_artifact("# text", key="notes", description="d", _sync=True)  # type: ignore[call-arg]
        await acreate_table_artifact([{"a": 1}])
        number = create_progress_artifact(0.0, key="how-far", description="so far", _sync=True)  # type: ignore[call-arg]
        update_progress_artifact(number, 40.0, _sync=True)  # type: ignore[call-arg]
        await aupdate_progress_artifact(uuid4(), 50.0)  # of somebody else's making
        Asset(key="s3://mine/model").add_metadata({"loss": 0.5})

    run = go(host, fn)
    event, note, table, start, later, other, asset = carried(run)
    assert event[0] == "event"
    assert (event[1]["event"], event[1]["resource"]) == ("mine.happened", {"prefect.resource.id": "mine.1"})
    assert event[1]["payload"] == {"x": "a\\x00b"}
    assert [one[1]["type"] for one in (note, table, start)] == ["markdown", "table", "progress"]
    assert (note[1]["key"], note[1]["data"], note[1]["description"]) == ("notes", "# text", "d")
    assert later[1] == start[1] | {"data": 40.0}
    assert (other[1]["made_here"], other[1]["data"]) == (False, 50.0)
    assert asset == ("asset", {"key": "s3://mine/model", "metadata": {"loss": 0.5}})
    assert run.records() == []


def test_prefects_own_checks_stay(host: HostSupervisor) -> None:
    """A wrong key of an artifact, metadata for an asset that is not the task's."""

    def fn() -> list[str]:
        from prefect.artifacts import create_markdown_artifact
        from prefect.assets import Asset

        return [
            attempt(lambda: create_markdown_artifact("x", key="No Such Key")),
            attempt(lambda: Asset(key="s3://other/one").add_metadata({})),
        ]

    run = go(host, fn)
    wrong_key, wrong_asset = run.result  # type: ignore[attr-defined]
    assert "must only contain lowercase letters, numbers, and dashes" in wrong_key
    assert "Can only add metadata to assets that are arguments to @materialize" in wrong_asset
    assert carried(run) == []


def test_too_many_and_too_big_ones_are_dropped_with_one_word(host: HostSupervisor) -> None:
    """The run goes on as if nothing was; the setting that would let them through is named."""

    def fn() -> int:
        from prefect.artifacts import create_markdown_artifact
        from prefect.assets import Asset
        from prefect.events import emit_event

        for number in range(200):
            emit_event(f"mine.{number}", resource={"prefect.resource.id": "mine.1"})
        for _ in range(3):
            create_markdown_artifact("x" * 5_000)
        Asset(key="s3://mine/model").add_metadata({"loss": object()})
        return 1

    run = go(host, fn, run=run_with(items_per_second=0.001, burst_items=5, item_bytes=4_000))
    assert run.result == 1  # type: ignore[attr-defined]
    assert [body["event"] for _, body in carried(run)] == [f"mine.{number}" for number in range(5)]
    said = [one.message for one in run.records()]
    assert len(said) == 3
    assert "HOST_PREFECT_ITEMS_PER_SECOND=0.001" in said[0]
    assert "HOST_PREFECT_ITEM_BYTES=4000" in said[1]
    assert "asset is no JSON" in said[2]


def test_everything_else_is_refused_at_once_with_the_way_out(host: HostSupervisor) -> None:
    """Also in a thread, where Prefect keeps no client; nothing waits, no server starts, no line promises otherwise."""

    def fn() -> list[str]:
        import asyncio

        from prefect import get_client, pause_flow_run, suspend_flow_run
        from prefect.artifacts import Artifact
        from prefect.blocks.system import Secret
        from prefect.concurrency import asyncio as later
        from prefect.concurrency.sync import concurrency, rate_limit
        from prefect.deployments import run_deployment
        from prefect.flows import Flow
        from prefect.tasks import Task
        from prefect.variables import Variable

        task, flow = Task(fn=lambda x: x, name="plain"), Flow(fn=lambda: 1, name="sub")

        def enter() -> None:
            with concurrency("limit"):
                pass

        async def enter_later() -> None:
            async with later.concurrency("limit"):
                pass

        tries: list[Callable[[], Any]] = [
            enter, lambda: rate_limit("limit"),
            lambda: asyncio.run(enter_later()), lambda: asyncio.run(later.rate_limit("limit")),
            lambda: task([1]), lambda: task.submit([1]), lambda: task.map([[1]]), lambda: task.delay([1]),
            flow, pause_flow_run, suspend_flow_run, lambda: run_deployment("a/b"),
            lambda: Variable.get("x"), lambda: Secret.load("x"), lambda: Artifact.get("x"),
            lambda: get_client(sync_client=True).hello(),
            lambda: get_client(httpx_settings={"timeout": 3}, sync_client=True).hello(),
        ]  # fmt: skip
        found = [attempt(one) for one in tries]

        def in_a_thread() -> None:
            found.extend(attempt(one) for one in tries)

        thread = threading.Thread(target=in_a_thread)
        thread.start()
        thread.join()
        return found

    run = go(host, fn)
    texts = run.result  # type: ignore[attr-defined]
    assert len(texts) == 34
    for text in texts:
        assert text.startswith("ConfigurationError: Prefect's API was needed on a host of a gang: "), text
        assert "Hosts have no Prefect API: do this in the flow, before or after the gang" in text
    assert "`.fn(...)`" in texts[4]
    assert not any("delay" in text for text in texts[4:7])
    assert carried(run) == []
    assert (run.records(), run.lines("stderr")) == ([], [])
