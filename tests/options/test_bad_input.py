"""Bad input ends in a clear error before anything is reserved or started."""

from __future__ import annotations

import logging
import re
import threading
from pathlib import Path
from typing import Any

import pytest
from prefect.blocks.core import Block
from pydantic import ValidationError

from prefect_tpu import (
    ConfigurationError,
    HostProcessError,
    LocalFleet,
    LocalFleetBlock,
    QueuedResourceFleetBlock,
    RayFleet,
    RayFleetBlock,
    SliceUnavailableError,
    TopologyError,
    TpuMultisliceRunner,
    TpuSlicePool,
    blocks,
    task,
)
from prefect_tpu.blocks.base import TpuBlock
from prefect_tpu.settings import current_settings
from tests.options.test_one_rule import BAD

Runner = TpuMultisliceRunner[Any]


def answer() -> int:
    return 42


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"num_slices": 0}, "num_slices=0"),
        ({"num_slices": -1}, "num_slices=-1"),
        ({"num_slices": "2"}, "num_slices='2'"),
        ({"num_slices": True}, "num_slices=True"),
        ({"num_slices": []}, "or several of them such as [2, 4, 8]"),
        ({"num_slices": [2, 0]}, "num_slices=[2, 0]"),
        ({"resize_after_seconds": -1}, "resize_after_seconds=-1"),
        ({"returns": "first"}, '"all" or "process0"'),
        ({"pool": 3}, "a fleet"),
        ({"env": {"A": 1}}, "strings to strings"),
        ({"jax_distributed": "yes"}, "jax_distributed='yes'"),
        ({"checkpoint_key": "../other"}, "checkpoint_key='../other'): must be names of letters, digits"),
        ({"checkpoint_key": 3}, "checkpoint_key=3): must be a string, or a function of (context, parameters)"),
        ({"lease_timeout_seconds": -1}, "lease_timeout_seconds=-1"),
        ({"topology": 4}, "topology=4"),
        ({"preload": "jax"}, "preload='jax'"),
        ({"env": ["A=1"]}, "env=...): must be a mapping of strings to strings"),
        ({"max_workers": "x"}, "max_workers='x'"),
    ],
)
def test_wrong_arguments_are_named_at_once(options: dict[str, Any], says: str) -> None:
    """The argument, its value and what is allowed, when the runner is made."""
    with pytest.raises(ConfigurationError, match="TpuMultisliceRunner") as caught:
        TpuMultisliceRunner(**options)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"accelerator_type": "v9"}, "v6e"),
        ({"topology": "3x3x3"}, "2x2x2"),
        ({"chips_per_host": 3}, "do not divide"),
    ],
)
def test_unknown_shapes_list_the_valid_ones(fleet: LocalFleet, options: dict[str, Any], says: str) -> None:
    """From Ray's own table, when the gang would start."""
    runner: Runner = TpuMultisliceRunner(pool=fleet, **options)
    with pytest.raises(TopologyError, match=says):
        task(task_runner=runner)(answer)()


def test_arguments_without_their_names() -> None:
    """The name that is most likely meant."""
    make: Any = TpuMultisliceRunner
    with pytest.raises(TypeError, match=r"have names; write TpuMultisliceRunner\(num_slices=2\)"):
        make(2)
    with pytest.raises(TypeError, match=r"write TpuMultisliceRunner\(pool=LocalFleet\("):
        make(LocalFleet())


