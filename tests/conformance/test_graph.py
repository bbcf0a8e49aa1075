"""Task runs that depend on each other, and task and flow runs inside each other."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import prefect
from prefect import allow_failure, flow, unmapped
from prefect.client.orchestration import SyncPrefectClient
from prefect.futures import wait
from prefect.utilities.annotations import quote

from tests.conformance.conftest import Side, by_runner, note, noted, until_there
from tests.prefect_runs import run_and_state, task_runs


def add(*numbers: int) -> int:
    return sum(numbers)


def fails() -> None:
    raise ValueError("upstream")


def test_wait_for_orders_runs_without_data(side: Side, tmp_path: Path) -> None:
    """The second run starts when the first one has ended, also with a free slice, a call and a map."""
    path, go = str(tmp_path / "order"), str(tmp_path / "go")

    def first(path: str, go: str) -> None:
        until_there(go)
        note(path, "first")

    before, after = side.task(first), side.task(note)

    @side.flow
    def ordered() -> None:
        one = before.submit(path, go)
        two = after.submit(path, "second", wait_for=[one])
        three = after.map([path], "third", wait_for=[two])
        Path(go).touch()
        after(path, "fourth", wait_for=[three])

    ordered()
    assert noted(tmp_path / "order") == ["first", "second", "third", "fourth"]


def test_after_a_failed_upstream_nothing_runs(side: Side, tmp_path: Path) -> None:
    """NotReady by wait_for, by a parameter, by one in a collection, and so on down the line."""
    path = str(tmp_path / "ran")
    bad, never = side.task(fails), side.task(note, name="never")

    @side.flow
    def starts() -> Any:
        failed = bad.submit()
        futures = [
            never.submit(path, 1, wait_for=[failed]),
            never.submit(path, failed),
            never.submit(path, {"deep": [failed]}),
        ]
        futures.append(never.submit(path, 1, wait_for=[futures[0]]))
        for future in futures:
            future.wait()
        return [(future.state.type.value, future.state.name) for future in futures]

    _, state = run_and_state(starts)
    assert state.result() == [("PENDING", "NotReady")] * 4
    assert not noted(tmp_path / "ran")


def test_allow_failure_runs_all_the_same(side: Side) -> None:
    """With the error as the parameter, in wait_for, and with map."""
    bad = side.task(fails)
    kind = side.task(lambda error: type(error).__name__)
    late = side.task(lambda: "ran")

    @side.flow
    def starts() -> Any:
        failed = bad.submit()
        return (
            kind.submit(allow_failure(failed)).result(),
            late.submit(wait_for=[allow_failure(failed)]).result(),
            kind.map([1], wait_for=[allow_failure(failed)]).result(),
        )

    assert starts() == ("ValueError", "ran", ["int"])


@by_runner
def test_futures_in_collections_arrive_as_values(side: Side) -> None:
    """In dicts, lists and tuples of any depth; what is quoted is not looked into."""
    task = side.task(lambda x: x)
    total = side.task(lambda numbers, more: sum(numbers) + sum(more["deep"][0]))

    @side.flow
    def passes() -> Any:
        one, two = task.submit(1), task.submit(2)
        assert task.submit(quote([1, 2])).result() == [1, 2]
        return total.submit([one, two], more={"deep": [(one, 3)]}).result(), task.submit({"a": [two]}).result()

    assert passes() == (7, {"a": [2]})


def test_dependencies_in_the_api(side: Side, client: SyncPrefectClient) -> None:
    """The task run's inputs name the upstream runs: parameters, nested ones, wait_for, results, mapped ones."""
    task = side.task(add)
    value = side.task(lambda x: [x])

    @side.flow
    def chain() -> Any:
        up = [value.submit(number) for number in range(4)]
        ids = [one.task_run_id for one in up]
        wait(up)  # of one that still runs Prefect says that it is the parent, too
        direct = task.with_options(name="direct", task_run_name="direct")
        named = side.task(lambda plain, nested, known: 1, task_run_name="named")
        mapped = side.task(lambda x, y: x, task_run_name="mapped-{x}")
        futures = [
            named.submit(up[0], {"deep": [up[1]]}, up[2].result(), wait_for=[up[3]]),
            direct.submit(1, wait_for=[up[0], up[1]]),
            *mapped.map(up[0], unmapped(up[1])),
        ]
        for future in futures:
            future.wait()
        return ids

    flow_run_id, state = run_and_state(chain)
    a, b, c, d = state.result()
    runs = {run.name: run for run in task_runs(client, flow_run_id, 7)}

    def inputs(name: str) -> dict[str, set[Any]]:
        return {key: {one.id for one in found} for key, found in runs[name].task_inputs.items() if found}

    assert inputs("named") == {"plain": {a}, "nested": {b}, "known": {c}, "wait_for": {d}}
    assert inputs("direct") == {"wait_for": {a, b}}
    assert inputs("mapped-0") == {"x": {a}, "y": {b}}


