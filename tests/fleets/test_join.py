"""A driver beside a cluster makes its machine part of it, for as long as it lives."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ray._private import state as ray_state

from prefect_tpu import ConfigurationError, LocalFleet, RayFleet
from prefect_tpu.cluster import tpu
from tests.fleets.autoscaling import AutoscalingRay
from tests.processes import assert_gone, descendants

SCRIPT = """
import sys, time
from prefect_tpu import RayFleet
from prefect_tpu.cluster import inventory
RayFleet(sys.argv[1], join=True).connect()
RayFleet(sys.argv[1], join=True).connect()
print([one.name for one in inventory.summary().slices if one.free], flush=True)
if sys.argv[2] == "stay":
    time.sleep(600)
"""
SOON_SECONDS = 30.0


@pytest.fixture(scope="module")
def fleet() -> Iterator[LocalFleet]:
    """One slice of one host."""
    with LocalFleet(slices=1, topology="2x2x1") as running:
        running.connect()
        yield running


def start(fleet: LocalFleet, how: str, **variables: str) -> tuple[subprocess.Popen[str], str]:
    """The script, and the first line that it prints."""
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, fleet.address, how],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env=os.environ | fleet.access() | {"PYTHONPATH": str(Path(__file__).parents[2])} | variables,
    )  # fmt: skip
    assert process.stdout is not None
    line = process.stdout.readline()
    return process, line


def nodes_of(pid: int) -> list[dict[str, Any]]:
    """The Ray nodes that a driver has joined the cluster with."""
    return [one for one in ray_state.state.node_table() if one["NodeName"] == f"prefect-tpu-driver-{pid}"]


def wait_until_dead(pid: int) -> None:
    """In Ray's eyes."""
    deadline = time.monotonic() + SOON_SECONDS
    while any(one["Alive"] for one in nodes_of(pid)):
        assert time.monotonic() < deadline, "the node is still part of the cluster"
        time.sleep(0.2)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_the_node_lives_as_long_as_its_driver(fleet: LocalFleet, number: signal.Signals) -> None:
    """One node, without chips and CPUs; however the driver ends, it is gone, with its directory."""
    process, line = start(fleet, "stay")
    try:
        assert line == "['slice-0']\n", line + process.stdout.read()  # type: ignore[union-attr]
        (node,) = nodes_of(process.pid)
        assert node["Alive"]
        assert not {"CPU", "TPU", "GPU"} & set(node["Resources"])
        started = descendants(process.pid)
        assert len(started) >= 2
    finally:
        process.send_signal(number)
        process.wait(SOON_SECONDS)
        process.stdout.close()  # type: ignore[union-attr]
    assert_gone(started, SOON_SECONDS)
    wait_until_dead(process.pid)


def test_a_driver_that_just_ends(fleet: LocalFleet, tmp_path: Path) -> None:
    """Normally. A long TMPDIR makes no name of a socket too long."""
    (long := tmp_path / ("x" * 60)).mkdir()
    process, line = start(fleet, "end", TMPDIR=str(long))
    assert line == "['slice-0']\n"
    assert process.wait(SOON_SECONDS) == 0
    process.stdout.close()  # type: ignore[union-attr]
    wait_until_dead(process.pid)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_cluster_that_asks_for_a_token(tmp_path: Path) -> None:
    """As KubeRay's do, or `ray start` where a token is: it is found where Ray finds it; else the error names it."""
    shape = tpu.resolve_shape("v4", "2x2x1")
    token, other = "a" * 64, "b" * 64
    own, others = tmp_path / "own", tmp_path / "others"
    for home, value in ((own, token), (others, other)):
        (home / ".ray").mkdir(parents=True)
        (home / ".ray" / "auth_token").write_text(value)
    base = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}
    with AutoscalingRay(shape, token=token) as cluster:
        joins, auto = f"{cluster.address!r}, join=True", "'auto'"
        here = repr(cluster.address)
        for how, access, words in (
            (joins, cluster.access, ""),
            (joins, {"HOME": str(own)}, ""),
            (auto, {"HOME": str(own), "RAY_ADDRESS": cluster.address}, ""),
            (here, {"HOME": str(own)}, ""),
            (here, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(own / ".ray" / "auth_token")}, ""),
            (joins, {"RAY_AUTH_MODE": "disabled"}, "asks for a token, and RAY_AUTH_MODE is 'disabled' here"),
            (joins, {"HOME": str(others)}, f"does not take the one from the file {others}/.ray/auth_token"),
            (here, {"RAY_AUTH_TOKEN": other}, "does not take the one from the variable RAY_AUTH_TOKEN"),
            (here, {"HOME": str(tmp_path)}, "asks for a token, and there is none here"),
        ):
            code = f"from prefect_tpu import RayFleet; RayFleet({how}, autoscaled=True).connect()"
            done = subprocess.run(
                [sys.executable, "-c", code], capture_output=True, text=True, timeout=170,
                env=base | access | {"PYTHONPATH": str(Path(__file__).parents[2])},
            )  # fmt: skip
            assert (done.returncode == 0) == (not words), (how, access, done.stderr)
            assert words in done.stderr
            assert token not in done.stderr
            assert other not in done.stderr


def test_what_cannot_be_joined() -> None:
    """Refused where it is written, or with what is wrong."""
    with pytest.raises(ConfigurationError, match="needs the cluster's 'host:port'"):
        RayFleet("auto", join=True)
    with pytest.raises(ConfigurationError, match="join=1"):
        RayFleet("127.0.0.1:9", join=1)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match=r"127\.0\.0\.1:9"):
        RayFleet("127.0.0.1:9", join=True).connect()
