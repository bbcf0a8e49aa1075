"""Places that cannot be used: a message with path and setting in place of a traceback."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from prefect_tpu.core.errors import ConfigurationError
from prefect_tpu.linux import places, processes

CLI = f"{shlex.quote(sys.executable)} -P -m prefect_tpu.cli"
Shell = Callable[..., str]


@pytest.fixture
def fails() -> Shell:
    """Runs a line of shell that must end with 2, wrong usage; what it said, on one line."""

    def run(line: str, *prefix: str, **variables: str) -> str:
        environment = {name: value for name, value in os.environ.items() if name not in ("HOME", "PREFECT_HOME")}
        environment["PYTHONPATH"] = str(Path(places.__file__).parents[2])
        done = subprocess.run(
            [*prefix, "bash", "-c", line], env=environment | variables, capture_output=True, text=True, check=False,
            timeout=120,
        )  # fmt: skip
        assert "Traceback" not in done.stderr, done.stderr
        assert done.returncode == 2, done.stdout + done.stderr
        return " ".join(done.stderr.split())

    return run


def test_a_current_directory_that_was_deleted(fails: Shell, tmp_path: Path) -> None:
    """Settings may be in a file there; and Ray needs it."""
    gone = tmp_path / "gone"
    gone.mkdir()
    says = fails(f"cd {gone} && rmdir {gone} && {CLI} settings", PREFECT_HOME=str(tmp_path))
    assert "the current directory cannot be used (No such file or directory): it was deleted" in says


@pytest.mark.parametrize("command", ["fleet status", "fleet up --slices 1", "fleet down"])
@pytest.mark.parametrize("home", ["/dev/null/x", "FILE"])
def test_a_prefect_home_that_is_none(command: str, home: str, fails: Shell, tmp_path: Path) -> None:
    """Below a device, or a file."""
    (tmp_path / "FILE").write_text("")
    home = home.replace("FILE", str(tmp_path / "FILE"))
    says = fails(f"{CLI} {command}", PREFECT_HOME=home)
    assert f"{home}/tpu" in says
    assert "Not a directory. Another one is set by PREFECT_HOME" in says


def test_a_state_file_that_is_a_directory(fails: Shell, tmp_path: Path) -> None:
    """It is left alone."""
    (tmp_path / "tpu" / "default.json").mkdir(parents=True)
    says = fails(f"{CLI} fleet status", PREFECT_HOME=str(tmp_path))
    assert "default.json cannot be used for the state files of local fleets: Is a directory" in says


@pytest.mark.parametrize("junk", [b"", b"{", b"[1]", b"42", b'{"name": 1}', b"\xff\xfe\x00"])
def test_a_state_file_of_junk_is_no_fleet(junk: bytes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Half written, or of another version."""
    from prefect_tpu.fleets import local_daemon

    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    (tmp_path / "tpu").mkdir()
    (tmp_path / "tpu" / "default.json").write_bytes(junk)
    with pytest.raises(local_daemon.FleetNotUpError, match="No fleet called 'default' is up"):
        local_daemon.find("default")


def test_a_state_file_of_another_boot_is_no_fleet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Its process id and start time may by now be a bystander's, which is not taken for the fleet, nor killed."""
    from prefect_tpu.fleets import local_daemon

    me = processes.read_process(os.getpid())
    assert me is not None
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    (tmp_path / "tpu").mkdir()
    state = {"name": "default", "address": "10.0.0.2:6379", "control": str(tmp_path / "none"), "log": "", "pid": me.pid}
    for stale in ({"start": me.start, "machine": "0" * 12}, {"start": me.start - 1, "machine": processes.machine()}):
        (tmp_path / "tpu" / "default.json").write_text(json.dumps(state | {"start_timeout_seconds": 1.0} | stale))
        with pytest.raises(local_daemon.FleetNotUpError, match="is not up any more"):
            local_daemon.down("default", print)


def _can(*command: str) -> bool:
    return (
        shutil.which(command[0]) is not None
        and subprocess.run(command, capture_output=True, check=False).returncode == 0
    )


@pytest.mark.skipif(
    not _can("setpriv", "--reuid=12345", "--clear-groups", "true"), reason="only root may be another user"
)
def test_a_user_without_a_home(tmp_path: Path) -> None:
    """As in a container with a numeric user."""
    line = (
        "import os\nfrom prefect_tpu.linux import places\nos.setuid(12345)\n"
        "try:\n    places.home_directory('PREFECT_HOME')\nexcept ValueError as error:\n    print(error)"
    )
    environment = {name: value for name, value in os.environ.items() if name != "HOME"}
    done = subprocess.run([sys.executable, "-c", line], env=environment, capture_output=True, text=True, check=False)
    assert "(id 12345) has no home directory" in done.stdout, done.stderr
    assert "Set PREFECT_HOME or HOME" in done.stdout


@pytest.mark.skipif(not _can("unshare", "-m", "true"), reason="nobody may mount here")
@pytest.mark.parametrize("what", ["Ray's files", "the log"])
def test_a_full_disk(what: str, fails: Shell, tmp_path: Path) -> None:
    """Said at once, not after Ray's own time limit with an empty log."""
    full, home = tmp_path / "full", tmp_path / "home"
    full.mkdir()
    if what == "the log":
        home = full
    code = (
        f"from prefect_tpu.linux import places; places.SHORT_DIRECTORY = {str(full)!r}; "
        "from prefect_tpu.cli import main; main(['fleet', 'up', '--slices', '1'])"
    )
    line = f"mount -t tmpfs -o size=64k tmpfs {full} && {shlex.quote(sys.executable)} -c {shlex.quote(code)}"
    says = fails(line, "unshare", "-m", PREFECT_HOME=str(home))
    where = f"{full}/tpu" if what == "the log" else str(full)
    assert f"{where} cannot be used for {what} of a local fleet: no space is left there" in says


def test_every_fault_of_a_file_system_names_path_and_setting(tmp_path: Path) -> None:
    """Whichever it is."""
    says = r"x cannot be used for the log: No such file.*set by PREFECT_HOME"
    with pytest.raises(ConfigurationError, match=says), places.usable(tmp_path, "the log", "PREFECT_HOME"):
        (tmp_path / "x").read_text()
