"""However a flow's process ends, nothing of it is left: no process, no lease, no slice that stays taken."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.settings import get_current_settings

from prefect_tpu import LocalFleet, TpuMultisliceRunner, task
from prefect_tpu.sidecars.simulated_identity import MARK_VARIABLE
from tests.processes import alive, assert_gone, descendants, with_environment
from tests.waiting import eventually

SCRIPT = """
import sys
from prefect import flow
from prefect_tpu import LocalFleet, RayFleet, TpuMultisliceRunner, task

how, address, marker = sys.argv[1:]
pool = RayFleet(address) if address != "own" else LocalFleet(slices=1, topology="2x2x1")
runner = TpuMultisliceRunner(pool=pool, num_slices=1, jax_distributed=False, cancel_grace_seconds=1)


@task(task_runner=runner)
def hold(how, marker):
    import pathlib, subprocess, time
    from prefect_tpu import runtime
    grandchild = subprocess.Popen(["sleep", "31337"])
    detached = subprocess.Popen(["sleep", "31338"], start_new_session=True)
    pathlib.Path(f"{marker}-{runtime.current().process_id}").touch()
    if how == "returns":
        return 1
    if how == "raises":
        raise ValueError("on the host")
    time.sleep(3600)


@flow
def main():
    if how == "submitted":
        hold.submit(how, marker).result()
    else:
        hold(how, marker)


if __name__ == "__main__":
    main()
"""


@pytest.fixture(scope="module", autouse=True)
def server(prefect_server: None) -> None:
    """Prefect's own, real."""


@pytest.fixture(scope="module")
def fleet() -> Iterator[LocalFleet]:
    """One slice of two hosts that outlives the scripts."""
    with LocalFleet(slices=1) as running:
        yield running


class Script:
    """A flow in a process of its own, and every process that it starts, told by a variable."""

    def __init__(self, tmp_path: Path, how: str, fleet: LocalFleet | None, hosts: int) -> None:
        self.token = uuid.uuid4().hex
        self.markers = [tmp_path / f"marker-{one}" for one in range(hosts)]
        path = tmp_path / "script.py"
        path.write_text(SCRIPT)
        env = (
            os.environ
            | ({} if fleet is None else fleet.access())
            | {
                "PREFECT_API_URL": str(get_current_settings().api.url),
                "TEST_TOKEN": self.token,
                "PYTHONPATH": str(Path(__file__).parents[2]),
            }
        )
        self.log = (tmp_path / "log").open("wb")
        self.process = subprocess.Popen(
            [sys.executable, str(path), how, "own" if fleet is None else fleet.address, str(tmp_path / "marker")],
            env=env, stdout=self.log, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip

    def wait_until_held(self, seconds: float = 90) -> None:
        deadline = time.monotonic() + seconds
        while not all(one.exists() for one in self.markers):
            assert self.process.poll() is None, self.output()
            assert time.monotonic() < deadline, self.output()
            time.sleep(0.1)

    def end(self, seconds: float) -> int:
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise AssertionError(f"not ended within {seconds:g} s:\n{self.output()}") from None

    def output(self) -> str:
        self.log.flush()
        return Path(self.log.name).read_text()[-4000:]

    def started(self) -> dict[int, str]:
        """Own fleet, agents, children: what inherited the token. A shared fleet's hosts did not."""
        return with_environment("TEST_TOKEN", self.token) | descendants(self.process.pid)


def sleepers() -> dict[int, str]:
    """The grandchildren that the scripts' functions start."""
    found = {}
    for proc in Path("/proc").glob("[0-9]*"):
        try:
            if (proc / "cmdline").read_bytes().split(b"\0")[:2] in ([b"sleep", b"31337"], [b"sleep", b"31338"]):
                found[int(proc.name)] = proc.joinpath("stat").read_text().rpartition(")")[2].split()[19]
        except OSError:
            continue
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "kill", "exit_code", "seconds"),
    [
        ("returns", None, 0, 90),
        ("raises", None, 1, 90),
        ("holds", signal.SIGINT, -signal.SIGINT, 15),
        ("holds", signal.SIGKILL, -signal.SIGKILL, 15),
    ],
)
def test_own_fleet_goes_with_the_process(
    tmp_path: Path, how: str, kill: signal.Signals | None, exit_code: int, seconds: float
) -> None:
    """Normal end, exception, Ctrl-C, SIGKILL: fleet, agents, zygotes, children, grandchildren are gone."""
    script = Script(tmp_path, how, None, hosts=1)
    script.wait_until_held()
    started = script.started() | sleepers()
    assert len(started) > 5
    if kill is not None:
        script.process.send_signal(kill)
    code = script.end(seconds)
    assert code in (exit_code, 128 + abs(exit_code), 1) if kill else code == exit_code, script.output()
    assert_gone(started, 10)
    assert not sleepers()


