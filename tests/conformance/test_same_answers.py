"""Small programs whose answer is the same from Prefect's own runner and from a gang. Each once was not."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy
import prefect
import pytest
from prefect import flow
from prefect.artifacts import create_progress_artifact
from prefect.assets import Asset
from prefect.assets import materialize as prefect_materialize
from prefect.client.orchestration import SyncPrefectClient
from prefect.states import Failed

import prefect_tpu
from prefect_tpu import ConfigurationError
from tests.conformance.conftest import Side, note, noted
from tests.waiting import eventually

both = pytest.mark.parametrize("side", ["prefect", "task_runner"], indirect=True)


@contextmanager
def heard(logger: str = "prefect.task_runs") -> Iterator[list[logging.LogRecord]]:
    """What is logged for runs meanwhile."""
    records: list[logging.LogRecord] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(record)

    keep = Keep()
    logging.getLogger(logger).addHandler(keep)
    try:
        yield records
    finally:
        logging.getLogger(logger).removeHandler(keep)


def made_by_exec(source: str, name: str) -> Callable[..., Any]:
    """A function without a source file, as `python -` and notebooks have them."""
    namespace: dict[str, Any] = {}
    exec(source, namespace)
    return namespace[name]  # type: ignore[no-any-return]


# -- caches


@both
def test_functions_without_source_have_a_cache_key_each(side: Side) -> None:
    """Two functions made by exec, called with the same: none is served the other's result."""
    one = side.task(persist_result=True)(made_by_exec("def one(x):\n    return len(str(x))", "one"))
    two = side.task(persist_result=True)(made_by_exec("def two(x):\n    return x + 40", "two"))
    assert flow(lambda: (one(1), two(1)))() == (1, 41)


@both
def test_a_cache_key_function_is_given_the_task_that_was_made(side: Side) -> None:
    """Its options are those that the user wrote."""
    seen: list[Any] = []

    def key(context: Any, _: Any) -> str:
        seen.append((context.task.timeout_seconds, context.task.fn is body))
        return f"key-{side.name}"

    def body() -> int:
        return 1

    flow(lambda: side.task(timeout_seconds=30, cache_key_fn=key)(body)())()
    assert seen[0] == (30, True)


# -- methods


class Model:
    """With tasks that are methods; made for each side by `tasks_of`."""

    size = 4


def plus(self: Model, x: int) -> int:
    return self.size + x


def of_class(cls: type[Model], x: int) -> int:
    return cls.size * x


def alone(x: int) -> int:
    return -x


@both
def test_with_options_of_a_method_keeps_whose_it_is(side: Side) -> None:
    """Of a method, a classmethod and a staticmethod, again and again, and beside others of the same class."""

    class Sized(Model):
        plus = side.task()(plus)
        of_class = side.task()(classmethod(of_class))
        alone = side.task()(staticmethod(alone))

    mine, other = Sized(), Sized()
    other.size = 10
    assert mine.plus.with_options(retries=1).with_options(name="x")(1) == 5
    assert other.plus.with_options(retries=1)(1) == 11
    assert Sized.of_class.with_options(retries=1)(3) == 12
    assert Sized.alone.with_options(retries=1)(-3) == 3


# -- retries


class Never:
    """A retry condition whose call gives a coroutine, though it is no coroutine function itself."""

    async def __call__(self, task: Any, run: Any, state: Any) -> bool:
        return False


@both
def test_a_condition_whose_call_is_async_is_awaited(side: Side, tmp_path: Path) -> None:
    """Its no is a no, from a flow and from an async one."""
    attempts = tmp_path / "attempts"

    def fails(path: str) -> None:
        note(path, "x")
        raise ValueError("no")

    async def fails_later(path: str) -> None:
        note(path, "x")
        raise ValueError("no")

    for body in (fails, fails_later):
        task = side.task(retries=2, retry_condition_fn=Never())(body)
        if body is fails:
            flow(lambda: task(str(attempts), return_state=True))(return_state=True)
        else:

            @flow
            async def later() -> Any:
                return await task(str(attempts), return_state=True)

            import asyncio

            asyncio.run(later(return_state=True))
    assert noted(attempts) == ["x", "x"]


@both
def test_delays_after_returned_failures_follow_the_list(side: Side, tmp_path: Path) -> None:
    """A function that returns Failed() waits as one that raises: the second delay is the second of the list."""
    times = tmp_path / "times"

    def fails(path: str) -> Any:
        note(path, time.time())
        return Failed(message="no")

    task = side.task(retries=2, retry_delay_seconds=[0.1, 1.5])(fails)
    state = flow(lambda: task(str(times), return_state=True))(return_state=True)
    first, second, third = map(float, noted(times))
    assert third - second >= 1.5
    assert second - first < third - second
    assert state.is_failed()


@both
def test_the_message_of_a_timeout_has_its_number(side: Side) -> None:
    """Also where the retry condition was asked, and said no."""
    task = side.task(timeout_seconds=0.5, retries=1, retry_condition_fn=lambda *_: False)(sleep_long)
    assert task(return_state=True).message == "Task run exceeded timeout of 0.5 second(s)"


