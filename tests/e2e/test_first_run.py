"""What a person sees who has Prefect without a server, and a home directory that is empty."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

FLOW = """
from prefect import flow
from prefect.client.orchestration import get_client
import prefect_tpu.tasks

@flow
def first() -> None:
    with get_client(sync_client=True) as client:
        said = client.request("GET", "/admin/settings").json()
    print("server sends telemetry:", said["server"]["analytics_enabled"])

first()
"""
BUSY = {"PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "90"}
"""Other tests run beside it; a person's machine has 20 seconds."""
CHOICE = "import prefect_tpu.tasks, os; print(os.environ.get('PREFECT_SERVER_ANALYTICS_ENABLED'))"


def run_python(code: str, home: Path, **variables: str) -> str:
    """Output and errors of a program on a fresh machine."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=env | {"PREFECT_HOME": str(home)} | BUSY | variables,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=150,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.mark.slow
def test_the_embedded_server_says_nothing_of_its_own(tmp_path: Path) -> None:
    """No error of the server's telemetry stands before the first line of the run."""
    output = run_python(FLOW, tmp_path)
    assert "server sends telemetry: False" in output
    assert "Finished in state Completed()" in output
    assert "Traceback" not in output
    assert " ERROR " not in output


@pytest.mark.parametrize(
    ("variables", "left"),
    [
        pytest.param({}, "false", id="nothing said"),
        pytest.param({"PREFECT_SERVER_ANALYTICS_ENABLED": "true"}, "true", id="wanted"),
        pytest.param({"PREFECT_API_URL": "http://127.0.0.1:9/api"}, "None", id="a server of the user's own"),
    ],
)
def test_only_a_server_that_nobody_has_set_up_is_changed(tmp_path: Path, variables: dict[str, str], left: str) -> None:
    """What the user has said stays, and a program with an API passes nothing on."""
    assert run_python(CHOICE, tmp_path, **variables).strip() == left


def test_what_prefects_files_say_stays(tmp_path: Path) -> None:
    """A profile that asks for telemetry has it."""
    (tmp_path / "profiles.toml").write_text(
        'active = "mine"\n[profiles.mine]\nPREFECT_SERVER_ALLOW_EPHEMERAL_MODE = "true"\n'
        'PREFECT_SERVER_ANALYTICS_ENABLED = "true"\n'
    )
    assert run_python(CHOICE, tmp_path).strip() == "None"