@pytest.mark.slow
@pytest.mark.parametrize("how", ["holds", "submitted"])
@pytest.mark.parametrize("kill", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_shared_fleet_is_free_again(tmp_path: Path, fleet: LocalFleet, how: str, kill: signal.Signals) -> None:
    """Ctrl-C, cancel (SIGTERM) and SIGKILL of a driver: its host processes are gone, the next gang runs at once."""
    script = Script(tmp_path, how, fleet, hosts=2)
    script.wait_until_held()
    started = script.started() | sleepers()
    began = time.monotonic()
    script.process.send_signal(kill)
    script.end(15)
    assert_gone(started, 10)
    assert time.monotonic() - began < 20

    runner: Any = TpuMultisliceRunner(pool=fleet, jax_distributed=False, lease_timeout_seconds=10)

    @task(task_runner=runner)
    def one() -> int:
        return 1

    assert one() == [1, 1]
    assert not alive(sleepers())
    if kill is not signal.SIGKILL:
        assert ended_as_prefect_says() == ("CRASHED", {"CANCELLED"})


def ended_as_prefect_says() -> tuple[str, set[str]]:
    """State type of the newest task run of the scripts, and the outcomes in its table; nothing is charged."""
    with get_client(sync_client=True) as client:
        newest = {"task_runs": {"name": {"like_": "hold"}}, "sort": "EXPECTED_START_TIME_DESC", "limit": 1}

        def look() -> Any:
            (run,) = client.request("POST", "/task_runs/filter", json=newest).json()
            return run if run["state_type"] not in ("RUNNING", "PENDING") else None

        run = eventually(look, "the task run has ended")
        of_run = {"artifacts": {"task_run_id": {"any_": [run["id"]]}, "type": {"any_": ["table"]}}}
        found = eventually(lambda: client.request("POST", "/artifacts/filter", json=of_run).json(), "its table")
    rows = json.loads(found[0]["data"])
    assert {row["charged to"] for row in rows} == {""}
    return run["state_type"], {row["outcome"] for row in rows}


@pytest.mark.slow
def test_agent_killed_takes_everything_along(tmp_path: Path, fleet: LocalFleet) -> None:
    """SIGKILL of an agent: its zygote, child and grandchildren end, and the attempt is not left hanging."""
    script = Script(tmp_path, "holds", fleet, hosts=2)
    script.wait_until_held()
    before = sleepers()
    mark = os.path.basename(fleet.status()["directory"])
    hosts = with_environment(MARK_VARIABLE, f"{mark}/slice-0/0") | with_environment(MARK_VARIABLE, f"{mark}/slice-0/1")
    agents = [pid for pid in hosts if _title(pid).startswith("ray::Agent")]
    assert len(agents) >= 2
    for pid in agents:
        os.kill(pid, signal.SIGKILL)
    assert_gone(before, 10)
    script.process.send_signal(signal.SIGINT)
    script.end(20)
    assert not alive(sleepers())


def _title(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


@pytest.mark.slow
def test_cancelled_flow_run_shows_what_prefect_shows(tmp_path: Path, fleet: LocalFleet) -> None:
    """After SIGTERM the flow run and its task run are Crashed, as with Prefect's own runner."""
    script = Script(tmp_path, "holds", fleet, hosts=2)
    script.wait_until_held()
    with get_client(sync_client=True) as client:
        # Runs whose driver was killed by earlier tests stay Running in Prefect: take the newest.
        run = max(client.read_flow_runs(), key=lambda one: one.created)
        script.process.send_signal(signal.SIGTERM)
        script.end(15)
        deadline = time.monotonic() + 10
        while True:
            state = client.read_flow_run(run.id).state
            assert state is not None
            if state.is_final():
                break
            assert time.monotonic() < deadline
            time.sleep(0.2)
    assert state.type.value == "CRASHED"
