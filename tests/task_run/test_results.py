"""What a gang task returns, and the ways to run it."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from prefect import flow, unmapped
from prefect import task as prefect_task
from prefect.futures import wait
from prefect.settings import get_current_settings

from prefect_tpu import ConfigurationError, LocalFleet, TpuMultisliceRunner, runtime, task

Runner = TpuMultisliceRunner[Any]


def psum_of_distinct_values() -> tuple[int, int, float]:
    """Process id, devices, and the sum over all devices of each device's own number."""
    import jax
    import jax.numpy as jnp
    from jax.sharding import NamedSharding, PartitionSpec

    mesh = jax.make_mesh((jax.device_count(),), ("all",))
    here = np.array([float(device.id) for device in jax.local_devices()], dtype=np.float32)
    numbers = jax.make_array_from_process_local_data(NamedSharding(mesh, PartitionSpec("all")), here)
    total = jax.jit(jnp.sum, out_shardings=NamedSharding(mesh, PartitionSpec()))(numbers)
    expected = jax.jit(jnp.sum)(jnp.array(sorted(device.id for device in jax.devices()), dtype=jnp.float32))
    assert float(total) == float(expected)
    return jax.process_index(), jax.device_count(), float(total)


def test_sixteen_devices_of_four_processes_talk_twice_on_the_same_gang(two_slices: Runner) -> None:
    """A collective over all devices, under a task, and again: nothing of the first attempt is left."""
    talk = task(task_runner=two_slices)(psum_of_distinct_values)

    @flow
    def twice() -> list[Any]:
        return [talk(), talk()]

    first, second = twice()
    assert [process for process, _, _ in first] == [0, 1, 2, 3]
    assert {devices for _, devices, _ in first} == {16}
    assert len({total for _, _, total in first}) == 1
    assert second == first


def test_devices_talk_under_map(two_slices: Runner) -> None:
    """Two mapped gangs, one after the other on the same slices."""

    @task(task_runner=two_slices)
    def talk(number: int) -> tuple[int, int]:
        _, devices, _ = psum_of_distinct_values()
        return number, devices

    @flow
    def mapped() -> list[Any]:
        return talk.map([1, 2]).result()

    assert mapped() == [[(1, 16)] * 4, [(2, 16)] * 4]


def where() -> tuple[int, int, int]:
    ctx = runtime.current()
    return ctx.process_id, ctx.slice_index, ctx.host_index


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [(0, 0, 0), (1, 0, 1), (2, 1, 0), (3, 1, 1)]),
        ({"flatten": False}, [[(0, 0, 0), (1, 0, 1)], [(2, 1, 0), (3, 1, 1)]]),
        ({"returns": "process0"}, (0, 0, 0)),
    ],
)
def test_shape_of_results(fleet: LocalFleet, options: dict[str, Any], expected: Any) -> None:
    """Flat in process-id order, nested per slice, or process 0's only."""
    runner: Runner = TpuMultisliceRunner(pool=fleet, num_slices=2, jax_distributed=False, **options)
    assert task(task_runner=runner)(where)() == expected


def test_outside_a_flow(one_slice: Runner) -> None:
    """Direct call and submit work without a flow."""

    @task(task_runner=one_slice)
    def double(x: int) -> int:
        return 2 * x

    assert double(4) == [8, 8]
    assert double.submit(5).result() == [10, 10]  # type: ignore[comparison-overlap]


def test_async_function(one_slice: Runner) -> None:
    """An async function runs on the hosts, and the flow's event loop goes on meanwhile."""

    @task(task_runner=one_slice)
    async def slow(x: int) -> int:
        await asyncio.sleep(0.5)
        return x + 1

    @flow
    async def both() -> tuple[Any, int]:
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                await asyncio.sleep(0.02)
                ticks += 1

        ticker = asyncio.create_task(tick())
        result = await slow(1)
        ticker.cancel()
        return result, ticks

    result, ticks = asyncio.run(both())
    assert result == [2, 2]
    assert ticks > 10
    assert asyncio.run(slow(2)) == [3, 3]  # type: ignore[comparison-overlap]


def test_async_submit(one_slice: Runner) -> None:
    """An async gang task is submitted like any other."""

    @task(task_runner=one_slice)
    async def plus(x: int) -> int:
        return x + 1

    @flow
    def submits() -> Any:
        return plus.submit(1).result()

    assert submits() == [2, 2]


def test_flow_with_this_runner(one_slice: Runner) -> None:
    """Under @flow(task_runner=...) every submitted task is a gang; a direct call stays local, as in Prefect."""

    @prefect_task
    def process_id() -> int | None:
        ctx = runtime.current(default=None)
        return None if ctx is None else ctx.process_id

    @flow(task_runner=one_slice)
    def gangs() -> Any:
        future = process_id.submit()
        mapped = process_id.with_options(name="again").submit()
        wait([future, mapped])
        return future.result(), process_id()

    assert gangs() == ([0, 1], None)


def test_parameters_from_other_tasks(one_slice: Runner) -> None:
    """Futures, results, unmapped values and arrays arrive as values; results go on as parameters."""

    @prefect_task
    def load() -> np.ndarray[Any, Any]:
        return np.arange(6.0)

    @task(task_runner=one_slice)
    def scale(data: np.ndarray[Any, Any], by: float) -> float:
        data *= by  # arguments are writable on the host
        return float(data.sum())

    @prefect_task
    def add(values: list[float]) -> float:
        return sum(values)

    @flow
    def chain() -> tuple[Any, Any]:
        first = scale.submit(load.submit(), 2.0)
        mapped = scale.map(unmapped(load()), [1.0, 3.0])
        return add.submit(first).result(), mapped.result()

    assert chain() == (60.0, [[15.0, 15.0], [45.0, 45.0]])


