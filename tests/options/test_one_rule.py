"""An option has one rule and one set of words: for an argument, a setting, and a field of a pool."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from typing import Any

import pytest
from pydantic import ValidationError

from prefect_tpu import ConfigurationError, RayFleet, TpuMultisliceRunner, TpuSlicePool, task
from prefect_tpu.core.secrets import NAMES_ONLY, shown
from prefect_tpu.options.gang import GangOptions
from prefect_tpu.options.given import GivenOptions, PoolOptions
from prefect_tpu.settings import TpuSettings, current_settings

SECONDS, ABOVE_0 = "must be a number of seconds, 0 or more", "must be a number of seconds above 0"
COUNT, FROM_1 = "must be a whole number of at least 0", "must be a whole number of at least 1"
BAD: list[tuple[str, Any, str]] = [
    ("accelerator_type", 4, 'must be a string such as "v4"'),
    ("topology", ["4x4"], 'must be a string such as "2x2x2"'),
    ("chips_per_host", 0, FROM_1),
    ("num_slices", 0, FROM_1),
    ("num_slices", [2, 0], FROM_1),
    ("num_slices", [], "or several of them such as [2, 4, 8]"),
    ("num_slices", True, FROM_1),
    ("size_wait_seconds", -1, SECONDS),
    ("resize_after_seconds", -1, SECONDS),
    ("resize_interval_seconds", -1, SECONDS),
    ("preemptible", "perhaps", "must be True or False"),
    ("env", {"A=B": "1"}, "'A=...' is no name of a variable: at least one character, no '=', no control characters"),
    ("env", {"": "1"}, "'' is no name of a variable"),
    ("env", {"A\0": "1"}, "is no name of a variable"),
    ("env", {"A": "x\0y"}, "the value of 'A' cannot be a variable's: no NUL"),
    ("env", {"A": "\ud800"}, "the value of 'A' cannot be a variable's"),
    ("env", {"BIG": "x" * (128 * 1024 - 4)}, "'BIG' has 131073 bytes, and 131072 are allowed"),
    ("env", {"PYTHONHOME": "/nope"}, "'PYTHONHOME' cannot be set: host processes run the Python of the host's Ray"),
    ("env", {"_PREFECT_TPU_ATTEMPT": "1"}, "is prefect_tpu's own"),
    ("env", {"A": "{{ prefect.blocks.secret.a }}"}, "a secret is secret_env={'A': \"secret/NAME\"}"),
    ("env", {"A": 1}, "must be a mapping of strings to strings, and the value of 'A' is of type int"),
    ("env", ["A=1"], "must be a mapping of strings to strings"),
    ("secret_env", {"A=B": "1"}, "'A=...' is no name of a variable"),
    ("secret_env", {"A": "x\0y"}, "the value of 'A' cannot be a variable's"),
    ("secret_env", {"A": 1}, "the value of 'A' is of type int"),
    ("secret_env", {"A": ""}, "'A' is empty"),
    ("secret_env", ["A=hush"], "must be a mapping of strings to strings"),
    ("secret_env", {"JAX_PLATFORMS": "cpu"}, "is read before secret variables are set"),
    ("secret_env", {"A": "secret/My Token"}, "is the name of a Secret block, such as 'secret/hf-token'"),
    ("secret_env", {"A": "{{ prefect.blocks.secret.a }}"}, "a Secret block is named 'secret/NAME' here"),
    ("secret_env", {"A": "x" * 40_000, "B": "y" * 40_000}, "has 80002 bytes, and 65536 are allowed"),
    ("runtime_env", {"image_uri": "x"}, "runtime_env has the key 'image_uri'"),
    ("by_name", ["my-package"], "'my-package' is no name of a module, such as 'jax' or 'orbax.checkpoint'"),
    ("preload", ["import jax"], "'import jax' is no name of a module, such as 'jax' or 'orbax.checkpoint'"),
    ("env", {"XLA_FLAGS": "/my/flags"}, "XLA_FLAGS is no list of flags such as '--a=1 --b=2'"),
    ("env", {"PYTHONHASHSEED": "-1"}, "PYTHONHASHSEED must be 'random' or a whole number from 0 to 4294967295"),
    ("jax_distributed", "perhaps", 'must be "auto", True or False'),
    ("checkpoint_root", "", "must be a directory or an fsspec URL, at least one character"),
    ("checkpoint_root", "bogus://bucket/x", "'bogus' is no scheme of a URL that fsspec knows, such as gs, s3, az, hf"),
    ("checkpoint_root", "gs:/bucket/x", "a URL begins with 'gs://'; a directory of that name is './gs:/bucket/x'"),
    ("resumable", 3, "must be True or False"),
    ("max_preemptions", -1, COUNT),
    ("max_infrastructure_failures", -1, COUNT),
    ("max_infrastructure_failures", True, COUNT),
    ("max_preemptions_without_progress", 0, FROM_1),
    ("lease_timeout_seconds", "soon", SECONDS),
    ("lease_timeout_seconds", math.nan, SECONDS),
    ("lease_hold_seconds", -1, SECONDS),
    ("launch_timeout_seconds", 0, ABOVE_0),
    ("cancel_grace_seconds", True, SECONDS),
    ("hang_timeout_seconds", 0, ABOVE_0),
    ("drain_timeout_seconds", 0, ABOVE_0),
    ("warm_spares", -1, COUNT),
    ("agent_idle_release_seconds", -1, SECONDS),
]


def test_given_is_generated() -> None:
    """After a change of an option: `python -m prefect_tpu.options.generate`."""
    done = subprocess.run(
        [sys.executable, "-m", "prefect_tpu.options.generate", "--check"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_option_is_everywhere() -> None:
    """As an argument, a setting and a field; and one bad value of it is tried here."""
    names = set(GangOptions.model_fields)
    assert set(GivenOptions.__annotations__) == set(PoolOptions.model_fields) == names
    assert names <= set(TpuSettings.model_fields)
    assert names <= set(TpuSlicePool.model_fields)
    assert {name for name, _, _ in BAD} == names


def test_every_option_has_its_line_in_the_runners_arguments() -> None:
    """In the docstring, under Args."""
    text = TpuMultisliceRunner.__doc__ or ""
    assert [name for name in GangOptions.model_fields if f"\n        {name}: " not in text] == []


@pytest.mark.parametrize(("name", "value", "words"), BAD)
def test_refused_in_the_same_words(name: str, value: Any, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By name, with the value and what is allowed."""
    with pytest.raises(ConfigurationError) as caught:
        TpuMultisliceRunner(**{name: value})
    for one in (f"TpuMultisliceRunner({name}={shown(value, name)})", words, "set it where the runner is made"):
        assert one in str(caught.value)
    with pytest.raises(ValidationError) as invalid:
        TpuSlicePool(**{name: value})
    assert f"\n{name}\n" in str(invalid.value)
    assert words in str(invalid.value)
    if name in ("accelerator_type", "topology") or value is True:
        return  # in the environment everything is a text
    variable = f"PREFECT_INTEGRATIONS_TPU_{name.upper()}"
    text = value if isinstance(value, str) else json.dumps(value)
    monkeypatch.setenv(variable, text)
    with pytest.raises(ConfigurationError) as caught:
        current_settings()
    as_set = f"{variable}={shown(value, name) if name in NAMES_ONLY else repr(text)}: "
    assert as_set in str(caught.value)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "given", [{"lease_timeout_seconds": "5"}, {"max_preemptions": "5"}, {"num_slices": "2"}, {"resumable": 1}]
)
def test_arguments_are_not_converted(given: dict[str, Any]) -> None:
    """Texts are numbers in the environment only."""
    with pytest.raises(ConfigurationError, match="must be"):
        TpuMultisliceRunner(**given)


