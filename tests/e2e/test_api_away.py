"""Prefect's API is away for a minute while a gang runs: the gang does not notice, and what it had to say catches up."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.prefect_server import Server
from tests.processes import assert_gone, descendants

SCRIPT = """
import sys, threading, time
from pathlib import Path
from prefect import flow
from prefect_tpu import LocalFleet, TpuMultisliceRunner, task

folder = Path(sys.argv[1])
FLEET = LocalFleet(slices=3, topology="2x2x1")


@task(task_runner=TpuMultisliceRunner(pool=FLEET, num_slices=2, jax_distributed=False), name="away")
def hold(folder):
    import time
    from pathlib import Path
    from prefect_tpu import runtime
    ctx = runtime.current()
    Path(folder, f"{ctx.attempt}-{ctx.process_id}").write_text(ctx.slice_name)
    number = 0
    while not Path(folder, "finish").exists():
        if ctx.process_id == 0:
            print(f"line {number} of attempt {ctx.attempt}")
        number += 1
        time.sleep(0.5)
    return number


def lose():
    while not (folder / "lose").exists():
        time.sleep(0.1)
    FLEET.preempt((folder / "1-1").read_text())


@flow(name="away")
def main():
    hold(str(folder))


if __name__ == "__main__":
    with FLEET:
        threading.Thread(target=lose, daemon=True).start()
        main()
"""
SILENT_SECONDS = 25.0
"""It accepts connections and says nothing."""
REFUSED_SECONDS = 35.0
"""Nobody listens."""
CATCH_UP_SECONDS = 90.0


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """It runs."""
    one = Server(tmp_path / "home")
    one.start()
    yield one
    one.kill()


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_the_api_is_away_for_a_minute(server: Server, tmp_path: Path) -> None:
    """A slice is lost meanwhile, and replaced meanwhile. Afterwards history, table and logs are complete."""
    script, folder = tmp_path / "script.py", tmp_path / "marks"
    script.write_text(SCRIPT)
    folder.mkdir()
    log = (tmp_path / "log").open("wb")
    env = os.environ | {"PREFECT_API_URL": server.url, "PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen(
        [sys.executable, str(script), str(folder)],
        env=env,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        _wait(lambda: (folder / "1-1").exists() and (folder / "1-0").exists(), "the gang runs", 120, process, log)
        time.sleep(3)
        server.signal(signal.SIGSTOP)
        (folder / "lose").touch()
        _wait(lambda: (folder / "2-0").exists(), "it runs again without the API", SILENT_SECONDS, process, log)
        time.sleep(SILENT_SECONDS)
        server.kill()
        time.sleep(REFUSED_SECONDS)
        assert process.poll() is None, Path(log.name).read_text()
        server.start()
        time.sleep(2)
        (folder / "finish").touch()
        _wait(lambda: process.poll() is not None, "the flow ends", CATCH_UP_SECONDS, process, log)
        output = Path(log.name).read_text()
        assert process.returncode == 0, output[-4000:]
    finally:
        started = descendants(process.pid)
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            process.wait(30)
        assert_gone(started, 10)
    (run,) = server.post("/task_runs/filter", {})
    assert (run["name"][:4], run["state_name"], run["run_count"]) == ("away", "Completed", 2)
    states = httpx.get(f"{server.url}/task_run_states/", params={"task_run_id": run["id"]}).json()
    names = [one["name"] for one in sorted(states, key=lambda one: one["timestamp"])]
    assert names == ["Pending", "Running", "Preempted", "Retrying", "Completed"]
    (table,) = [one for one in server.post("/artifacts/filter", {}) if one["type"] == "table"]
    rows = json.loads(table["data"])
    assert [(row["attempt"], row["outcome"]) for row in rows if row["attempt"] == 2] == [(2, "SUCCEEDED")] * 2
    lines = server.post(
        "/logs/filter", {"logs": {"task_run_id": {"any_": [run["id"]]}}, "limit": 200, "sort": "TIMESTAMP_ASC"}
    )
    said = [one["message"] for one in lines]
    expected = max(int(one.rpartition("line ")[2].split()[0]) for one in said if "of attempt 2" in one)
    missing = [n for n in range(expected) if f"[slice 0 host 0] line {n} of attempt 2" not in said]
    assert not missing, (missing, output[-2000:])


def _wait(look: Any, what: str, seconds: float, process: subprocess.Popen[bytes], log: Any) -> None:
    give_up = time.monotonic() + seconds
    while not look():
        text = Path(log.name).read_text()[-4000:]
        assert time.monotonic() < give_up, f"not within {seconds:g} s: {what}\n{text}"
        assert process.poll() is None or "ends" in what, text
        time.sleep(0.1)
