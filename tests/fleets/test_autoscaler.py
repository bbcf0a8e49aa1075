"""Slices that Ray's own autoscaler brings up for a gang, and takes away after it; nothing of the demand remains."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.autoscaler.v2.sdk import get_cluster_resource_state
from ray.util.placement_group import placement_group_table

from prefect_tpu import ConfigurationError, GangCancelledError, RayFleet, SliceUnavailableError, TpuMultisliceRunner
from prefect_tpu.cluster import inventory, session, tpu
from prefect_tpu.core.kinds import Kind
from prefect_tpu.fleets.autoscaler import NAME_PREFIX
from prefect_tpu.gang.attempts import AGENTS, Attempts, Call
from tests.fleets.autoscaling import AutoscalingRay

SHAPE = tpu.resolve_shape("v4", "2x2x1")
ROOT = Path(__file__).parents[2]
SOON_SECONDS = 20.0
UP_SECONDS = 60.0
SCRIPT = """
import sys
from prefect_tpu.gang.attempts import Call
from tests.fleets.test_autoscaler import Listener, gang
gang(sys.argv[1], topology="2x2x2").attempt(1, Call(print, (), {}), Listener())
"""


class Listener:
    """An observer that keeps what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)

    def waiting(self, _: int, text: str) -> None:
        self.said.append(text)

    def __getattr__(self, _: str) -> Callable[..., None]:
        return lambda *_, **__: None


def gang(address: str, **options: Any) -> Attempts:
    """A gang on an autoscaled cluster, without Prefect's engine."""
    runner: Any = TpuMultisliceRunner(
        pool=RayFleet(address, autoscaled=True),
        **({"accelerator_type": "v4", "topology": "2x2x1", "jax_distributed": False, "preload": ["json"]} | options),
    )
    plan = runner.resolve().plan(timeout_seconds=None, checkpoint_name="x", say=logging.getLogger("tests"))
    return Attempts(plan, "run-of-the-test", threading.Event())


V2 = pytest.mark.parametrize("cluster", ["v2"], indirect=True)


@pytest.fixture(scope="module")
def cluster(request: pytest.FixtureRequest) -> Iterator[AutoscalingRay]:
    """Without a slice; two single-host slices at most. Which version of Ray's autoscaler is the parameter."""
    with AutoscalingRay(SHAPE, v2=request.param == "v2") as one:
        yield one
        AGENTS.close()
        session.disconnect()


def asked() -> dict[str, Any]:
    """What Ray's autoscaler reads from Ray's GCS, and the demands among the placement groups."""
    state = get_cluster_resource_state(ray._private.worker.global_worker.gcs_client)
    pending = [one.bundle_selectors[0].resource_requests for one in state.pending_gang_resource_requests]
    groups = [one for one in placement_group_table().values() if one["state"] != "REMOVED"]
    return {
        "gangs": [[dict(one.resources_bundle) for one in requests] for requests in pending],
        "tasks": len(state.pending_resource_requests),
        "constraints": sum(len(one.resource_requests) for one in state.cluster_resource_constraints),
        "groups": [one["name"].rpartition("-")[0] for one in groups if one["name"].startswith(NAME_PREFIX)],
    }


NOTHING: dict[str, Any] = {"gangs": [], "tasks": 0, "constraints": 0, "groups": []}


def wait(look: Callable[[], Any], what: str, seconds: float = SOON_SECONDS) -> Any:
    """What `look` returns once it is truthy."""
    give_up = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < give_up, f"not within {seconds:g} s: {what}: {asked()}, {inventory.summary()}"
        time.sleep(0.1)
    return found


def in_background(do: Callable[[], Any]) -> tuple[threading.Thread, list[Any]]:
    """A thread, and what it has returned or raised."""
    ends: list[Any] = []

    def work() -> None:
        try:
            ends.append(do())
        except Exception as error:  # noqa: BLE001 - looked at by the test
            ends.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    return thread, ends


def host_code(folder: str) -> int:
    """Until the test says so."""
    import pathlib
    import time

    pathlib.Path(folder, "runs").touch()
    while not pathlib.Path(folder, "go").exists():
        time.sleep(0.1)
    if pathlib.Path(folder, "raise").exists():
        raise ValueError("as asked")
    return 7


pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]