def sleep_long() -> None:
    time.sleep(20)


def test_hooks_and_conditions_are_given_the_task_that_was_made(side: Side) -> None:
    """Timeout, delays and condition are as the user wrote them; it is the very object, whoever made a gang of it."""
    seen: list[Any] = []

    def condition(given: Any, run: Any, state: Any) -> bool:
        own = given.retry_condition_fn is condition
        seen.append((given.timeout_seconds, given.retry_delay_seconds, own, given.retries))
        return False

    def hook(given: Any, run: Any, state: Any) -> None:
        seen.append(given is task)

    task = side.task(retries=1, timeout_seconds=30, retry_delay_seconds=[0.1, 0.2], retry_condition_fn=condition)(fails)
    task.on_running(hook)
    task.on_failure(hook)
    side.flow(lambda: task.submit(return_state=True))(return_state=True)
    assert seen == [True, (30, [0.1, 0.2], True, 1), True]


def fails() -> None:
    raise ValueError


# -- logs


def say(text: str = "printed by the function") -> int:
    print(text)
    return 1


@both
def test_prints_of_hooks_are_in_the_logs_of_a_flow_that_logs_prints(side: Side) -> None:
    """A task that says nothing about `log_prints` has its flow's."""
    task = side.task(lambda: 1)
    task.on_completion(lambda *_: print("printed by a hook"))
    with heard() as records:
        flow(lambda: task(), log_prints=True)()
    assert task.log_prints is None
    assert "printed by a hook" in [one.getMessage() for one in records]


@both
def test_log_prints_false_keeps_prints_out_of_the_logs(side: Side, capfd: pytest.CaptureFixture[str]) -> None:
    """By the task, by its flow, by with_options; they are on the flow's own stdout."""
    task = side.task(say)
    with heard() as records:
        flow(lambda: task.with_options(log_prints=False)("one"))()
        flow(lambda: task("two"), log_prints=False)()
    assert [one.getMessage() for one in records if "one" in one.getMessage() or "two" in one.getMessage()] == []
    out = capfd.readouterr().out
    assert "one" in out
    assert "two" in out


@both
def test_what_a_log_record_carries_beside_its_text_arrives(side: Side) -> None:
    """`extra`: send_to_api=False among it; nothing in it can make it another run's record, or fail the run."""

    def speaks() -> None:
        from prefect import get_run_logger

        get_run_logger().info("secret", extra={"send_to_api": False, "step": 3, "odd": object(), "many": "x" * 100_000})
        get_run_logger().info("mine", extra={"task_run_id": "other"})

    with heard() as records:
        flow(lambda: side.task(speaks)())()
    secret = next(one for one in records if "secret" in one.getMessage())
    mine = next(one for one in records if "mine" in one.getMessage())
    assert (secret.send_to_api, secret.step) == (False, 3)  # type: ignore[attr-defined]
    if side.gangs:
        assert mine.task_run_id == secret.task_run_id  # type: ignore[attr-defined]
        assert len(getattr(secret, "many", "")) < 100_000


# -- flows


@both
def test_a_flow_that_submits_has_no_hook_that_nobody_made(side: Side) -> None:
    """None in its logs, none in the flow object afterwards; its own hooks run once each."""
    called: list[str] = []
    task = side.task(lambda: 1)
    one = flow(lambda: [task.submit().wait(), task.submit()])
    one.on_completion(lambda *_: called.append("mine"))
    with heard("prefect.flow_runs") as records:
        one()
        one()
    assert [
        text for text in (record.getMessage() for record in records) if "hook" in text and "lambda" not in text
    ] == []
    assert len(one.on_completion_hooks) == 1
    assert [len(hooks) for hooks in (one.on_failure_hooks, one.on_cancellation_hooks, one.on_crashed_hooks)] == [0] * 3
    assert called == ["mine", "mine"]


# -- what the function knows of its run, and gives to Prefect


def who(x: int, y: int = 2) -> dict[str, Any]:
    from prefect.context import TagsContext
    from prefect.runtime import deployment, flow_run, task_run

    return {
        "task_run": (task_run.name, task_run.task_name, sorted(task_run.tags), task_run.parameters, task_run.run_count),
        "flow_run": (flow_run.name, flow_run.flow_name, flow_run.tags, flow_run.parameters, flow_run.run_count),
        "ids": (
            len(task_run.id),
            len(flow_run.id),
            flow_run.parent_flow_run_id,
            flow_run.root_flow_run_id == flow_run.id,
        ),
        "links": (task_run.api_url.endswith(task_run.id), flow_run.api_url.endswith(flow_run.id)),
        "tags": sorted(TagsContext.get().current_tags),
        "deployment": (deployment.id, deployment.name),
    }


