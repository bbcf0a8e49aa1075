"""`prefect-tpu`: fleets by hand, as a shell sees them."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from prefect_tpu._version import __version__
from prefect_tpu.cluster import inventory, session
from prefect_tpu.core.errors import ConfigurationError
from prefect_tpu.fleets.ray_fleet import RayFleet
from prefect_tpu.linux import processes
from prefect_tpu.sidecars import fleet_marks

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

Cli = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where this module's fleets write down that they are up."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def cli(home: Path) -> Cli:
    """Run the command in a process of its own."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "prefect_tpu.cli", *arguments],
            capture_output=True,
            text=True,
            timeout=150,
            check=False,
            env=os.environ | {"PREFECT_HOME": str(home)},
        )

    return run


@pytest.fixture(scope="module")
def up(cli: Cli) -> Iterator[dict[str, object]]:
    """Two single-host slices that were started by hand; what `fleet up --json` said."""
    started = cli("fleet", "up", "--slices", "2", "--topology", "2x2x1", "--json")
    assert started.returncode == 0, started.stderr
    yield json.loads(started.stdout)
    session.disconnect()
    cli("fleet", "down")


def test_the_version(cli: Cli) -> None:
    """As in the package."""
    assert cli("--version").stdout.strip() == __version__


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("fleet", "status", "--name", "none"), 1, "No fleet called 'none' is up.*prefect-tpu fleet up --name none"),
        (("fleet", "down", "--name", "none"), 1, "No fleet called 'none' is up"),
        (("fleet", "preempt", "slice-0", "--name", "none"), 1, "No fleet called 'none' is up"),
        (("fleet", "up", "--slices", "0", "--name", "none"), 2, "slices=0.*at least 1"),
        (("fleet", "up", "--slices", "many"), 2, "many"),
        (("fleet", "up", "--accelerator-type", "v9", "--name", "none"), 2, "'v9'.*v5litepod.*v6e"),
        (("fleet", "up", "--topology", "3x3", "--name", "none"), 2, "'3x3'.*2x2x2"),
        (("fleet", "drain", "slice-0", "--seconds", "0"), 2, "at most a year"),
        (("fleet", "drain", "slice-0", "--seconds", "inf"), 2, "at most a year"),
        (("fleet", "drain", "slice-0", "--seconds", "1e12"), 2, "at most a year"),
        (("fleet", "status", "--name", "../x"), 2, "cannot be a fleet's name"),
        (("fleet", "preempt"), 2, "(?i)target"),
        (("fleet", "nonsense"), 2, "nonsense"),
    ],
)
def test_exit_codes(arguments: tuple[str, ...], code: int, says: str, cli: Cli) -> None:
    """1 for what failed, 2 for wrong usage; the reason is on stderr."""
    done = cli(*arguments)
    assert done.returncode == code, done.stdout + done.stderr
    assert re.search(says, done.stderr.replace("\n", " ")), done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        ("NUM_SLICES", "0", "PREFECT_INTEGRATIONS_TPU_NUM_SLICES='0': must be a whole number of at least 1"),
        ("PRELOAD", "jax", r"""_TPU_PRELOAD='jax': must be JSON, such as its default, \["jax", .*Expecting value"""),
    ],
)
def test_a_setting_that_cannot_be(
    variable: str, value: str, says: str, monkeypatch: pytest.MonkeyPatch, cli: Cli
) -> None:
    """Wrong usage, with the variable's name and no traceback; doctor has it among its lines."""
    monkeypatch.setenv(f"PREFECT_INTEGRATIONS_TPU_{variable}", value)
    monkeypatch.setenv("PREFECT_INTEGRATIONS_TPU_NUM_SLICE", "2")
    done = cli("settings", "--json")
    assert (done.returncode, done.stdout) == (2, "")
    assert re.search(says, done.stderr)
    assert "Traceback" not in done.stderr
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    done = cli("doctor", "--address", "auto", "--json")
    assert done.returncode == 1
    found = {one["name"]: one for one in json.loads(done.stdout)["findings"]}
    assert re.search(says, found["settings"]["says"])
    assert found["settings"]["to_do"]
    assert found["Ray"]["ok"] is None


def test_a_variable_that_is_no_setting(monkeypatch: pytest.MonkeyPatch, cli: Cli) -> None:
    """A misspelt name is not silent."""
    monkeypatch.setenv("PREFECT_INTEGRATIONS_TPU_NUM_SLICE", "2")
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    done = cli("doctor")
    assert done.returncode == 1
    assert "not PREFECT_INTEGRATIONS_TPU_NUM_SLICE: there is no such setting" in done.stdout