@pytest.mark.parametrize(
    ("cluster", "end", "num_slices"),
    [("v1", "return", 2), ("v2", "return", 2), ("v2", "raise", 1)],
    indirect=["cluster"],
)
def test_slices_come_for_a_gang_and_go_after_it(
    cluster: AutoscalingRay, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, end: str, num_slices: int
) -> None:
    """None is up: the gang waits and says so, and gets all; nothing is asked for while the gang runs, or after it.

    A token in the home, as `ray.init()` leaves it there, does not matter: this cluster asks for none.
    """
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("a" * 64)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PREFECT_INTEGRATIONS_TPU_AGENT_IDLE_RELEASE_SECONDS", "0")
    monkeypatch.setenv("PREFECT_INTEGRATIONS_TPU_QUEUE_MESSAGE_INTERVAL_SECONDS", "1")
    with pytest.raises(ConfigurationError, match="none of them has TPU chips"):
        RayFleet(cluster.address).connect()
    assert asked() == NOTHING
    one, listener = gang(cluster.address, num_slices=num_slices, lease_timeout_seconds=UP_SECONDS), Listener()
    thread, ends = in_background(lambda: one.attempt(1, Call(host_code, (str(tmp_path),), {}), listener))
    wait(lambda: asked()["groups"], "it is asked for")
    assert asked() == NOTHING | {
        "gangs": [[{"TPU": 4.0, "TPU-v4-8-head": 1.0}] * num_slices], "groups": [f"{NAME_PREFIX}run-of-the-test"],
    }  # fmt: skip
    wait(lambda: (tmp_path / "runs").exists() or ends, "the gang runs", UP_SECONDS)
    assert asked() == NOTHING
    assert any(f"Ray's autoscaler has been asked for {num_slices} v4 2x2x1 slices" in text for text in listener.said)
    time.sleep(2 * cluster.idle_seconds)
    assert len(inventory.summary().slices) == num_slices  # no further one was started, and these stay while in use
    if end == "raise":
        (tmp_path / "raise").touch()
    (tmp_path / "go").touch()
    thread.join(SOON_SECONDS)
    (ended,) = ends
    assert ended.report.verdict.kind is (Kind.SUCCEEDED if end == "return" else Kind.USER_ERROR)
    one.release()
    assert asked() == NOTHING
    wait(lambda: not inventory.summary().slices, "the slice goes away", 2 * SOON_SECONDS)
    assert asked() == NOTHING


@V2
def test_no_cluster_and_no_spares(cluster: AutoscalingRay) -> None:
    """An autoscaled fleet needs its cluster to be there, if not its slices; agents ahead only if they are asked for."""
    with pytest.raises(ConfigurationError, match="does not answer"):
        RayFleet("127.0.0.1:1", autoscaled=True).connect()
    RayFleet(cluster.address, autoscaled=True).connect()
    assert gang(cluster.address).plan.options.warm_spares == 0
    assert gang(cluster.address, warm_spares=1).plan.options.warm_spares == 1


@V2
def test_a_gang_that_is_cancelled_while_it_waits(cluster: AutoscalingRay) -> None:
    """What it has asked for is withdrawn; all hosts of a slice were asked for, as the autoscaler counts hosts."""
    one = gang(cluster.address, topology="2x2x2", num_slices=2)
    thread, ends = in_background(lambda: one.attempt(1, Call(print, (), {}), Listener()))
    wait(lambda: asked()["gangs"], "it is asked for")
    (bundles,) = asked()["gangs"]
    assert sorted(bundles, key=len) == [{"TPU": 4.0}] * 2 + [{"TPU": 4.0, "TPU-v4-16-head": 1.0}] * 2
    one.cancelled.set()
    thread.join(SOON_SECONDS)
    assert isinstance(ends[0], GangCancelledError)
    wait(lambda: asked() == NOTHING, "nothing is asked for any more")


@V2
def test_slices_that_do_not_come(cluster: AutoscalingRay) -> None:
    """The error says what was asked for and what the autoscaler says (its second version does); nothing remains."""
    one = gang(cluster.address, topology="2x2x2", lease_timeout_seconds=8)
    with pytest.raises(SliceUnavailableError, match="asked for 1 v4 2x2x2 slices") as raised:
        one.attempt(1, Call(print, (), {}), Listener())
    assert "no worker group of the cluster is of this type" in str(raised.value)
    wait(lambda: asked() == NOTHING, "nothing is asked for any more")


@V2
def test_gangs_of_two_processes_and_a_killed_one(cluster: AutoscalingRay) -> None:
    """Each asks for its own slices; those of a driver that gets SIGKILL are not asked for any more, the others are."""
    RayFleet(cluster.address, autoscaled=True).connect()
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, cluster.address], env=os.environ | {"PYTHONPATH": str(ROOT)}, cwd=ROOT
    )
    one = gang(cluster.address, topology="2x2x2")
    thread, _ = in_background(lambda: one.attempt(1, Call(print, (), {}), Listener()))
    try:
        wait(lambda: len(asked()["gangs"]) == 2, "both are asked for", 2 * SOON_SECONDS)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    wait(lambda: len(asked()["gangs"]) == 1, "one is left")
    assert asked()["groups"] == [f"{NAME_PREFIX}run-of-the-test"]
    one.cancelled.set()
    thread.join(SOON_SECONDS)
    wait(lambda: asked() == NOTHING, "nothing is asked for any more")