# -- inside each other


def test_tasks_submitted_by_a_task(side: Side, client: SyncPrefectClient) -> None:
    """A plain task submits and maps, and is their parent. Its own body must run here: called where submit is a gang."""
    leaf = side.task(lambda x: x + 1, name="leaf")

    @prefect.task
    def branch(x: int) -> Any:
        return leaf.submit(x).result() + sum(leaf.map([x, x]).result())

    @side.flow
    def tree() -> Any:
        return branch(1) if side.name == "flow_runner" else branch.submit(1).result()

    flow_run_id, state = run_and_state(tree)
    assert state.result() == 6
    runs = task_runs(client, flow_run_id, 4)
    parent = next(run for run in runs if run.task_key.startswith("branch"))
    parents = [run.task_inputs["__parents__"] for run in runs if run.name.startswith("leaf")]
    assert [[one.id for one in found] for found in parents] == [[parent.id]] * 3


def test_tasks_that_submit_themselves(side: Side) -> None:
    """Recursion in plain tasks, a gang or a thread at each level."""
    leaf = side.task(lambda x: x)

    @prefect.task
    def down(n: int) -> int:
        below = 0
        if n:
            below = down(n - 1) if side.name == "flow_runner" else down.submit(n - 1).result()
        return int(leaf.submit(n).result() + below)

    @side.flow
    def recursive() -> Any:
        return down(2) if side.name == "flow_runner" else down.submit(2).result()

    assert recursive() == 3


def test_a_task_called_by_a_task_runs(side: Side) -> None:
    """On a host it is its plain function: no Prefect API is needed for it."""
    inner = prefect.task(add)

    def outer() -> Any:
        return inner(1, 2)

    task = side.task(outer)

    @side.flow
    def nested() -> Any:
        return task.submit().result()

    assert nested() == 3


def test_subflows_with_their_own_and_with_the_same_runner(side: Side) -> None:
    """Both levels submit; the child may share the parent's runner object."""
    task = side.task(add)

    @side.flow
    def same(x: int) -> Any:
        return task.submit(x, 1).result()

    @flow
    def own(x: int) -> Any:
        return task.submit(x, 1).result()

    @side.flow
    def parent() -> Any:
        first = task.submit(1, 1)
        return first.result(), same(2), own(3), task.submit(4, 1).result()

    assert parent() == (2, 3, 4, 5)


@by_runner
def test_a_subflow_gets_futures_as_values_and_is_an_upstream(side: Side) -> None:
    """Futures go into a subflow, its result into a task."""
    task = side.task(add)

    @side.flow
    def child(x: int) -> Any:
        return task.submit(x, 1).result()

    @side.flow
    def parent() -> Any:
        return task.submit(child(task.submit(1, 1)), 1).result()

    assert parent() == 4


def test_a_subflow_in_a_task(side: Side) -> None:
    """A plain task that runs a flow; it runs here, on a thread where submit is one."""
    task = side.task(add)

    @side.flow
    def child() -> Any:
        return task.submit(1, 1).result()

    @prefect.task
    def runs_flow() -> Any:
        return child()

    @side.flow
    def parent() -> Any:
        return runs_flow() if side.name == "flow_runner" else runs_flow.submit().result()

    assert parent() == 2


@by_runner
def test_nested_async(side: Side) -> None:
    """An async flow, an async subflow, an async task that submits."""
    leaf = side.task(add)

    @prefect.task
    async def branch(x: int) -> Any:
        return leaf.submit(x, 1).result()

    @side.flow
    async def child(x: int) -> Any:
        return await branch(x)

    @side.flow
    async def parent() -> Any:
        return await child(1) + leaf.submit(1, 1).result()

    assert asyncio.run(parent()) == 4
