"""A driver below a `uv run` does what `python flow.py` does: Ray would start every worker by uv otherwise."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from prefect.settings import get_current_settings

from prefect_tpu import LocalFleet

UV = "import subprocess, sys; sys.exit(subprocess.call(sys.argv[1:]))"
"""What `uv run PROGRAM` is to Ray: a process above it whose command line begins so. It is Python's file `run` here."""
FLOW = """
import sys
import ray
from prefect import flow
from prefect_tpu import RayFleet, TpuMultisliceRunner, task

@task(task_runner=TpuMultisliceRunner(pool=RayFleet(sys.argv[1]), topology="2x2x2", jax_distributed=False,
                                      launch_timeout_seconds=30, max_infrastructure_failures=0))
def work() -> str:
    return "worked"

@flow
def main() -> None:
    print(work(), ray.get_runtime_context().runtime_env)

main()
"""


@pytest.mark.slow
def test_a_driver_below_uv_run(fleet: LocalFleet, prefect_server: None, tmp_path: Path) -> None:
    """The gang runs on hosts that have no uv, and no working directory has been packed for them."""
    fleet.connect()
    (tmp_path / "run").write_text(UV)
    (tmp_path / "flow.py").write_text(FLOW)
    done = subprocess.run(
        ["uv", "run", sys.executable, "flow.py", fleet.address],
        executable=sys.executable,
        cwd=tmp_path,
        env=os.environ | fleet.access() | {"PREFECT_API_URL": str(get_current_settings().api.url)},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=150,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:]
    assert "['worked', 'worked'] {}" in done.stdout