@both
def test_the_function_reads_its_own_run(side: Side) -> None:
    """Names, tags, parameters with defaults, counts, links."""
    task = side.task(task_run_name="mine-{x}", tags=["a"])(who)

    def main(seed: int) -> Any:
        with prefect.tags("b"):
            return task(1)

    assert flow(main, name="trains", flow_run_name="red-fox")(3) == {
        "task_run": ("mine-1", "who", ["a", "b"], {"x": 1, "y": 2}, 1),
        "flow_run": ("red-fox", "trains", [], {"seed": 3}, 1),
        "ids": (36, 36, None, True),
        "links": (True, True),
        "tags": ["b"],
        "deployment": (None, None),
    }


@both
def test_the_function_can_tell_its_attempts_by_the_run_count(side: Side) -> None:
    """It is the engine's, of this attempt."""

    def second_time() -> str:
        from prefect.runtime import task_run

        if task_run.run_count < 2:
            raise ValueError("first attempt")
        return "second attempt"

    assert side.task(retries=3)(second_time)() == "second attempt"


@both
def test_big_parameters_of_a_flow_are_no_reason_to_fail(side: Side) -> None:
    """Hosts do not get them unasked; who asks is told."""

    def ask() -> int:
        from prefect.runtime import flow_run

        return int(flow_run.parameters["weights"].nbytes)

    task = side.task(ask)

    @flow
    def main(weights: Any) -> Any:
        return side.task(lambda: 1)(), task()

    if not side.gangs:
        assert main(numpy.zeros(100_000)) == (1, 800_000)
        return
    with pytest.raises(ConfigurationError, match="bigger than PREFECT_INTEGRATIONS_TPU_FLOW_PARAMETERS_BYTES=100000"):
        main(numpy.zeros(100_000))


def emits(name: str, of_flow: Any) -> int:
    from prefect.artifacts import create_markdown_artifact, create_progress_artifact, update_progress_artifact
    from prefect.events import emit_event

    emit_event(name, resource={"prefect.resource.id": "mine.1"}, payload={"loss": 0.5})
    create_markdown_artifact("# text", key=f"{name.replace('.', '-')}-notes", description="what came out")
    number = create_progress_artifact(0.0, key=f"{name.replace('.', '-')}-progress")
    update_progress_artifact(number, 40.0)
    update_progress_artifact(of_flow, 70.0)
    return 1


@both
def test_events_and_artifacts_of_the_function_are_in_prefect(side: Side, client: SyncPrefectClient) -> None:
    """With their contents, and as the task run's own; a progress artifact is one, at its newest value."""
    name = f"mine.{side.name.replace('_', '')}"

    @flow
    def main() -> Any:
        of_flow = create_progress_artifact(0.0, key=f"{name.replace('.', '-')}-whole")
        return side.task(emits)(name, of_flow, return_state=True), of_flow

    state, of_flow = main()
    run_id = str(state.state_details.task_run_id)

    def events() -> list[dict[str, Any]]:
        body = {"filter": {"event": {"name": [name]}}}
        return client.request("POST", "/events/filter", json=body).json()["events"]  # type: ignore[no-any-return]

    def artifacts() -> dict[str, Any]:
        body = {"artifacts": {"key": {"like_": name.replace(".", "-")}}}
        found = client.request("POST", "/artifacts/filter", json=body).json()
        by_key = {one["key"].rpartition("-")[2]: one for one in found}
        return by_key if [by_key.get(one, {}).get("data") for one in ("progress", "whole")] == [40.0, 70.0] else {}

    (event,) = eventually(events, "the event")
    assert event["payload"] == {"loss": 0.5}
    assert f"prefect.task-run.{run_id}" in [one["prefect.resource.id"] for one in event["related"]]
    found = eventually(artifacts, "the artifacts")
    whole = found.pop("whole")
    assert (whole["id"], whole["data"], whole["task_run_id"]) == (str(of_flow), 70.0, None)
    assert set(found) == {"notes", "progress"}
    assert (found["notes"]["data"], found["notes"]["description"]) == ("# text", "what came out")
    assert {one["task_run_id"] for one in found.values()} == {run_id}


@both
def test_metadata_that_the_function_adds_to_its_asset_is_in_the_event(side: Side, client: SyncPrefectClient) -> None:
    """`asset.add_metadata` inside `materialize`."""
    asset = Asset(key=f"s3://mine/{side.name.replace('_', '-')}")

    def trains() -> int:
        asset.add_metadata({"loss": 0.5})
        return 1

    made = prefect_tpu.materialize(asset, task_runner=side.runner) if side.gangs else prefect_materialize(asset)
    assert flow(lambda: made(trains)())() == 1

    def events() -> list[dict[str, Any]]:
        body = {"filter": {"event": {"prefix": ["prefect.asset.materialization"]}, "resource": {"id": [asset.key]}}}
        return client.request("POST", "/events/filter", json=body).json()["events"]  # type: ignore[no-any-return]

    (event,) = eventually(events, "the materialization")
    assert event["payload"] == {"loss": 0.5}