@pytest.mark.parametrize("address", ["nohost:x", "head", "head:0", "head:99999", "", "http://head:6379", 6379])
def test_what_is_no_address_is_refused_where_it_is_given(address: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the fleet, in its block, and in the setting."""
    words = "must be 'auto' or 'host:port', such as '10.0.0.2:6379'"
    with pytest.raises(ConfigurationError, match=words):
        RayFleet(address)
    if isinstance(address, str):
        with pytest.raises(ValidationError, match=words):
            RayFleetBlock(address=address)
        monkeypatch.setenv("PREFECT_INTEGRATIONS_TPU_RAY_ADDRESS", address)
        with pytest.raises(ConfigurationError, match=words):
            current_settings()


def test_who_has_set_a_shape_that_there_is_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Argument, environment, file or default: each with what it has set. What is no setting is told once."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PREFECT_INTEGRATIONS_TPU_TOPOLOGY", "3x5")
    (tmp_path / "prefect.toml").write_text("[integrations.tpu]\nchips_per_host = 4\nnum_slice = 2\n")
    (tmp_path / "pyproject.toml").write_text("[tool.prefect.integrations.tpu]\nlease_timeout = 2\n")
    (tmp_path / ".env").write_text("PREFECT_INTEGRATIONS_TPU_PREEMPTABLE=1\n")
    monkeypatch.setenv("PREFECT_INTEGRATIONS_TPU_NUM_SLICE", "2")
    runner: Runner = TpuMultisliceRunner(accelerator_type="v4", pool=RayFleet())
    log: Any = logging.getLogger("a run")
    for _ in range(2):
        with pytest.raises(TopologyError) as caught:
            runner.resolve().plan(timeout_seconds=None, checkpoint_name="x", say=log)
    for words in (
        "accelerator_type 'v4' is set by TpuMultisliceRunner(accelerator_type='v4')",
        "topology '3x5' is set by PREFECT_INTEGRATIONS_TPU_TOPOLOGY in the environment",
        "chips_per_host 4 is set by chips_per_host in prefect.toml, [integrations.tpu]",
    ):
        assert words in str(caught.value)
    told = [one.getMessage() for one in caplog.records if "no such setting" in one.getMessage()]
    for words in (
        "PREFECT_INTEGRATIONS_TPU_NUM_SLICE in the environment: there is no such setting, so it changes nothing",
        "is PREFECT_INTEGRATIONS_TPU_NUM_SLICES meant?",
        "PREFECT_INTEGRATIONS_TPU_PREEMPTABLE in .env",
        "num_slice in prefect.toml, [integrations.tpu]: there is no such setting, so it changes nothing; is num_slices",
        "lease_timeout in pyproject.toml, [tool.prefect.integrations.tpu]",
    ):
        assert len([one for one in told if words in one]) == 1, told


def test_slices_of_the_defaults_are_those_that_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a pool the simulation follows arguments and settings: others would be waited for in vain."""
    monkeypatch.setenv("PREFECT_INTEGRATIONS_TPU_TOPOLOGY", "4x4")
    fleet = TpuMultisliceRunner(accelerator_type="v5e").resolve().fleet
    assert fleet == LocalFleet(accelerator_type="v5e", topology="4x4")


def test_ray_out_of_reach(fleet: LocalFleet) -> None:
    """The address, and what to do."""
    with pytest.raises(ConfigurationError, match=r"127\.0\.0\.1:9"):
        task(task_runner=TpuMultisliceRunner(pool=RayFleet("127.0.0.1:9")))(answer)()


def test_not_a_runner() -> None:
    """task_runner= takes a TpuMultisliceRunner, and says where others go."""
    with pytest.raises(ConfigurationError, match="@flow"):
        task(task_runner=3)(answer)  # type: ignore[call-overload]


def test_a_function_that_does_not_pickle_names_the_object(one_slice: Runner) -> None:
    """The closure's variable, before anything is reserved."""
    lock = threading.Lock()

    @task(task_runner=one_slice, retries=3)
    def holds_lock() -> bool:
        return lock.locked()

    with pytest.raises(ConfigurationError, match="lock"):
        holds_lock()


def test_a_parameter_that_does_not_pickle_is_named(one_slice: Runner) -> None:
    """By the parameter's position or name, and its type."""

    @task(task_runner=one_slice)
    def takes(anything: Any) -> None:
        return None

    with pytest.raises(ConfigurationError, match=r"lock"):
        takes(threading.Lock())


def test_a_result_that_does_not_pickle_names_host_and_type(one_slice: Runner) -> None:
    """A clear error, never a hang, and the next call works."""

    @task(task_runner=one_slice, retries=2)
    def returns_lock() -> Any:
        import threading

        return {"deep": [threading.Lock()]}

    with pytest.raises(HostProcessError, match=r"slice 0 host 0.*lock") as caught:
        returns_lock()
    first_line = str(caught.value).splitlines()[0]
    assert "inside the function" not in first_line
    assert first_line.endswith("What to do: return something that pickles: arrays, numbers, strings, plain classes.")
    assert task(task_runner=one_slice)(answer)() == [42, 42]


def test_an_exception_that_does_not_pickle_names_host_and_type(one_slice: Runner) -> None:
    """Its type, message and traceback are shown although it cannot travel."""

    @task(task_runner=one_slice)
    def raises_lock() -> None:
        import threading

        class LockedError(Exception):
            lock = threading.Lock()  # its class does not pickle; an attribute of the exception would stay behind

        raise LockedError("holds a lock")

    with pytest.raises(HostProcessError, match=r"slice 0 host \d raised .*LockedError: holds a lock"):
        raises_lock()


def test_a_preload_that_fails_is_fatal(fleet: LocalFleet) -> None:
    """It names the module, and no retry is spent on it."""
    runner: Runner = TpuMultisliceRunner(pool=fleet, preload=("no_such_module",))
    attempts: list[int] = []

    @task(task_runner=runner, retries=5, on_running=[lambda *_: attempts.append(1)])
    def never() -> None:
        return None

    with pytest.raises(ConfigurationError, match="no_such_module"):
        never()
    assert len(attempts) == 1


def test_too_few_slices_says_what_there_is(fleet: LocalFleet) -> None:
    """What was asked, what the fleet has, and what to do; nothing stays reserved. More might join a Ray cluster."""
    cluster = RayFleet(fleet.address)
    runner: Runner = TpuMultisliceRunner(pool=cluster, num_slices=3, lease_timeout_seconds=1)
    with pytest.raises(SliceUnavailableError) as caught:
        task(task_runner=runner)(answer)()
    text = str(caught.value)
    for wanted in ("3 free v4 2x2x2", "slice-0 (v4 2x2x2, 2 of 2 hosts, 8 chips): free", "lease_timeout_seconds"):
        assert wanted in text
    both: Runner = TpuMultisliceRunner(pool=fleet, num_slices=2, jax_distributed=False, lease_timeout_seconds=10)
    assert task(task_runner=both)(answer)() == [42] * 4


def test_background_task_runs_are_refused(one_slice: Runner) -> None:
    """delay, serve, deferred map, and an engine that was not started by us: never a body without a gang."""
    from prefect.task_engine import run_task_sync

    ran: list[int] = []
    gang: Any = task(task_runner=one_slice)(lambda: ran.append(1))
    for start in (gang.delay, gang.apply_async, gang.serve, lambda: gang.map([], deferred=True)):
        with pytest.raises(ConfigurationError, match="background task runs"):
            start()
    with pytest.raises(ConfigurationError, match=r"\.submit\(\)"):
        run_task_sync(gang)
    assert not ran


def test_a_result_that_does_not_unpickle_here_names_the_host(one_slice: Runner) -> None:
    """Its class breaks when it is rebuilt: FATAL, not retried, and the next gang runs."""
    attempts: list[int] = []

    @task(task_runner=one_slice, retries=3, on_running=[lambda *_: attempts.append(1)])
    def returns_broken() -> Any:
        return Broken()

    with pytest.raises(HostProcessError, match=r"slice 0 host 0.*cannot be rebuilt in the driver"):
        returns_broken()
    assert len(attempts) == 1
    assert task(task_runner=one_slice)(answer)() == [42, 42]


# -- blocks: what a platform engineer fills in

BAD_FIELDS: list[tuple[type[Block], dict[str, Any], str]] = [
    (TpuSlicePool, {"fleet": "gke"}, r"fleet\b.*must be a LocalFleetBlock or a .*RayFleetBlock.*, not 'gke'"),
    (TpuSlicePool, {"fleet": LocalFleet()}, r"fleet\b.*must be a LocalFleetBlock"),
    (TpuSlicePool, {"accelerator_type": "v99"}, r"accelerator type 'v99'.*v6e"),
    (TpuSlicePool, {"accelerator_type": "v4-16"}, r"pod type: accelerator_type='v4', topology='2x2x2'"),
    (TpuSlicePool, {"accelerator_type": 4}, r"accelerator_type\b.*must be a string such as"),
    (TpuSlicePool, {"topology": "3x5"}, r"topology '3x5' for accelerator type v4.*2x2x2"),
    (TpuSlicePool, {"chips_per_host": 0}, r"chips_per_host\b.*must be .* at least 1"),
    (TpuSlicePool, {"chips_per_host": 3}, r"do not divide into hosts of 3 \(chips_per_host\).*1, 2, 4, 8"),
    (TpuSlicePool, {"num_slices": 0}, r"num_slices\b.*must be .* at least 1, or several"),
    (TpuSlicePool, {"num_slices": []}, r"num_slices\b.*must be .* at least 1, or several"),
    (TpuSlicePool, {"num_slices": [2, 0]}, r"num_slices\b.*must be .* at least 1, or several"),
    (TpuSlicePool, {"resize_after_seconds": -1}, r"resize_after_seconds\b.*must be .* seconds, 0 or more"),
    (TpuSlicePool, {"resize_interval_seconds": -1}, r"resize_interval_seconds\b.*must be .* seconds, 0 or more"),
    (TpuSlicePool, {"num_slices": 3}, r"num_slices=3 is more than the 2 slices of the pool's local fleet"),
    (TpuSlicePool, {"env": {"A": 1}}, r"env\b.*must be a mapping of strings to strings"),
    (TpuSlicePool, {"env": {"A=B": "1"}}, r"env\b.*'A=...' is no name of a variable"),
    (TpuSlicePool, {"preload": "jax"}, r"preload\b.*must be a sequence of names of modules"),
    (TpuSlicePool, {"preload": ["import jax"]}, r"preload\b.*'import jax' is no name of a module"),
    (TpuSlicePool, {"checkpoint_root": 3}, r"checkpoint_root\b.*must be .* at least one character"),
    (TpuSlicePool, {"checkpoint_root": ""}, r"checkpoint_root\b.*must be .* at least one character"),
    (TpuSlicePool, {"max_preemptions": -1}, r"max_preemptions\b.*must be .* at least 0"),
    (TpuSlicePool, {"max_infrastructure_failures": -1}, r"max_infrastructure_failures\b.*must be .* at least 0"),
    (
        TpuSlicePool,
        {"max_preemptions_without_progress": 0},
        r"max_preemptions_without_progress\b.*must be .* least 1",
    ),
    (TpuSlicePool, {"lease_timeout_seconds": -1}, r"lease_timeout_seconds\b.*must be .* seconds, 0 or more"),
    (TpuSlicePool, {"lease_timeout_seconds": "soon"}, r"lease_timeout_seconds\b.*must be .* seconds, 0 or more"),
    (TpuSlicePool, {"lease_hold_seconds": -1}, r"lease_hold_seconds\b.*must be .* seconds, 0 or more"),
    (TpuSlicePool, {"launch_timeout_seconds": 0}, r"launch_timeout_seconds\b.*must be .* seconds above 0"),
    (TpuSlicePool, {"cancel_grace_seconds": -1}, r"cancel_grace_seconds\b.*must be .* seconds, 0 or more"),
    (TpuSlicePool, {"hang_timeout_seconds": 0}, r"hang_timeout_seconds\b.*must be .* seconds above 0"),
    (TpuSlicePool, {"drain_timeout_seconds": 0}, r"drain_timeout_seconds\b.*must be .* seconds above 0"),
    (TpuSlicePool, {"runtime_env": {"image_uri": "x"}}, r"runtime_env has the key 'image_uri'.*pip, uv"),
    (TpuSlicePool, {"warm_spares": -1}, r"warm_spares\b.*must be .* at least 0"),
    (TpuSlicePool, {"agent_idle_release_seconds": -1}, r"agent_idle_release_seconds\b.*must be .* seconds, 0 or more"),
    (TpuSlicePool, {"num_slice": 2}, r"TpuSlicePool has no field 'num_slice'; it has fleet, "),
    (LocalFleetBlock, {"slices": 0}, r"slices\b.*greater than or equal to 1"),
    (LocalFleetBlock, {"slices": 65}, r"slices\b.*less than or equal to 64"),
    (LocalFleetBlock, {"cpus_per_host": -1}, r"cpus_per_host\b.*greater than or equal to 0"),
    (LocalFleetBlock, {"start_timeout_seconds": 0}, r"start_timeout_seconds\b.*greater than 0"),
    (RayFleetBlock, {"address": ""}, r"address\b.*must be 'auto' or 'host:port'"),
    (RayFleetBlock, {"address": "http://head:8265"}, r"address\b.*must be 'auto' or 'host:port'"),
    (
        RayFleetBlock,
        {"address": "head"},
        r"address\b.*must be 'auto' or 'host:port', such as '10.0.0.2:6379', not 'head'",
    ),
    (RayFleetBlock, {"address": "ray://head:10001"}, r"address='ray://head:10001'.*Ray Client cannot be used"),
    (RayFleetBlock, {"namespace": ""}, r"namespace\b.*at least 1 character"),
    (RayFleetBlock, {"join": True}, r"join=True.*needs the cluster's 'host:port'"),
    (QueuedResourceFleetBlock, {"project": "My Project"}, r"project\b.*must be the id of a Google Cloud project"),
    (QueuedResourceFleetBlock, {"zones": []}, r"zones\b.*must be one or more zones"),
    (QueuedResourceFleetBlock, {"zones": ["us-east5"]}, r"zones\b.*must be names of zones"),
    (QueuedResourceFleetBlock, {"ray_address": "head"}, r"ray_address\b.*must be 'auto' or 'host:port'"),
    (QueuedResourceFleetBlock, {"name": "A B"}, r"name\b.*must be lower-case letters"),
    (QueuedResourceFleetBlock, {"provisioning": "cheap"}, r"provisioning\b.*'spot', 'on-demand' or 'reservation'"),
    (QueuedResourceFleetBlock, {"reservation_name": "x"}, r"reservation_name='x'\): must be given for provisioning="),
    (QueuedResourceFleetBlock, {"runtime_version": ""}, r"runtime_version\b.*must be a text that is not empty"),
    (QueuedResourceFleetBlock, {"valid_until_seconds": 0}, r"valid_until_seconds\b.*must be .* more than 0"),
    (QueuedResourceFleetBlock, {"network": ""}, r"network\b.*must be a text that is not empty"),
    (QueuedResourceFleetBlock, {"subnetwork": ""}, r"subnetwork\b.*must be a text that is not empty"),
    (QueuedResourceFleetBlock, {"service_account": ""}, r"service_account\b.*must be a text that is not empty"),
    (QueuedResourceFleetBlock, {"startup_script": "echo"}, r"startup_script must be a script that begins with '#!'"),
    (QueuedResourceFleetBlock, {"host_packages": "einops"}, r"host_packages\b.*must be requirements as for pip"),
    (
        QueuedResourceFleetBlock,
        {"host_package": "prefect-tpu"},
        r"host_package\b.*must be where TPU VMs get prefect_tpu",
    ),
    (QueuedResourceFleetBlock, {"host_lock": "lock.txt"}, r"host_lock\b.*must be the address of a lock file"),
    (QueuedResourceFleetBlock, {"token_secret": "hush"}, r"token_secret\b.*must be the name of a secret"),
    (QueuedResourceFleetBlock, {"labels": {"A": "b"}}, r"labels\b.*lower-case letters, digits"),
    (QueuedResourceFleetBlock, {"join": True}, r"join=True.*needs the cluster's 'host:port'"),
    (QueuedResourceFleetBlock, {"namespace": ""}, r"namespace\b.*must be .* at least 1 character"),
    (QueuedResourceFleetBlock, {"credentials": "key"}, r"credentials\b.*GcpCredentials"),
    (QueuedResourceFleetBlock, {"endpoint": "x"}, r"endpoint\b.*must be 'host:port'"),
    (QueuedResourceFleetBlock, {"idle_release_seconds": -1}, r"idle_release_seconds\b.*must be .* not negative"),
    *(
        (QueuedResourceFleetBlock, {name: 0}, rf"{name}\b.*must be .* more than 0")
        for name in (
            "join_timeout_seconds",
            "zone_pause_seconds",
            "poll_seconds",
            "api_timeout_seconds",
            "api_retry_seconds",
            "close_timeout_seconds",
            "owner_silence_seconds",
            "reap_after_seconds",
        )
    ),
]
"""A block, a bad value for one of its fields, and what the error says. New fields: add one line here."""

NEEDED: dict[type[Block], dict[str, Any]] = {
    QueuedResourceFleetBlock: {"project": "my-project", "zones": ["us-east5-b"]}
}
"""Fields without a default."""

TAKE_ANYTHING_SENSIBLE: set[tuple[str, str]] = {
    ("TpuSlicePool", "preemptible"),
    ("TpuSlicePool", "resumable"),
    ("RayFleetBlock", "autoscaled"),
    ("QueuedResourceFleetBlock", "external_ips"),
    ("QueuedResourceFleetBlock", "unprotected_ray"),
}
"""Fields that are refused only for being of another type: truth values."""


@pytest.mark.parametrize(
    ("block", "given", "says"), BAD_FIELDS, ids=[f"{block.__name__}-{given!s:.40}" for block, given, _ in BAD_FIELDS]
)
def test_bad_fields_of_blocks_are_refused_by_name(block: type[Block], given: dict[str, Any], says: str) -> None:
    """When the block is made, so before it is saved: the field, and what is allowed."""
    with pytest.raises(ValidationError) as caught:
        block(**(NEEDED.get(block, {}) | given))
    assert re.search(says, str(caught.value), re.DOTALL)


@pytest.mark.parametrize(("block", "name"), sorted(TAKE_ANYTHING_SENSIBLE))
def test_truth_values_of_blocks(block: str, name: str) -> None:
    """By name, too."""
    with pytest.raises(ValidationError, match=rf"(?s){name}\b.*(valid boolean|must be True or False)"):
        getattr(blocks, block)(**{name: "maybe"})


def test_every_field_of_every_block_has_a_bad_value() -> None:
    """Or is listed as one that takes anything sensible; whoever adds a field adds a line above."""
    tried = {(block.__name__, name) for block, given, _ in BAD_FIELDS for name in given} | TAKE_ANYTHING_SENSIBLE
    tried |= {("TpuSlicePool", name) for name, _, _ in BAD}
    for block in TpuBlock.__subclasses__():
        missing = [name for name in block.model_fields if (block.__name__, name) not in tried]
        assert not missing, f"{block.__name__}: no bad value is tried for {', '.join(missing)}"


class Broken:
    """Pickles anywhere, unpickles nowhere."""

    def __reduce__(self) -> Any:
        return _broken, ()


def _broken() -> None:
    raise RuntimeError("not today")
