"""Pools as blocks: saved once, named in one string, overridden where somebody needs it."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any
from urllib.error import URLError
from uuid import uuid4

import pytest
from prefect import flow
from prefect.blocks.core import Block
from prefect.client.orchestration import SyncPrefectClient
from prefect.settings import get_current_settings
from prefect.testing.standard_test_suites import BlockStandardTestSuite

from prefect_tpu import (
    ConfigurationError,
    LocalFleet,
    LocalFleetBlock,
    RayFleetBlock,
    TpuMultisliceRunner,
    TpuSlicePool,
    runtime,
    task,
)
from prefect_tpu.blocks import saved_pools
from prefect_tpu.cluster import tpu
from prefect_tpu.fleets.ray_fleet import RayFleet
from tests.e2e.documented import documented
from tests.prefect_runs import run_and_state, task_runs

SETTING = "PREFECT_INTEGRATIONS_TPU_"


@pytest.mark.parametrize("block", [TpuSlicePool, LocalFleetBlock, RayFleetBlock])
class TestStandard(BlockStandardTestSuite):
    """Prefect's own suite for blocks."""

    @pytest.fixture
    def block(self, block: type[Block]) -> type[Block]:  # type: ignore[override]
        """Each of them."""
        return block

    def test_has_a_valid_image(self, block: type[Block]) -> None:
        """Where the network reaches it."""
        try:
            super().test_has_a_valid_image(block)
        except URLError as error:
            pytest.skip(f"the logo's host cannot be reached: {error.reason}")


@pytest.fixture
def name() -> str:
    """Of a pool that no other test has."""
    return f"pool-{uuid4().hex[:8]}"


@pytest.fixture
def on_fleet(fleet: LocalFleet) -> RayFleetBlock:
    """The session's fleet, as a Ray cluster that runs already."""
    return RayFleetBlock(address=fleet.address)


