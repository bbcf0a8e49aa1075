"""Not run: mypy reads it in CI, and an unused ignore or a wrong type fails there."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any, assert_type

from prefect.futures import PrefectFuture
from prefect.tasks import MaterializingTask, Task

from prefect_tpu import LocalFleet, QueuedResourceFleet, TpuMultisliceRunner, materialize, task
from prefect_tpu.task_run.gang_task import GangTask


@task(task_runner=TpuMultisliceRunner(num_slices=2), retries=3)
def flat(steps: int, *, rate: float = 0.1) -> float:
    return steps * rate


@task(task_runner=TpuMultisliceRunner)
def defaults(steps: int) -> str:
    return str(steps)


@task(task_runner=TpuMultisliceRunner(pool=LocalFleet(), flatten=False))
def nested(steps: int) -> float:
    return float(steps)


@task(task_runner=TpuMultisliceRunner(pool=QueuedResourceFleet("my-project", ("us-east5-b",))))
def on_demand(steps: int) -> float:
    return float(steps)


@task(task_runner=TpuMultisliceRunner(returns="process0", env={"A": "b"}))
def first(steps: int) -> float:
    return float(steps)


@task(task_runner=TpuMultisliceRunner(returns="process0"))
async def first_async(steps: int) -> float:
    return float(steps)


@task(task_runner=TpuMultisliceRunner())
async def flat_async(steps: int) -> float:
    return float(steps)


@materialize("s3://bucket/model", by="jax", task_runner=TpuMultisliceRunner(num_slices=2), retries=3)
def model(steps: int) -> float:
    return float(steps)


@materialize("s3://bucket/model", task_runner=TpuMultisliceRunner(flatten=False))
def nested_model(steps: int) -> float:
    return float(steps)


@materialize("s3://bucket/model", task_runner=TpuMultisliceRunner(returns="process0"))
def first_model(steps: int) -> float:
    return float(steps)


@materialize("s3://bucket/model", name="plain")
def plain_model(steps: int) -> float:
    return float(steps)


@task
def plain(steps: int) -> int:
    return steps


@task(name="with options")
def plain_with_options(steps: int) -> int:
    return steps


def check() -> None:
    assert_type(flat(1, rate=0.5), list[float])
    assert_type(defaults(1), list[str])
    assert_type(nested(1), list[list[float]])
    assert_type(first(1), float)
    one: Coroutine[Any, Any, float] = first_async(1)
    several: Coroutine[Any, Any, list[float]] = flat_async(1)
    one.close()
    several.close()
    exactly_prefects: Task[[int], int] = plain
    assert_type(exactly_prefects(1), int)
    assert_type(plain_with_options(1), int)
    future: PrefectFuture[list[float]] = flat.submit(1, rate=0.5)
    assert_type(future.result(), list[float])
    changed: GangTask[..., list[float]] = flat.with_options(retries=1)
    changed(1)
    assert_type(model(1), list[float])
    assert_type(nested_model(1), list[list[float]])
    assert_type(first_model(1), float)
    prefects: MaterializingTask[[int], float] = plain_model
    assert_type(prefects(1), float)
    model("x")  # type: ignore[call-overload]
    flat("x")  # type: ignore[call-overload]
    TpuMultisliceRunner(slices=2)  # type: ignore[call-overload]