def test_a_silent_api(monkeypatch: pytest.MonkeyPatch, cli: Cli) -> None:
    """`pool status` says which pool, why not and what to do, on stderr."""
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    monkeypatch.setenv("PREFECT_CLIENT_MAX_RETRIES", "0")
    done = cli("pool", "status", "any", "--json")
    assert (done.returncode, done.stdout) == (1, "")
    assert "did not give the pool 'tpu-slice-pool/any'" in done.stderr
    assert "PREFECT_API_URL" in done.stderr
    assert "Traceback" not in done.stderr


def test_help_has_the_exit_codes(cli: Cli) -> None:
    """And every command."""
    assert "Exit codes: 0 done; 1 failed" in cli("--help").stdout
    text = cli("fleet", "--help").stdout
    assert "Exit codes: 0 done; 1 failed" in text
    for command in ("up", "down", "status", "preempt", "drain", "restore", "add-slice"):
        assert command in text


def test_it_outlives_the_command_and_takes_runs(
    up: dict[str, object], cli: Cli, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process of its owner connects by the printed address; who has not its token is told what is missing."""
    address = str(up["address"])
    assert processes.is_alive(int(str(up["pid"])))
    session.disconnect()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    with pytest.raises(ConfigurationError, match=r"asks for a token, and there is none here.*same PREFECT_HOME"):
        RayFleet(address).connect()
    monkeypatch.setenv("PREFECT_HOME", str(home))
    RayFleet(address).connect()
    assert [one.name for one in inventory.summary().slices if one.free] == ["slice-0", "slice-1"]
    shown = cli("fleet", "status").stdout
    assert address in shown
    assert len(re.findall("free", shown)) == 2


def test_only_its_owner_can_read_what_is_written_down(up: dict[str, object], cli: Cli, home: Path) -> None:
    """The token is in the state file; neither in its log nor in what the command says."""
    assert {oct(one.stat().st_mode & 0o777) for one in (home / "tpu").iterdir()} == {"0o600"}
    assert oct((home / "tpu").stat().st_mode & 0o777) == "0o700"
    token = json.loads((home / "tpu" / "default.json").read_text())["token"]
    assert len(token) == 64
    said = json.dumps(up) + cli("fleet", "status", "--json").stdout + Path(str(up["log"])).read_text()
    assert token not in said


def test_doctor_names_the_token(up: dict[str, object], cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether there is one, the mode, from where, never its value; that it is wrong is said as such."""
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "c" * 64)
    done = cli("doctor", "--address", str(up["address"]), "--json")
    lines = {one["name"]: one for one in json.loads(done.stdout)["findings"]}
    assert lines["Ray's token"]["says"] == "a token in the variable RAY_AUTH_TOKEN, RAY_AUTH_MODE is 'token'"
    assert lines["Ray"]["ok"], "a fleet of its own is known by its state file"
    monkeypatch.setenv("PREFECT_HOME", "/nonexistent")
    done = subprocess.run(
        [sys.executable, "-m", "prefect_tpu.cli", "doctor", "--address", str(up["address"]), "--json"],
        capture_output=True, text=True, timeout=150, check=False,
    )  # fmt: skip
    lines = {one["name"]: one for one in json.loads(done.stdout)["findings"]}
    assert "does not take the one from the variable RAY_AUTH_TOKEN" in lines["Ray"]["says"]
    assert "c" * 64 not in done.stdout + done.stderr


def test_a_second_one_of_that_name_is_refused(up: dict[str, object], cli: Cli) -> None:
    """With its address and what to do."""
    again = cli("fleet", "up")
    assert again.returncode == 1
    assert f"is up already at {up['address']}" in again.stderr


