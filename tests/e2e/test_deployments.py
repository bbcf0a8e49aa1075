"""Deployments: a real server, a real process worker, pools by their slugs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from prefect_tpu import LocalFleet, RayFleetBlock, TpuSlicePool
from prefect_tpu.cluster import auth, inventory
from prefect_tpu.fleets.tokens import token_of
from tests.e2e.documented import documented
from tests.e2e.prefect_server import Server
from tests.processes import alive, assert_gone, descendants, running

ROOT = Path(__file__).parents[2]
RUN_SECONDS = 120.0
SILENT_SECONDS = 45
"""After which a run has crashed: more than the 30 s between two heartbeats, the least that Prefect takes."""
FLOW = """
from prefect import flow
from prefect_tpu import TpuMultisliceRunner, task


@task(task_runner=TpuMultisliceRunner(pool="tpu-slice-pool/e2e", jax_distributed=False), retries=0)
def train(folder, steps):
    import os, pathlib, time
    from prefect_tpu import runtime
    ctx = runtime.current()
    place = pathlib.Path(ctx.checkpoint_dir)
    place.mkdir(parents=True, exist_ok=True)
    saved = place / f"step-{ctx.process_id}"
    done = int(saved.read_text()) if saved.exists() else 0
    mark = pathlib.Path(folder, f"{ctx.run_id}-{ctx.process_id}")
    mark.write_text(f"{os.getpid()} {done} {ctx.num_slices} {os.environ.get('FROM', '')}")
    while pathlib.Path(folder, "wait").exists():
        time.sleep(0.1)
    for step in range(done, steps):
        if pathlib.Path(folder, "raise").exists() and step == 5:
            raise ValueError("as asked")
        if pathlib.Path(folder, "hold").exists():
            time.sleep(3600)
        runtime.report(step=step, total_steps=steps)
        saved.write_text(str(step))
        time.sleep(0.05)
    return done


@flow
def nightly(folder: str, steps: int = 10):
    return train(folder, steps)
"""
YAML = """
name: e2e
pull:
  - prefect.deployments.steps.set_working_directory:
      directory: "{folder}"
deployments:
  - name: e2e
    entrypoint: flow_file.py:nightly
    parameters: {{folder: "{folder}", steps: 10}}
    schedules:
      - interval: 5
        slug: often
        active: false
    work_pool:
      name: e2e
      job_variables:
        env: {{PREFECT_INTEGRATIONS_TPU_ENV: '{{"FROM": "job-variables"}}', PYTHONPATH: "{root}"}}
