"""What a gang on real (simulated) hosts finds, whatever it is given: all hosts, all devices, one seed, values."""

from __future__ import annotations

from typing import Any

import numpy
import pytest
import ray
from prefect import flow

from prefect_tpu import LocalFleet, TpuMultisliceRunner, runtime, task

pytestmark = [pytest.mark.usefixtures("prefect_server"), pytest.mark.timeout(180)]


def test_one_training_with_all_devices_and_one_seed(fleet: LocalFleet) -> None:
    """With a preload that has no JAX, flags of the user's own, and references of Ray as arguments."""
    runner: TpuMultisliceRunner[Any] = TpuMultisliceRunner(
        pool=fleet, num_slices=2, preload=("json",), env={"XLA_FLAGS": "--xla_cpu_enable_fast_math=false"}
    )

    @task(task_runner=runner)
    def look(big: Any, nested: dict[str, Any]) -> tuple[Any, ...]:
        import jax
        import ray

        try:
            ray.put(1)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is told
            told = f"{type(error).__name__}: {error}"
        seen = jax.process_count(), jax.local_device_count(), jax.device_count(), runtime.current().jax_distributed
        return seen, (float(big.sum()), nested), hash("layer"), list({"w", "b", "scale"}), told, ray.is_initialized()

    @flow
    def ask() -> Any:
        fleet.connect()
        return look(ray.put(numpy.ones(300_000)), {"a": [ray.put("small")]})

    first, *others = ask()
    assert first[:2] == ((4, 4, 16, True), (300_000.0, {"a": ["small"]}))
    assert first[4].startswith("ConfigurationError: the function runs in a host process of a gang: it is no Ray task")
    assert first[5] is False
    assert others == [first] * 3


def test_hosts_reach_each_other_past_a_proxy(fleet: LocalFleet, caplog: pytest.LogCaptureFixture) -> None:
    """One that answers nobody changes nothing for the gang; the user's own exceptions from it stay."""
    proxy = {"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9", "no_proxy": "mine.example"}
    runner: TpuMultisliceRunner[Any] = TpuMultisliceRunner(
        pool=fleet,
        num_slices=2,
        env=proxy,
        launch_timeout_seconds=15,
        max_infrastructure_failures=0,
        returns="process0",
    )

    @task(task_runner=runner)
    def meet() -> tuple[int, bool]:
        import os

        import jax

        return jax.process_count(), os.environ["NO_PROXY"].startswith("mine.example,localhost,127.0.0.1,")

    assert meet() == (4, True)
    assert "proxy" not in caplog.text


def test_a_reference_whose_task_failed_is_that_tasks_error(fleet: LocalFleet) -> None:
    """Nothing is started for it."""
    fleet.connect()

    @task(task_runner=TpuMultisliceRunner(pool=fleet, jax_distributed=False))
    def never(value: Any) -> None:
        raise AssertionError

    ref = ray.remote(lambda: int("no number")).options(num_cpus=0).remote()
    with pytest.raises(ValueError, match="no number"):
        never(ref)
