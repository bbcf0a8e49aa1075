"""What people see: a run with a lost slice in Prefect's own UI, in a real browser."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import httpx
import pytest
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL, temporary_settings

from prefect_tpu.core.kinds import Kind
from prefect_tpu.core.text import clean
from prefect_tpu.observability import artifacts
from prefect_tpu.observability.artifacts import RunArtifacts
from tests.core.test_ledger import report
from tests.e2e.documented import documented
from tests.e2e.prefect_server import Server
from tests.processes import assert_gone, descendants
from tests.waiting import eventually

if TYPE_CHECKING:
    from playwright.sync_api import Page

SCRIPT = """
import sys, threading, time
from pathlib import Path
from prefect import flow
from prefect_tpu import LocalFleet, TpuMultisliceRunner, task

folder = Path(sys.argv[1])
FLEET = LocalFleet(slices=3, topology="2x2x1")


@task(task_runner=TpuMultisliceRunner(pool=FLEET, num_slices=2, jax_distributed=False), name="train", retries=3)
def train(folder):
    import time
    from pathlib import Path
    from prefect_tpu import runtime
    ctx = runtime.current()
    done = 40 if ctx.attempt == 2 else 0
    for step in range(done, 101):
        runtime.report(step=step, total_steps=100, loss=1 / (step + 1))
        if step % 25 == 0:
            print(f"step {step} of attempt {ctx.attempt}")
        if ctx.attempt == 1 and step == 60:
            Path(folder, f"ready-{ctx.process_id}").write_text(ctx.slice_name)
            time.sleep(60)
        time.sleep(0.05)
    return ctx.process_id


def lose():
    while not (folder / "ready-0").exists() or not (folder / "ready-1").exists():
        time.sleep(0.1)
    time.sleep(1)
    FLEET.preempt((folder / "ready-1").read_text())


@flow(name="nightly")
def main():
    return train(str(folder))


if __name__ == "__main__":
    with FLEET:
        threading.Thread(target=lose, daemon=True).start()
        main()
"""
RUN_SECONDS = 120.0


@dataclass
class Seen:
    """A run that has ended, and where it is shown."""

    ui: str
    flow_run: str
    task_run: dict[str, Any]
    artifacts: dict[str, dict[str, Any]]
    runs: list[dict[str, Any]]


@pytest.fixture(scope="module")
def server(ui_server: Server) -> Server:
    """With its UI."""
    return ui_server


def run_story(server: Server, folder: Path, **settings: str) -> Seen:
    """Run the script to its end; what Prefect has of it."""
    script, marks = folder / "script.py", folder / "marks"
    script.write_text(SCRIPT)
    marks.mkdir()
    env = os.environ | {"PREFECT_API_URL": server.url, "PYTHONPATH": str(Path(__file__).parents[2])} | settings
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, str(script), str(marks)], env=env, stdout=log, stderr=subprocess.STDOUT
        )
        started: dict[int, str] = {}
        try:
            deadline = time.monotonic() + RUN_SECONDS
            while process.poll() is None and time.monotonic() < deadline:
                started |= descendants(process.pid)
                time.sleep(0.5)
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait(30)
    assert process.returncode == 0, (folder / "log").read_text()[-4000:]
    assert_gone(started, 10)
    newest = {"sort": "START_TIME_DESC", "limit": 1, "flows": {"name": {"any_": ["nightly"]}}}
    (flow_run,) = server.post("/flow_runs/filter", newest)
    of_run = {"flow_runs": {"id": {"any_": [flow_run["id"]]}}}
    runs = server.post("/task_runs/filter", of_run)
    artifacts = {one["type"]: one for one in server.post("/artifacts/filter", of_run)}
    (task_run,) = [one for one in runs if one["name"].startswith("train")]
    return Seen(server.ui, flow_run["id"], task_run, artifacts, runs)


@pytest.fixture(scope="module")
def watched(server: Server) -> UUID:
    """A deployment that docs/operating.md's automation starts after a preemption."""
    names = documented("operating.md")
    with temporary_settings({PREFECT_API_URL: server.url}), get_client(sync_client=True) as client:
        flow_id = client.create_flow_from_name("tell")
        deployment_id = client.create_deployment(flow_id, "tell", enforce_parameter_schema=False)
        names["watch_preemptions"](deployment_id, threshold=1)
    return deployment_id


@pytest.fixture(scope="module")
def seen(server: Server, watched: UUID, tmp_path_factory: pytest.TempPathFactory) -> Seen:
    """One preemption, then success."""
    return run_story(server, tmp_path_factory.mktemp("story"))


pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def test_the_flow_runs_page(seen: Seen, page: Page, pictures: Path) -> None:
    """The task run is on the timeline, with its artifacts as dots on it."""
    page.goto(f"{seen.ui}/runs/flow-run/{seen.flow_run}")
    page.get_by_text(seen.task_run["name"]).first.wait_for()
    page.wait_for_timeout(3000)
    page.screenshot(path=pictures / "flow-run.png")
    page.get_by_text("Artifacts", exact=True).first.click()
    for key in ("tpu-slices-train", "tpu-summary-train", "tpu-progress-train"):
        page.get_by_text(key).first.wait_for()
    page.screenshot(path=pictures / "flow-run-artifacts.png")