def test_its_verbs(up: dict[str, object], cli: Cli) -> None:
    """Preempt, restore, drain, add-slice, each seen in status."""

    def states() -> dict[str, str]:
        found = json.loads(cli("fleet", "status", "--json").stdout)
        return {one["name"]: one["state"] for one in found["slices"]}

    assert json.loads(cli("fleet", "preempt", "slice-1/0", "--json").stdout) == {"target": "slice-1/0", "hosts": 1}
    assert states() == {"slice-0": "up", "slice-1": "down"}
    assert cli("fleet", "restore", "slice-1").stdout == "slice-1 is up.\n"
    assert cli("fleet", "add-slice").stdout == "slice-2 is up.\n"
    assert states() == {"slice-0": "up", "slice-1": "up", "slice-2": "up"}
    assert "goes away in 2 s" in cli("fleet", "drain", "slice-2", "--seconds", "2").stdout
    time.sleep(3)
    assert states() == {"slice-0": "up", "slice-1": "up", "slice-2": "down"}
    wrong = cli("fleet", "preempt", "slice-9")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert "slice-0, slice-1, slice-2" in wrong.stderr


def test_a_killed_fleet_is_noticed_and_replaced(cli: Cli, home: Path) -> None:
    """By process id and start time; said; the next one takes its place; down leaves nothing."""
    first = json.loads(cli("fleet", "up", "--slices", "1", "--topology", "2x2x1", "--name", "b", "--json").stdout)
    os.kill(first["pid"], signal.SIGKILL)
    status = cli("fleet", "status", "--name", "b")
    assert status.returncode == 1
    assert "is not up any more" in status.stderr
    second = json.loads(cli("fleet", "up", "--slices", "1", "--topology", "2x2x1", "--name", "b", "--json").stdout)
    directory = json.loads(cli("fleet", "status", "--name", "b", "--json").stdout)["directory"]
    marked = fleet_marks.find([os.path.basename(directory) + "/"])
    assert marked
    assert cli("fleet", "down", "--name", "b").returncode == 0
    assert not [one for one in marked if processes.is_alive(one.pid, one.start)]
    assert not processes.is_alive(second["pid"])
    assert not os.path.exists(directory)
    assert not (home / "tpu" / "b.json").exists()


def test_settings_say_where_they_come_from(monkeypatch: pytest.MonkeyPatch, cli: Cli) -> None:
    """Value, source, meaning; as a table and as JSON."""
    monkeypatch.setenv("PREFECT_INTEGRATIONS_TPU_NUM_SLICES", "3")
    rows = {one["name"]: one for one in json.loads(cli("settings", "--json").stdout)["settings"]}
    assert rows["PREFECT_INTEGRATIONS_TPU_NUM_SLICES"]["value"] == "3"
    assert rows["PREFECT_INTEGRATIONS_TPU_NUM_SLICES"]["source"] == "environment"
    assert rows["PREFECT_INTEGRATIONS_TPU_LEASE_TIMEOUT_SECONDS"]["source"] == "default"
    assert "in seconds" in rows["PREFECT_INTEGRATIONS_TPU_LEASE_TIMEOUT_SECONDS"]["meaning"]
    assert "NUM_SLICES" in cli("settings").stdout


def test_doctor_without_anything(monkeypatch: pytest.MonkeyPatch, cli: Cli) -> None:
    """No API and no cluster are no faults, an API that does not answer is; each line says what to do."""
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    done = cli("doctor")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ok  python" in done.stdout
    assert "ok  prefect with fastapi" in done.stdout
    assert "--  Ray: no cluster given" in done.stdout
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    monkeypatch.setenv("PREFECT_CLIENT_MAX_RETRIES", "0")
    done = cli("doctor", "--address", "127.0.0.1:9", "--json")
    assert done.returncode == 1
    found = {one["name"]: one for one in json.loads(done.stdout)["findings"]}
    assert found["Prefect API"]["ok"] is False
    assert "PREFECT_API_URL" in found["Prefect API"]["to_do"]
    assert found["Ray"]["ok"] is False
    assert "127.0.0.1:9" in found["Ray"]["says"]


def test_doctor_looks_at_every_host(
    up: dict[str, object], cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole slices, versions on each host, and who holds an accelerator there."""
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    done = cli("doctor", "--address", str(up["address"]))
    assert "not slice-0" not in done.stdout, done.stdout
    assert "whole slices: 2 of v4 2x2x1" in done.stdout
    assert len(re.findall(r"ok  slice-[01] host 0: python .* jax [0-9]", done.stdout)) == 2
    lock = tmp_path / "lock"
    monkeypatch.setenv("PREFECT_INTEGRATIONS_TPU_LIBTPU_LOCK_FILE", str(lock))
    with lock.open("w"):
        done = cli("doctor", "--address", str(up["address"]))
    assert done.returncode == 1
    assert f"not slice-0 host 0: accelerator: {lock} is held by pid {os.getpid()}" in done.stdout