def test_large_arrays_go_and_come_back(one_slice: Runner) -> None:
    """64 MiB each way, per host, and the result can be written to."""

    @task(task_runner=one_slice, cache_result_in_memory=False, persist_result=False)
    def negate(data: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return -data

    data = np.arange(8 * 2**20, dtype=np.float64)
    for result in negate(data):
        assert np.array_equal(result, -data)
        result[0] = 1


JAX_IN_THE_DRIVER = """
import sys
from prefect_tpu import RayFleet, TpuMultisliceRunner, task

@task(task_runner=TpuMultisliceRunner(pool=RayFleet(sys.argv[1]), num_slices=2))
def ones():
    import jax.numpy as jnp
    return {"ones": jnp.ones(3)}

types = {type(result["ones"]).__name__ for result in ones()}
bridge = sys.modules.get("jax._src.xla_bridge")
print("types", types, "backends", bridge._backends if bridge else {})
"""


def test_jax_arrays_come_back_as_numpy_and_start_no_backend_here(fleet: LocalFleet) -> None:
    """An addressable jax.Array is numpy in the driver, which keeps its hands off the chips."""
    done = subprocess.run(
        [sys.executable, "-c", JAX_IN_THE_DRIVER, fleet.address],
        env=os.environ | fleet.access() | {"PREFECT_API_URL": str(get_current_settings().api.url)},
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert "types {'ndarray'} backends {}" in done.stdout, done.stdout + done.stderr


def test_gang_environment_on_the_hosts(fleet: LocalFleet) -> None:
    """The user's variables, also those that JAX reads at import, and MegaScale's; ports are new each time."""
    runner: Runner = TpuMultisliceRunner(pool=fleet, num_slices=2, env={"JAX_ENABLE_X64": "1", "MY": "own"})

    @task(task_runner=runner)
    def look() -> tuple[str, dict[str, str]]:
        import os

        import jax.numpy as jnp

        return str(jnp.ones(1).dtype), {
            k: v for k, v in os.environ.items() if k.startswith(("MEGASCALE", "MY", "TPU_"))
        }

    first, second = look(), look()
    assert {dtype for dtype, _ in first} == {"float64"}
    assert [env["MEGASCALE_SLICE_ID"] for _, env in first] == ["0", "0", "1", "1"]
    assert {env["MY"] for _, env in first} == {"own"}
    assert [env["TPU_NAME"] for _, env in first] == ["slice-0", "slice-0", "slice-1", "slice-1"]
    assert first[0][1]["MEGASCALE_PORT"] != second[0][1]["MEGASCALE_PORT"]


def test_nothing_leaks_from_attempt_to_attempt(one_slice: Runner) -> None:
    """Environment, modules and a started JAX backend end with their process."""

    @task(task_runner=one_slice)
    def dirty() -> list[bool]:
        import os
        import sys

        import jax

        seen = ["LEFTOVER" in os.environ, "fractions_leftover" in sys.modules]
        backend = sys.modules["jax._src.xla_bridge"]
        seen.append(bool(backend._backends))  # type: ignore[attr-defined]
        os.environ["LEFTOVER"] = "1"
        sys.modules["fractions_leftover"] = sys
        jax.devices()
        return seen

    assert dirty() == dirty() == [[False, False, False]] * 2


def test_generators_are_refused(one_slice: Runner) -> None:
    """At decoration, and when a flow's runner is given one."""
    with pytest.raises(ConfigurationError, match="generator function"):

        @task(task_runner=one_slice)
        def numbers() -> Any:
            yield 1

    with pytest.raises(ConfigurationError, match="generator function"):

        @task(task_runner=one_slice)
        async def later() -> Any:
            yield 1


def test_without_a_task_runner_it_is_prefects_own() -> None:
    """prefect_tpu.task without task_runner= makes a plain Prefect task."""
    from prefect.tasks import Task

    @task
    def plain(x: int) -> int:
        return x

    assert type(plain) is Task
    assert type(task(name="named")(lambda: 1)) is Task


def test_with_options_keeps_the_runner(one_slice: Runner, two_slices: Runner) -> None:
    """Options change, the runner and the body stay; another runner may be given."""

    @task(task_runner=one_slice, retries=3, tags=["a"], name="first")
    def body() -> int:
        return runtime.current().num_slices

    other = body.with_options(name="second", retries=1, retry_delay_seconds=[1, 2])
    assert (other.name, other.retries, other.tags, other.task_runner) == ("second", 1, {"a"}, one_slice)
    assert other() == [1, 1]
    assert body.with_options(task_runner=two_slices).task_runner == two_slices  # type: ignore[call-arg]
    assert body.fn() if runtime.current(default=None) else True


def test_fn_is_the_plain_function(one_slice: Runner) -> None:
    """`task.fn(...)` calls the body here, as in Prefect: for unit tests of it."""

    @task(task_runner=one_slice)
    def add(a: int, b: int) -> int:
        return a + b

    assert add.fn(1, 2) == 3  # type: ignore[comparison-overlap]