def test_the_task_runs_page(seen: Seen, page: Page, pictures: Path) -> None:
    """Run Count has the attempts, Retries the user's number; the hosts' lines are in the logs with their prefix."""
    page.goto(f"{seen.ui}/runs/task-run/{seen.task_run['id']}")
    page.get_by_text("[slice 0 host 0] step 75 of attempt 2").first.wait_for()
    page.get_by_text("attempt 1 PREEMPTED: slice").first.wait_for()
    page.screenshot(path=pictures / "task-run.png")
    text = " ".join(page.inner_text("body").split())
    assert "Run Count 2" in text
    assert "Retries 3" in text


def test_the_slice_table(seen: Seen, page: Page, pictures: Path) -> None:
    """A row for each slice of each attempt."""
    page.goto(f"{seen.ui}/artifacts/artifact/{seen.artifacts['table']['id']}")
    page.get_by_text("PREEMPTED").first.wait_for()
    page.screenshot(path=pictures / "table.png")
    text = page.inner_text("body")
    assert text.count("COLLATERAL") == 1
    assert text.count("SUCCEEDED") == 2


def test_the_run_summary(seen: Seen, page: Page, pictures: Path) -> None:
    """Ledger and picture, drawn by the browser without any network."""
    page.goto(f"{seen.ui}/artifacts/artifact/{seen.artifacts['markdown']['id']}")
    page.get_by_text("train: SUCCEEDED after 2 attempts").first.wait_for()
    picture = page.locator("img[src^='data:image/svg+xml']").first
    picture.wait_for()
    assert picture.evaluate("one => one.complete && one.naturalWidth") > 400
    page.screenshot(path=pictures / "summary.png")
    text = " ".join(page.inner_text("body").split())
    assert "Goodput" in text
    assert "20 lost" in text
    assert "slice 1 (" in text


def test_the_progress(seen: Seen, page: Page, pictures: Path) -> None:
    """At its end."""
    page.goto(f"{seen.ui}/artifacts/artifact/{seen.artifacts['progress']['id']}")
    page.get_by_text("attempt 2: SUCCEEDED").first.wait_for()
    page.screenshot(path=pictures / "progress.png")
    assert seen.artifacts["progress"]["data"] == 100


def test_the_events(server: Server, seen: Seen) -> None:
    """In order, with the runs, slices and hosts that they are about."""
    wanted = {"filter": {"event": {"prefix": ["prefect-tpu."]}, "order": "ASC"}}
    of_run = f"prefect.task-run.{seen.task_run['id']}"

    def look() -> list[dict[str, Any]]:
        found = httpx.post(f"{server.url}/events/filter", json=wanted, timeout=10).json()["events"]
        mine = [one for one in found if of_run in {related["prefect.resource.id"] for related in one["related"]}]
        return mine if len(mine) >= 5 else []

    events = eventually(look, "all events")
    names = [one["event"].removeprefix("prefect-tpu.") for one in events]
    assert sorted(names[1:3]) == ["attempt.finished", "slice.preempted"]
    assert [names[0], *names[3:]] == ["attempt.started", "attempt.started", "attempt.finished"]
    (lost,) = [one for one in events if one["event"] == "prefect-tpu.slice.preempted"]
    assert lost["resource"]["prefect.resource.id"].startswith("prefect-tpu.slice.slice-")
    roles = {one.get("prefect.resource.role"): one["prefect.resource.id"] for one in lost["related"]}
    name = lost["resource"]["prefect.resource.name"]
    assert roles["flow-run"] == f"prefect.flow-run.{seen.flow_run}"
    assert roles["host"] == f"prefect-tpu.host.{name}.0"
    assert (lost["payload"]["attempt"], lost["payload"]["charged_to"]) == (1, "preemptions")
    last = events[-1]["payload"]
    assert (last["attempt"], last["outcome"], last["step"]) == (2, "SUCCEEDED", 100)


def test_an_automation_acts_on_a_preemption(server: Server, seen: Seen, watched: UUID) -> None:
    """As docs/operating.md has it: a deployment is started, with the cause as its parameter."""
    wanted = {"deployments": {"id": {"any_": [str(watched)]}}}
    runs = eventually(lambda: server.post("/flow_runs/filter", wanted), "a run of the deployment", 60)
    assert "preempted: slice 1 host 0 lost" in runs[0]["parameters"]["cause"]