"""


class Site:
    """Server, worker, fleet, and a deployment of the flow above."""

    def __init__(self, server: Server, folder: Path, fleet: LocalFleet) -> None:
        self.server, self.folder, self.fleet = server, folder, fleet
        self.env = (
            os.environ
            | fleet.access()
            | {
                "PREFECT_API_URL": server.url,
                "PREFECT_HOME": str(folder / "home"),
                "PYTHONPATH": str(ROOT),
                "PREFECT_WORKER_QUERY_SECONDS": "1",
                "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
                "E2E_TOKEN": uuid4().hex,
            }
        )
        (folder / "flow_file.py").write_text(FLOW)
        (folder / "prefect.yaml").write_text(YAML.format(folder=folder, root=ROOT))
        self.log = (folder / "worker.log").open("ab")
        self.worker: subprocess.Popen[bytes] | None = None

    def prefect(self, *arguments: str, cwd: Path | None = None) -> str:
        """Prefect's own command line."""
        done = subprocess.run(
            [sys.executable, "-m", "prefect", "--no-prompt", *arguments],
            env=self.env, cwd=cwd or self.folder, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def start_worker(self) -> None:
        """One that looks for runs every second."""
        self.worker = subprocess.Popen(
            [sys.executable, "-m", "prefect", "worker", "start", "--pool", "e2e", "--type", "process"],
            env=self.env, cwd=self.folder, stdout=self.log, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip

    def stop_worker(self) -> None:
        """And everything that it started."""
        assert self.worker is not None
        started = descendants(self.worker.pid)
        self.worker.send_signal(signal.SIGTERM)
        try:
            self.worker.wait(60)
        finally:
            for pid in alive(started):
                os.kill(pid, signal.SIGKILL)

    @property
    def deployment(self) -> dict[str, Any]:
        """As the API has it."""
        found: dict[str, Any] = self.server.ask("GET", "/deployments/name/nightly/e2e")
        return found

    def start(self) -> str:
        """A run by hand; its id."""
        path = f"/deployments/{self.deployment['id']}/create_flow_run"
        return str(self.server.ask("POST", path, {"state": {"type": "SCHEDULED"}})["id"])

    def run(self, run_id: str) -> dict[str, Any]:
        """A flow run."""
        found: dict[str, Any] = self.server.ask("GET", f"/flow_runs/{run_id}")
        return found

    def started(self) -> list[dict[str, Any]]:
        """All flow runs that the worker has begun with, oldest first."""
        found = self.server.post("/flow_runs/filter", {"sort": "EXPECTED_START_TIME_ASC"})
        return [one for one in found if one["state_type"] != "SCHEDULED"]

    def set_state(self, run_id: str, **body: Any) -> None:
        """As the buttons of the UI do."""
        self.server.ask("POST", f"/flow_runs/{run_id}/set_state", body)

    def wait(self, look: Callable[[], Any], what: str, seconds: float = RUN_SECONDS) -> Any:
        """What `look` returns once it is truthy."""
        give_up = time.monotonic() + seconds
        while not (found := look()):
            assert time.monotonic() < give_up, f"not within {seconds:g} s: {what}\n{self.output()}"
            time.sleep(0.2)
        return found

    def ended(self, run_id: str) -> dict[str, Any]:
        """The flow run once it has ended."""
        ends = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
        self.wait(lambda: self.run(run_id)["state_type"] in ends, "the run ends")
        return self.run(run_id)

    def marks(self) -> list[list[str]]:
        """Pid, first step, slices and the variable of each host process so far."""
        return [one.read_text().split() for one in sorted(self.folder.glob("*-[0-9]")) if one.read_text()]

    def gang(self) -> dict[int, str]:
        """The host processes, once both are in the function."""
        self.wait(lambda: len(self.marks()) == 2, "the gang runs")
        found = running(int(one[0]) for one in self.marks())
        assert len(found) == 2
        return found

    def output(self) -> str:
        """The end of the worker's log."""
        return (self.folder / "worker.log").read_text()[-5000:]

    def assert_free(self) -> None:
        """Both slices, within a while."""
        address = self.fleet.address

        def free() -> bool:
            with auth.at(address, token_of):
                return sum(one.free for one in inventory.summary_at(address).slices) == 2

        self.wait(free, "both slices are free", 30)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """With a worker; the fleet is another process's, as on a cluster."""
    folder = tmp_path_factory.mktemp("site")
    server = Server(folder / "server")
    server.start()
    with LocalFleet(slices=2, topology="2x2x1") as fleet:
        with temporary_settings({PREFECT_API_URL: server.url}):
            pool = TpuSlicePool(
                fleet=RayFleetBlock(address=fleet.address), topology="2x2x1", num_slices=2,
                checkpoint_root=str(folder / "checkpoints"), cancel_grace_seconds=1, lease_timeout_seconds=60,
            )  # fmt: skip
            pool.save("e2e")
            documented("operating.md")["crash_silent_runs"](silent_seconds=SILENT_SECONDS)
        one = Site(server, folder, fleet)
        one.prefect("work-pool", "create", "e2e", "--type", "process")
        one.prefect("deploy", "--all")
        one.start_worker()
        yield one
        if one.worker is not None and one.worker.poll() is None:
            one.stop_worker()
    server.kill()


@pytest.fixture(autouse=True)
def fresh(site: Site) -> None:
    """No mark of an earlier test."""
    for one in (*site.folder.glob("*-[0-9]"), site.folder / "hold", site.folder / "raise", site.folder / "wait"):
        one.unlink(missing_ok=True)


pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


def test_a_scheduled_run_starts_by_itself(site: Site) -> None:
    """It loads the pool by its slug, with the job variables of the deployment, and completes; two share the fleet."""
    (schedule,) = site.deployment["schedules"]
    path = f"/deployments/{site.deployment['id']}/schedules/{schedule['id']}"
    (site.folder / "wait").touch()
    site.server.ask("PATCH", path, {"active": True})
    running = lambda: [one for one in site.started() if one["state_type"] == "RUNNING"]  # noqa: E731
    site.wait(lambda: len(running()) >= 2, "two scheduled runs are running", 2 * RUN_SECONDS)
    site.server.ask("PATCH", path, {"active": False})  # what is to come is not scheduled any more
    site.gang()
    (site.folder / "wait").unlink()
    site.wait(lambda: not {"RUNNING", "PENDING"} & {one["state_type"] for one in site.started()}, "all have ended")
    runs = site.started()
    assert {(one["state_name"], one["auto_scheduled"]) for one in runs} == {("Completed", True)}
    first, *others = sorted(runs, key=lambda one: one["end_time"])
    assert any(one["start_time"] < first["end_time"] for one in others), "nobody has waited while the first one ran"
    assert {tuple(one[2:]) for one in site.marks()} == {("2", "job-variables")}
    assert len(site.marks()) == 2 * len(runs)
    site.assert_free()


def test_a_run_is_cancelled_from_the_api(site: Site) -> None:
    """In mid-run: Cancelled, no process left, both slices free."""
    (site.folder / "hold").touch()
    run_id = site.start()
    processes = site.gang()
    site.set_state(run_id, state={"type": "CANCELLING", "name": "Cancelling"})
    assert site.ended(run_id)["state_name"] == "Cancelled"
    assert_gone(processes, 10)
    site.assert_free()


def test_a_run_that_is_retried_goes_on_from_its_checkpoint(site: Site) -> None:
    """As by the UI's Retry button, after it has failed."""
    (site.folder / "raise").touch()
    run_id = site.start()
    assert site.ended(run_id)["state_name"] == "Failed"
    assert [one[1] for one in site.marks()] == ["0", "0"]
    for one in (*site.folder.glob("*-[0-9]"), site.folder / "raise"):
        one.unlink(missing_ok=True)
    retry = {"type": "SCHEDULED", "name": "AwaitingRetry", "message": "Retry from the UI"}
    site.set_state(run_id, state=retry, force=True)
    assert site.ended(run_id)["state_name"] == "Completed"
    assert [one[1] for one in site.marks()] == ["4", "4"]
    assert site.run(run_id)["run_count"] == 2


def test_the_worker_is_killed(site: Site) -> None:
    """SIGKILL of the worker and of its flow run's process, as when their machine goes: nothing stays reserved.

    Nobody tells Prefect, which shows Running until docs/operating.md's automation says Crashed; it says so of no other
    run, whatever that has ended with.
    """
    others = {one["id"]: one["state_name"] for one in site.started()}
    (site.folder / "hold").touch()
    killed = site.start()
    processes = site.gang()
    assert site.worker is not None
    ours = descendants(site.worker.pid) | {site.worker.pid: ""}
    for pid in ours:
        os.kill(pid, signal.SIGKILL)
    site.worker.wait()
    assert_gone(processes, 15)
    site.assert_free()
    (site.folder / "hold").unlink()
    assert site.run(killed)["state_name"] == "Running"
    site.start_worker()
    after = site.start()
    assert site.ended(after)["state_name"] == "Completed"
    completed_at = time.monotonic()
    assert site.ended(killed)["state_name"] == "Crashed"
    assert "no sign of life for 45 s" in site.run(killed)["state"]["message"]
    time.sleep(max(0.0, completed_at + SILENT_SECONDS + 5 - time.monotonic()))  # the others are as silent by then
    assert {one["id"]: one["state_name"] for one in site.started() if one["id"] in others} == others
    assert site.run(after)["state_name"] == "Completed"


def test_the_projects_own_deployments(site: Site) -> None:
    """prefect.yaml: both are made, with schedules, parameters and job variables."""
    site.prefect("work-pool", "create", "tpu", "--type", "process")
    site.prefect("deploy", "--all", cwd=ROOT)
    for name, steps, active in (("quickstart/nightly", 200, True), ("preemption-drill/weekly-drill", 60, False)):
        found = site.server.ask("GET", f"/deployments/name/{name}")
        assert found["parameters"] == {"steps": steps}
        assert [one["active"] for one in found["schedules"]] == [active]
        assert found["job_variables"]["env"] == {"PREFECT_INTEGRATIONS_TPU_LEASE_TIMEOUT_SECONDS": "3600"}
