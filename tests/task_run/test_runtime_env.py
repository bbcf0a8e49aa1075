"""Ray's runtime_env for the hosts of a gang: set up before anything of ours starts, and never tried for ever."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prefect import flow
from prefect.client.orchestration import SyncPrefectClient
from ray._private import state as ray_state
from ray.runtime_env import RuntimeEnv

from prefect_tpu import ConfigurationError, LocalFleet, TpuMultisliceRunner, TpuSlicePool, task
from prefect_tpu.core.errors import HostProcessError
from tests.prefect_runs import run_and_state, task_runs
from tests.waiting import eventually

NOWHERE = "https://127.0.0.1:1/code.zip"
"""Nobody listens there. A pip package that no index has ends the same way, but Ray tries that for two minutes."""


@pytest.fixture
def package(tmp_path: Path) -> Callable[[str], str]:
    """A directory with a package `travelling`, which is on no path of this machine."""

    def make(answer: str) -> str:
        folder = tmp_path / f"code-{answer}" / "travelling"
        folder.mkdir(parents=True)
        (folder / "__init__.py").write_text(f"ANSWER = {answer!r}\n")
        return str(folder)

    return make


def answer_of(fleet: LocalFleet, runtime_env: dict[str, Any], **options: Any) -> list[Any]:
    """What `travelling` says on each of the two hosts of a slice, with its agent."""

    @task(
        task_runner=TpuMultisliceRunner(
            pool=fleet, jax_distributed=False, runtime_env=runtime_env, **({"preload": ["numpy"]} | options)
        )
    )
    def ask() -> tuple[str, str | None]:
        import os

        import travelling  # type: ignore[import-not-found]

        return travelling.ANSWER, os.environ.get("FROM_RUNTIME_ENV")

    @flow
    def asks() -> Any:
        return ask()

    found: list[Any] = asks()
    return found


def agents() -> list[str]:
    """The nodes that Ray has living agents of ours on, once for each agent."""
    actors = ray_state.state.actor_table(None).values()
    ours = [one for one in actors if one["Name"].startswith("prefect-tpu-agent-") and one["State"] == "ALIVE"]
    return sorted(one["Address"]["NodeID"] for one in ours)


def test_modules_and_variables_of_a_runtime_env(fleet: LocalFleet, package: Callable[[str], str]) -> None:
    """They are there when the zygote imports, too; other contents are another runtime_env, and one agent is kept."""
    first = {"py_modules": [package("one")], "env_vars": {"FROM_RUNTIME_ENV": "yes"}}
    assert answer_of(fleet, first, preload=["travelling"]) == [("one", "yes")] * 2
    assert answer_of(fleet, {"py_modules": [package("two")]}) == [("two", None)] * 2
    assert len(set(agents())) >= 2
    eventually(lambda: len(agents()) == len(set(agents())), "the agents of the first are ended", 15)


def test_a_working_directory(fleet: LocalFleet, package: Callable[[str], str]) -> None:
    """Its modules can be imported."""
    assert answer_of(fleet, {"working_dir": str(Path(package("three")).parent)}) == [("three", None)] * 2


def test_what_cannot_be_set_up_is_not_tried_again(fleet: LocalFleet, client: SyncPrefectClient) -> None:
    """Code that cannot be fetched: one attempt whatever the budgets are, with Ray's words; the hosts stay usable."""
    runner: Any = TpuMultisliceRunner(
        pool=fleet, jax_distributed=False, preload=["numpy"], runtime_env={"py_modules": [NOWHERE]},
    )  # fmt: skip

    @task(task_runner=runner, retries=3)
    def never() -> None:
        raise AssertionError

    @flow
    def fails() -> None:
        never()

    flow_run_id, state = run_and_state(fails)
    error = state.result(raise_on_failure=False)
    assert isinstance(error, HostProcessError)
    assert "failed at stage 'runtime_env': RuntimeEnvSetupError: requests.exceptions.ConnectionError" in str(error)
    assert "mend the `runtime_env` of pool or runner" in str(error)
    assert task_runs(client, flow_run_id)[0].run_count == 1

    @task(task_runner=TpuMultisliceRunner(pool=fleet, jax_distributed=False, preload=["numpy"]))
    def works() -> int:
        return 1

    began = time.monotonic()
    assert flow(works)() == [1, 1]
    assert time.monotonic() - began < 60


def test_a_directory_that_is_not_there(fleet: LocalFleet, client: SyncPrefectClient) -> None:
    """It is looked for on the machine that runs the flow, when it runs."""

    @task(task_runner=TpuMultisliceRunner(pool=fleet, runtime_env={"py_modules": ["/nowhere/code"]}), retries=3)
    def never() -> None:
        raise AssertionError

    @flow
    def fails() -> None:
        never()

    flow_run_id, state = run_and_state(fails)
    error = state.result(raise_on_failure=False)
    assert isinstance(error, ConfigurationError)
    assert "there is no '/nowhere/code' on the machine that runs the flow" in str(error)
    assert task_runs(client, flow_run_id)[0].run_count == 1


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"pips": ["a"]}, "has the key 'pips'; a gang's hosts take pip, uv, conda, py_modules"),
        ({"image_uri": "x"}, "has the key 'image_uri'"),
        ({"pip": "requirements.txt"}, "must be a list of packages"),
        ({"conda": "environment.yaml"}, "must be a conda environment's name"),
        ({"pip": ["a"], "conda": "b"}, "Ray does not take it"),
        ({"env_vars": {"A": 1}}, "Ray does not take it"),
        ({"py_modules": [json]}, "must be plain texts"),
    ],
)
def test_what_is_refused_where_it_is_written(given: dict[str, Any], words: str) -> None:
    """In a pool before it is saved, and in a runner where it is made; by name, with what is allowed."""
    with pytest.raises(ConfigurationError, match=words):
        TpuMultisliceRunner(runtime_env=given)
    with pytest.raises(ValueError, match=words):
        TpuSlicePool(runtime_env=given)


@pytest.mark.parametrize("given", [{"pip": ["einops==0.8.1"]}, {"env_vars": {"A": "1"}, "config": {"log_files": []}}])
def test_rays_own_class_is_taken(given: dict[str, Any]) -> None:
    """RuntimeEnv writes Ray's commit beside what the user said; that is left out, in a runner and in a pool."""
    kept = TpuMultisliceRunner(runtime_env=RuntimeEnv(**given)).resolve().options.runtime_env
    assert set(kept) == set(given)
    saved = TpuSlicePool(runtime_env=RuntimeEnv(**given).to_dict()).runtime_env
    assert saved is not None
    assert set(saved) == set(given)


def test_where_a_runtime_env_comes_from(monkeypatch: pytest.MonkeyPatch) -> None:
    """The runner, else the setting, else the pool; as all others. The same for the drain's limit."""
    pool = TpuSlicePool(runtime_env={"pip": ["a"]}, drain_timeout_seconds=7)

    def values(**options: Any) -> tuple[Any, Any]:
        resolved = pool.runner(**options).resolve().options
        return resolved.runtime_env, resolved.drain_timeout_seconds

    assert values() == ({"pip": ["a"]}, 7)
    monkeypatch.setenv("PREFECT_INTEGRATIONS_TPU_RUNTIME_ENV", '{"pip": ["b"]}')
    monkeypatch.setenv("PREFECT_INTEGRATIONS_TPU_DRAIN_TIMEOUT_SECONDS", "8")
    assert values() == ({"pip": ["b"]}, 8)
    assert values(runtime_env={"pip": ["c"]}, drain_timeout_seconds=9) == ({"pip": ["c"]}, 9)