def test_what_is_wider_than_what_is_kept() -> None:
    """Whole numbers as seconds, any sequence, any mapping, paths; endless waits."""
    from pathlib import Path
    from types import MappingProxyType

    wide: TpuMultisliceRunner[Any] = TpuMultisliceRunner(
        num_slices=(4, 2), preload=("jax",), env=MappingProxyType({"A": "b"}), checkpoint_root=Path("/x"),
        lease_timeout_seconds=math.inf, launch_timeout_seconds=5,
    )  # fmt: skip
    same: TpuMultisliceRunner[Any] = TpuMultisliceRunner(
        num_slices=[2, 4], preload=["jax"], env={"A": "b"}, checkpoint_root="/x",
        lease_timeout_seconds=math.inf, launch_timeout_seconds=5.0,
    )  # fmt: skip
    assert wide == same
    assert repr(wide) == repr(same)


def test_an_argument_that_there_is_not() -> None:
    """By name, with those that there are."""
    with pytest.raises(TypeError, match=r"no argument 'num_slice' \(is 'num_slices' meant\?\); it has .*num_slices"):
        TpuMultisliceRunner(num_slice=2)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="num_slice"):
        TpuSlicePool().runner(num_slice=2)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match=r"no argument 'retries' \(it belongs to the task: @task\(task_runner"):
        TpuMultisliceRunner(retries=3)  # type: ignore[call-overload]


def test_an_option_of_the_runner_is_none_of_the_task() -> None:
    """Where it is written is in the error."""
    fn = task(task_runner=TpuMultisliceRunner())(lambda: 1)  # type: ignore[var-annotated]
    with pytest.raises(TypeError, match=r"num_slices.\] \(of a runner: task_runner=TpuMultisliceRunner\(num_slices"):
        fn.with_options(num_slices=2)


def test_a_fleets_class_is_no_pool() -> None:
    """The parentheses were forgotten."""
    with pytest.raises(ConfigurationError, match=r"pool=.*RayFleet.*must be"):
        TpuMultisliceRunner(pool=RayFleet)  # type: ignore[arg-type]