def test_registered_as_the_readme_says(client: SyncPrefectClient) -> None:
    """`prefect block register -m prefect_tpu`: forms with logo, description and example."""
    done = subprocess.run(
        [sys.executable, "-m", "prefect", "block", "register", "-m", "prefect_tpu"],
        env=os.environ | {"PREFECT_API_URL": str(get_current_settings().api.url)},
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    for words in ("TPU Slice Pool", "Local TPU Fleet", "Ray TPU Fleet"):
        assert words in done.stdout
    kind = client.request("GET", "/block_types/slug/{slug}", path_params={"slug": "tpu-slice-pool"}).json()
    assert kind["logo_url"].startswith("https://")
    assert "how runs on them are retried" in kind["description"]
    assert "TpuSlicePool.load" in kind["code_example"]


def test_a_pool_by_its_slug(on_fleet: RayFleetBlock, name: str, client: SyncPrefectClient) -> None:
    """Saved, named in one string before it is there, loaded when the task runs; its fields are the gang's."""
    runner: Any = TpuMultisliceRunner(pool=f"tpu-slice-pool/{name}")

    @task(task_runner=runner)
    def where() -> tuple[int, str]:
        import os

        return runtime.current().num_slices, os.environ["FROM_POOL"]

    TpuSlicePool(
        fleet=on_fleet, num_slices=2, env={"FROM_POOL": "yes"}, checkpoint_root="/tmp/of-the-pool", max_preemptions=7
    ).save(name)
    assert f"tpu-slice-pool/{name}" in saved_pools()

    @flow
    def uses() -> Any:
        return where()

    flow_run_id, state = run_and_state(uses)
    assert state.result() == [(2, "yes")] * 4
    assert task_runs(client, flow_run_id)[0].run_count == 1
    resolved = runner.resolve()
    assert resolved.limits.max_preemptions == 7
    assert resolved.options.checkpoint_root == "/tmp/of-the-pool"


async def test_a_pool_by_its_slug_in_async_code(on_fleet: RayFleetBlock, name: str) -> None:
    """The same in an async flow, and status awaited."""
    pool = TpuSlicePool(fleet=on_fleet)
    await pool.save(name)  # type: ignore[misc]

    @task(task_runner=TpuMultisliceRunner(pool=f"tpu-slice-pool/{name}", jax_distributed=False))
    async def number() -> int:
        return runtime.current().process_id

    @flow
    async def uses() -> Any:
        return await number()

    assert await uses() == [0, 1]
    status = await pool.status()
    assert (status["up"], status["fitting"]) == (True, 2)


def test_no_such_pool(on_fleet: RayFleetBlock, name: str, client: SyncPrefectClient) -> None:
    """The saved ones, and how to make one; never retried, nothing reserved."""
    TpuSlicePool(fleet=on_fleet).save(name)

    @task(task_runner=TpuMultisliceRunner(pool="tpu-slice-pool/no-such-pool"), retries=3)
    def never() -> None:
        raise AssertionError

    @flow
    def uses() -> None:
        never()

    flow_run_id, state = run_and_state(uses)
    assert state.is_failed()
    error = state.result(raise_on_failure=False)
    assert isinstance(error, ConfigurationError)
    for words in (
        "no pool 'tpu-slice-pool/no-such-pool'",
        f"tpu-slice-pool/{name}",
        "prefect block register",
        ".save(",
    ):
        assert words in str(error)
    assert task_runs(client, flow_run_id)[0].run_count == 1


def test_the_pool_of_the_gke_page(name: str) -> None:
    """As docs/gke-kuberay.md has it: saved, loaded, and what it says of its hosts is a shape that exists."""
    documented("gke-kuberay.md")["save_pool"](name=name, address="tpu-head-svc:6379")
    resolved = TpuMultisliceRunner(pool=f"tpu-slice-pool/{name}").resolve()
    assert resolved.fleet == RayFleet("tpu-head-svc:6379", join=True, autoscaled=True)
    options = resolved.options
    shape = tpu.resolve_shape(options.accelerator_type, options.topology, options.chips_per_host)
    assert (shape.pod_type, shape.hosts) == ("v6e-16", 4)


@pytest.mark.parametrize("pool", ["v6e-spot", "tpu-slice-pool/", "tpu-slice-pool/Upper", "other/name", ""])
def test_what_is_no_slug(pool: str) -> None:
    """Refused where the runner is made."""
    with pytest.raises(ConfigurationError, match="tpu-slice-pool/NAME"):
        TpuMultisliceRunner(pool=pool)


# -- precedence


def test_the_runner_comes_before_settings_before_the_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the settings' defaults come last; for numbers, texts, lists, mappings and truth values."""
    pool = TpuSlicePool(
        fleet=LocalFleetBlock(slices=4), num_slices=2, preemptible=True, env={"A": "pool"}, lease_timeout_seconds=11,
        max_infrastructure_failures=3, preload=["numpy"], checkpoint_root="/pool",
    )  # fmt: skip
    names = (
        "num_slices", "preemptible", "env", "lease_timeout_seconds", "max_infrastructure_failures", "preload",
        "checkpoint_root", "max_preemptions_without_progress",
    )  # fmt: skip

    def values(runner: TpuMultisliceRunner[Any]) -> list[Any]:
        resolved = runner.resolve()
        return [getattr(resolved.options, name) for name in names]

    assert values(pool.runner()) == [2, True, {"A": "pool"}, 11, 3, ["numpy"], "/pool", 20]
    for name, value in (
        ("NUM_SLICES", "3"), ("PREEMPTIBLE", "false"), ("ENV", '{"A": "setting"}'), ("LEASE_TIMEOUT_SECONDS", "12"),
        ("MAX_INFRASTRUCTURE_FAILURES", "4"), ("PRELOAD", '["jax"]'), ("CHECKPOINT_ROOT", "/setting"),
        ("MAX_PREEMPTIONS_WITHOUT_PROGRESS", "5"),
    ):  # fmt: skip
        monkeypatch.setenv(SETTING + name, value)
    assert values(pool.runner()) == [3, False, {"A": "setting"}, 12, 4, ["jax"], "/setting", 5]
    runner = pool.runner(
        num_slices=4, preemptible=True, env={"A": "runner"}, lease_timeout_seconds=13, max_infrastructure_failures=5,
        preload=["json"], checkpoint_root="/runner", max_preemptions_without_progress=6,
    )  # fmt: skip
    assert values(runner) == [4, True, {"A": "runner"}, 13, 5, ["json"], "/runner", 6]


def test_where_a_runner_without_a_pool_runs(
    monkeypatch: pytest.MonkeyPatch, on_fleet: RayFleetBlock, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The setting `pool`; else the setting `ray_address`; else the pool saved as default; else simulated slices."""
    TpuSlicePool(fleet=on_fleet, num_slices=2).save(name)
    default = TpuSlicePool(fleet=RayFleetBlock(address="127.0.0.1:1"))
    runner: Any = TpuMultisliceRunner()
    assert isinstance(runner.resolve().fleet, LocalFleet)
    default.save("default")
    try:
        assert runner.resolve().fleet == RayFleet("127.0.0.1:1")
        monkeypatch.setenv(f"{SETTING}RAY_ADDRESS", "127.0.0.1:2")
        assert runner.resolve().fleet == RayFleet("127.0.0.1:2")
        monkeypatch.setenv(f"{SETTING}POOL", f"tpu-slice-pool/{name}")
        resolved = runner.resolve()
        assert (resolved.fleet, resolved.options.num_slices) == (RayFleet(on_fleet.address), 2)
    finally:
        TpuSlicePool.delete("default")


def test_flow_parameters(on_fleet: RayFleetBlock, name: str) -> None:
    """`with_options` inside the flow."""
    TpuSlicePool(fleet=on_fleet, num_slices=1).save(name)

    @task(task_runner=TpuMultisliceRunner(pool=f"tpu-slice-pool/{name}", jax_distributed=False))
    def size() -> int:
        return runtime.current().num_slices

    @flow
    def sized(pool: str, num_slices: int) -> Any:
        runner: Any = TpuMultisliceRunner(pool=pool, num_slices=num_slices, jax_distributed=False)
        return size(), size.with_options(task_runner=runner)()

    assert sized(f"tpu-slice-pool/{name}", 2) == ([1, 1], [2, 2, 2, 2])


# -- what a platform engineer may get wrong


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"accelerator_type": "v99"}, "v99"),
        ({"topology": "3x5"}, "3x5"),
        ({"num_slices": 0}, "must be a whole number of at least 1"),
        ({"num_slices": []}, "or several of them such as"),
        ({"num_slices": [4, 8]}, "more than the 2 slices of the pool's local fleet"),
        ({"num_slices": 3, "fleet": LocalFleetBlock(slices=2)}, "more than the 2 slices of the pool's local fleet"),
        ({"lease_timeout_seconds": -1}, "must be a number of seconds, 0 or more"),
        ({"max_preemptions": -1}, "must be a whole number of at least 0"),
        ({"env": {"A": 1}}, "must be a mapping of strings to strings"),
        ({"fleet": "gke"}, "fleet"),
        ({"num_slice": 2}, "num_slice"),
        ({"chips_per_host": 0}, "must be a whole number of at least 1"),
    ],
)
def test_bad_fields_are_refused_before_they_are_saved(fields: dict[str, Any], words: str) -> None:
    """By name, with what is allowed."""
    with pytest.raises(ValueError, match=words.replace("'", ".")):
        TpuSlicePool(**fields)


def test_ray_client_is_refused() -> None:
    """With the reason."""
    with pytest.raises(ValueError, match="Ray Client cannot be used"):
        RayFleetBlock(address="ray://head:10001")


def test_status_goes_by_the_settings_that_runs_go_by(on_fleet: RayFleetBlock, monkeypatch: pytest.MonkeyPatch) -> None:
    """A setting that is set comes before the pool's field, there as in a run."""
    pool = TpuSlicePool(fleet=on_fleet, num_slices=3)
    with pytest.raises(ConfigurationError, match="num_slices is 3"):
        pool.validate_fleet()
    monkeypatch.setenv(f"{SETTING}NUM_SLICES", "2")
    assert pool.validate_fleet()["fitting"] == 2
    monkeypatch.setenv(f"{SETTING}TOPOLOGY", "2x2x1")
    assert pool.status()["fitting"] == 0


def test_what_is_known_of_a_fleet(on_fleet: RayFleetBlock) -> None:
    """Nothing is reserved or connected by looking."""
    pool = TpuSlicePool(fleet=on_fleet, num_slices=2)
    status = pool.validate_fleet()
    assert (status["up"], status["fitting"], len(status["slices"])) == (True, 2, 2)
    assert status["slices"][0]["name"] == "slice-0"
    too_many = TpuSlicePool(fleet=on_fleet, num_slices=3)
    with pytest.raises(ConfigurationError, match=r"2 whole slices of v4 2x2x2, and num_slices is 3. There: slice-0"):
        too_many.validate_fleet()
    gone = TpuSlicePool(fleet=RayFleetBlock(address="127.0.0.1:1"))
    assert not gone.status()["up"]
    with pytest.raises(ConfigurationError, match=r"127\.0\.0\.1:1"):
        gone.validate_fleet()
    assert RayFleetBlock(address="h:1", autoscaled=True).make("v4", "2x2x2", None) == RayFleet("h:1", autoscaled=True)
    grows = TpuSlicePool(fleet=RayFleetBlock(address=on_fleet.address, autoscaled=True), num_slices=3)
    assert grows.validate_fleet()["fitting"] == 2
    assert TpuSlicePool(fleet=LocalFleetBlock(slices=5)).validate_fleet()["problem"] == (
        "it is not up; the first run starts it"
    )
