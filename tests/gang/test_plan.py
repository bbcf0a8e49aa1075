"""What a runner's arguments come to, before anything is connected to."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from prefect_tpu import ConfigurationError, LocalFleet, TpuMultisliceRunner, TpuSlicePool
from prefect_tpu.gang.plan import GangPlan

FLEET = LocalFleet(slices=2, accelerator_type="v4", topology="2x2x1")
"""Two slices of one host with four chips; never started here."""


def plan(**options: Any) -> GangPlan:
    runner: TpuMultisliceRunner[Any] = TpuMultisliceRunner(**{"pool": FLEET} | options)
    return runner.resolve().plan(timeout_seconds=None, checkpoint_name="x", say=logging.getLogger("test"))


@pytest.mark.parametrize(
    ("options", "one", "two"),
    [
        ({}, False, True),
        ({"preload": ("optax",)}, False, True),
        ({"preload": ()}, False, True),
        ({"jax_distributed": "auto", "preload": ("numpy",)}, False, True),
        ({"jax_distributed": True, "preload": ("numpy",)}, True, True),
        ({"jax_distributed": False}, False, False),
    ],
)
def test_several_hosts_are_one_training_whatever_is_preloaded(options: dict[str, Any], one: bool, two: bool) -> None:
    """Unless the option says so."""
    of_two = plan(num_slices=2, **options)
    assert (of_two.initializes_jax(1), of_two.initializes_jax(2)) == (one, two)
    assert "jax" in of_two.preload or not two


def test_preload_is_as_it_was_given_where_jax_is_not_started() -> None:
    """And the same for all sizes of a gang, so that no host imports anew when it grows."""
    assert plan(num_slices=1, preload=["numpy"]).preload == ("numpy",)
    assert plan(num_slices=2, preload=["numpy"], jax_distributed=False).preload == ("numpy",)
    assert plan(num_slices=[1, 2], preload=["numpy"]).preload == ("jax", "numpy")
    assert plan(num_slices=2, preload=["numpy", "jax"]).preload == ("numpy", "jax")


def test_jax_distributed_of_pool_and_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    """As every option: the runner first, then the setting, then the pool."""
    pool = TpuSlicePool(accelerator_type="v4", topology="2x2x1", num_slices=2, jax_distributed=False)
    assert not plan(pool=pool).initializes_jax(2)
    assert plan(pool=pool, jax_distributed="auto").initializes_jax(2)
    monkeypatch.setenv("PREFECT_INTEGRATIONS_TPU_JAX_DISTRIBUTED", "true")
    assert plan(pool=pool).initializes_jax(1)
    monkeypatch.setenv("PREFECT_INTEGRATIONS_TPU_JAX_DISTRIBUTED", "auto")
    assert not plan(pool=pool).initializes_jax(1)
    assert plan(pool=pool).initializes_jax(2)


@pytest.mark.parametrize(
    ("env", "name", "count"),
    [
        ({"XLA_FLAGS": "--a=1 --xla_force_host_platform_device_count=8"}, "XLA_FLAGS", 8),
        ({"XLA_FLAGS": "--xla_force_host_platform_device_count 1"}, "XLA_FLAGS", 1),
        ({"JAX_NUM_CPU_DEVICES": "2"}, "JAX_NUM_CPU_DEVICES", 2),
    ],
)
def test_a_simulated_host_has_the_devices_of_its_topology(env: dict[str, str], name: str, count: int) -> None:
    """Another number in `env` is refused before anything is reserved; the same number and other flags are fine."""
    with pytest.raises(ConfigurationError, match=rf"{name} asks for {count} CPU devices.*2x2x1 has 4 chips"):
        plan(env=env)
    plan(env={"XLA_FLAGS": "--xla_force_host_platform_device_count=4 --a=1", "JAX_NUM_CPU_DEVICES": "4"})
    plan(env={"XLA_FLAGS": "--xla_cpu_enable_fast_math=false"})