def test_slices_as_bars(server: Server, page: Page, pictures: Path, tmp_path: Path) -> None:
    """With the setting: each slice of each attempt is a task run inside the gang's, with the logs of its hosts."""
    seen = run_story(server, tmp_path, PREFECT_INTEGRATIONS_TPU_SLICE_BARS="true")
    bars = {one["name"]: one for one in seen.runs if one["id"] != seen.task_run["id"]}
    assert len(bars) == 4
    states = sorted((name.partition(" ")[2], one["state_name"]) for name, one in bars.items())
    assert states == [
        ("attempt 1", "Collateral"), ("attempt 1", "Preempted"), ("attempt 2", "Completed"), ("attempt 2", "Completed"),
    ]  # fmt: skip
    for one in bars.values():
        assert one["task_inputs"]["__parents__"] == [{"input_type": "task_run", "id": seen.task_run["id"]}]
        assert one["total_run_time"] > 0
    page.goto(f"{seen.ui}/runs/flow-run/{seen.flow_run}")
    page.get_by_text(seen.task_run["name"]).first.wait_for()
    page.wait_for_timeout(3000)
    page.mouse.click(584, 291)  # the timeline is drawn on a canvas: the arrow that opens the gang's bar
    page.wait_for_timeout(2000)
    page.screenshot(path=pictures / "bars.png")
    (preempted,) = [one for one in bars.values() if one["state_name"] == "Preempted"]
    page.goto(f"{seen.ui}/runs/task-run/{preempted['id']}")
    page.get_by_text("step 50 of attempt 1").first.wait_for()
    page.screenshot(path=pictures / "bar.png")


HOSTILE = (
    "<img src=x onerror='window.ran=1'><script>window.ran=1</script> [a](javascript:window.ran=1) ![p](x) **b** _i_ "
    "~~gone~~ `code` https://x.example www.x.example me@x.example a|b\n# head\n- item\n\x1b[31m\u202e $x^2$ &lt;b&gt;"
)
MADE = ("a", "img", "script", "strong", "em", "del", "code", "h1", "h2", "h3", "table", "td", "tr", "li", "iframe")


def artifacts_of_names(server: Server, name: str) -> dict[str, str]:
    """Of a task, slices and a cause that are called so: ids of the artifacts that their run leaves, by type."""
    lost = report(1, Kind.PREEMPTED, began=0, run=100, names=(name, f"{name} 2"), lost=1)
    lost = replace(lost, verdict=replace(lost.verdict, cause=name), summaries=(name,) * 4, budgets=name)
    task_run_id = uuid4()
    with temporary_settings({PREFECT_API_URL: server.url}):
        run = RunArtifacts(name, task_run_id, None)
        run.attempts([lost], ended=True, budgets=name)
        run.progress(50.0, name)
        assert artifacts.flush(20)
    made = server.post("/artifacts/filter", {"artifacts": {"task_run_id": {"any_": [str(task_run_id)]}}})
    return {one["type"]: one["id"] for one in made}


def test_names_and_messages_are_only_text(server: Server, page: Page, pictures: Path) -> None:
    """No script runs, and the page has no other elements than for a harmless name."""
    harmless, hostile = artifacts_of_names(server, "harmless"), artifacts_of_names(server, HOSTILE)
    counted = "names => names.map(name => [name, document.querySelectorAll(name).length])"
    for kind in ("table", "markdown", "progress"):
        elements = []
        for ids, wanted in ((harmless, "harmless"), (hostile, "onerror")):
            page.goto(f"{server.ui}/artifacts/artifact/{ids[kind]}")
            page.get_by_text(wanted).first.wait_for()
            page.wait_for_timeout(1000)
            elements.append(page.evaluate(counted, MADE))
        page.screenshot(path=pictures / f"hostile-{kind}.png")
        assert page.evaluate("window.ran") is None, kind
        assert elements[0] == elements[1], kind
        text = page.inner_text("body")
        assert "<img src=x onerror='window.ran=1'><scri" in text, kind
        assert "\u202e" not in text, kind
        assert "\x1b" not in text, kind


def test_a_runs_own_page_shows_text(server: Server, page: Page, pictures: Path) -> None:
    """Prefect's page of a task run, with such a name, state message and log line."""
    flow = server.ask("POST", "/flows/", {"name": "hostile"})
    flow_run = server.ask("POST", "/flow_runs/", {"flow_id": flow["id"], "name": clean(HOSTILE)})
    state = {"type": "FAILED", "name": "Failed", "message": f"{HOSTILE} message"}
    made = {"flow_run_id": flow_run["id"], "task_key": "k", "dynamic_key": "0", "name": HOSTILE, "state": state}
    run = server.ask("POST", "/task_runs/", made)
    line = {"name": "prefect.task_runs", "level": 20, "message": f"{HOSTILE} line", "timestamp": "2026-01-01T00:00:00Z"}
    server.ask("POST", "/logs/", [line | {"flow_run_id": flow_run["id"], "task_run_id": run["id"]}])
    page.goto(f"{server.ui}/runs/task-run/{run['id']}")
    page.get_by_text("line").first.wait_for()
    page.wait_for_timeout(1000)
    page.screenshot(path=pictures / "hostile-run.png")
    assert page.evaluate("window.ran") is None
    assert "<img src=x onerror='window.ran=1'><script>window.ran=1</script>" in page.inner_text("body")
