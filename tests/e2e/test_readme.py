"""What the README says a new user does first."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from prefect.settings import get_current_settings

from tests.e2e.test_first_run import BUSY

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


@pytest.fixture
def server(prefect_server: None) -> dict[str, str]:
    """The environment of a program that has Prefect's server."""
    return os.environ | {"PREFECT_API_URL": str(get_current_settings().api.url)}


def run(path: Path, seconds: float, env: dict[str, str]) -> str:
    process = subprocess.Popen(
        [sys.executable, str(path)], env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT
    )
    try:
        output, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.terminate()
        output, _ = process.communicate()
        raise AssertionError(f"not done within {seconds:g} s:\n{output[-3000:]}") from None
    assert process.returncode == 0, output[-3000:]
    return output


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_flow_of_the_readme(tmp_path: Path, server: dict[str, str]) -> None:
    """As it stands there, from a file that hosts do not have; it warns that its slices are simulated."""
    block = re.findall(r"```python\n(.*?)```", README, re.DOTALL)[0]
    path = tmp_path / "readme_flow.py"
    path.write_text(block)
    output = run(path, 240, server)
    assert "[116.0, 116.0, 116.0, 116.0]" in output
    assert "simulated TPU slices on CPU" in output
    assert "Traceback" not in output  # what is written while the process ends ends well, too


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_first_command_of_the_readme(tmp_path: Path) -> None:
    """On a machine that has no server and an empty home: it trains, and nothing looks like an error."""
    (script,) = re.findall(r"^python3 -m venv .*&& \.venv/bin/python (\S+)$", README, re.MULTILINE)
    new = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "RAY_"))}
    output = run(ROOT / script, 500, new | BUSY | {"PREFECT_HOME": str(tmp_path)})
    assert "Traceback" not in output
    assert "ERROR" not in output
    accuracy = float(re.findall(r"^test accuracy: ([0-9.]+)", output, re.MULTILINE)[0])
    assert accuracy > 0.95


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_elastic_drill(server: dict[str, str]) -> None:
    """Two of four slices go and come back: it goes on with two, grows again, and every loss is the same."""
    output = run(ROOT / "flows" / "elastic_drill.py", 500, server)
    assert float(re.findall(r"^largest difference of a loss: ([0-9.e+-]+)", output, re.MULTILINE)[0]) <= 1e-4
    assert "it goes on with 2 slices" in output
    assert "slices are free: 4 in place of 2" in output
    for words in ("PREEMPTED", "RESIZED", "SUCCEEDED"):
        assert words in output


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_preemption_drill(server: dict[str, str]) -> None:
    """A slice and a host are lost and the function raises once; the parameters are those of an undisturbed run."""
    output = run(ROOT / "flows" / "preemption_drill.py", 500, server)
    assert float(re.findall(r"^largest difference of a parameter: ([0-9.e+-]+)", output, re.MULTILINE)[0]) <= 1e-5
    for words in ("PREEMPTED", "INFRASTRUCTURE", "USER_ERROR", "SUCCEEDED"):
        assert words in output
