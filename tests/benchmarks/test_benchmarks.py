"""Each benchmark once, at its smallest: it measures what its README says, and nothing is left behind."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def run_benchmark(folder: Path, script: str, *options: str) -> dict[str, Any]:
    """What it writes as JSON."""
    written = folder / "results.json"
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / script), *options, "--json", str(written)],
        cwd=folder,
        env={name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
        | {"PREFECT_HOME": str(folder)},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=170,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:]
    assert "Traceback" not in done.stdout
    found: dict[str, Any] = json.loads(written.read_text())
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "options", "measured"),
    [
        pytest.param(
            "launch.py",
            ("--systems", "prefect_tpu,thread_pool", "--repeats", "1", "--first-repeats", "1", "--noop-repeats", "1",
             "--settle-seconds", "0"),
            {("first", "prefect_tpu"), ("warm", "prefect_tpu"), ("noop", "prefect_tpu"), ("noop", "thread_pool")},
            id="launch",
        ),
        pytest.param(
            "recovery.py",
            ("--systems", "prefect_tpu", "--repeats", "1", "--settle-seconds", "0"),
            {("host_killed", "prefect_tpu"), ("verdict", "prefect_tpu"), ("user_error", "prefect_tpu")},
            id="recovery",
        ),
        pytest.param(
            "data.py",
            ("--gigabytes", "0.01", "--repeats", "1", "--settle-seconds", "0"),
            {(case, system) for case in ("arguments", "results") for system in ("prefect_tpu", "ray")},
            id="data",
        ),
        pytest.param("leasing.py", ("--sizes", "1,2", "--repeats", "1"), {("lease", 1), ("lease", 2)}, id="leasing"),
    ],
)  # fmt: skip
def test_a_benchmark(
    script: str, options: tuple[str, ...], measured: set[tuple[str, str | int]], tmp_path: Path
) -> None:
    """Every case that was asked for has a time."""
    rows = run_benchmark(tmp_path, script, *options)["rows"]
    assert {(row["case"], row.get("system") or row["slices"]) for row in rows if row["seconds"]} == measured
    assert not [row["skipped"] for row in rows if "skipped" in row]


@pytest.mark.parametrize("script", ["launch.py", "recovery.py", "data.py"])
def test_seconds_to_settle_that_cannot_be(script: str, tmp_path: Path) -> None:
    """They are refused by name before anything starts."""
    command = [sys.executable, str(BENCHMARKS / script), "--settle-seconds", "-1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert done.returncode == 1
    assert re.search(r"--settle-seconds .*0 or more", done.stderr)
