"""Before a fork the accelerator must be free: whoever holds it is named, waited for, and left alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from prefect_tpu.core.errors import DeviceBusyError, HostProcessError
from prefect_tpu.core.messages import DeviceCheck, Exited, LogRecord, Phase
from prefect_tpu.host import devices
from prefect_tpu.host.supervisor import HostSupervisor
from prefect_tpu.linux.processes import ATTEMPT_MARK, attempt_mark
from prefect_tpu.wire import pickling
from tests.host.host_support import CPU_JAX, Run, alive, make_request, supervisor, wait_gone

PRELOAD = ("cloudpickle",)
HOLD = """
import fcntl, sys, time
files = [open(path, "rb+") for path in sys.argv[2].split(",") if path]
locks = [open(path, "rb+") for path in sys.argv[3].split(",") if path]
for one in locks:
    fcntl.flock(one, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""
"""Another process that really holds files, until its stdin is closed."""


@pytest.fixture(scope="module")
def host() -> Iterator[HostSupervisor]:
    with supervisor() as one:
        yield one


@pytest.fixture
def check(tmp_path: Path) -> DeviceCheck:
    """Two files that stand for chips, and no lock file yet."""
    for index in range(2):
        (tmp_path / f"accel{index}").touch()
    return DeviceCheck((f"{tmp_path}/accel[0-9]*",), f"{tmp_path}/libtpu_lockfile", wait_seconds=30.0)


@contextmanager
def holding(*paths: str, locked: str = "", env: dict[str, str] | None = None) -> Iterator[subprocess.Popen[str]]:
    arguments = [sys.executable, "-c", HOLD, "--api-key=hunter2", ",".join(paths), locked]
    holder = subprocess.Popen(
        arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | (env or {})
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        yield holder
    finally:
        holder.communicate()


def launch(host: HostSupervisor, check: DeviceCheck, platforms: str = "tpu,cpu") -> Run:
    return Run(host, lambda: "ran", preload=PRELOAD, user_env=CPU_JAX | {"JAX_PLATFORMS": platforms}, devices=check)


def test_a_free_accelerator_is_no_obstacle(host: HostSupervisor, check: DeviceCheck) -> None:
    assert devices.holders(check) == []
    assert launch(host, check).value() == "ran"


def test_who_holds_a_chip_is_named_and_left_alone(host: HostSupervisor, check: DeviceCheck, tmp_path: Path) -> None:
    """The error has host, file, pid, command and setting; the process goes on, the file stays."""
    path = str(tmp_path / "accel1")
    with holding(path) as holder:
        with pytest.raises(DeviceBusyError) as caught:
            launch(host, replace(check, wait_seconds=0.3))
        assert holder.poll() is None
    text = str(caught.value)
    assert f"{path} is held by pid {holder.pid} ({sys.executable} -c, user " in text
    assert "not free after 0.3 s (device_wait_seconds)" in text
    assert "hunter2" not in text
    assert Path(path).exists()
    assert launch(host, check).value() == "ran"


def test_an_attempt_waits_until_the_holder_lets_go(host: HostSupervisor, check: DeviceCheck, tmp_path: Path) -> None:
    """It says for whom it waits while it waits, and when it is over."""
    request = make_request(preload=PRELOAD, user_env={"JAX_PLATFORMS": "tpu"}, devices=check)
    buffers = pickling.dumps((lambda: "ran", (), {}))
    thread = threading.Thread(target=lambda: host.launch(request, buffers))
    with holding(str(tmp_path / "accel0")) as holder:
        thread.start()
        (waiting,) = host.poll(request.attempt_id, 0, 20).events
        assert isinstance(waiting, LogRecord)
        assert f"held by pid {holder.pid}" in waiting.message
        assert thread.is_alive()
    thread.join()
    events = host.poll(request.attempt_id, 1, 20).events
    assert isinstance(events[0], LogRecord)
    assert events[0].message == "the accelerator is free"
    assert Phase("forked") in events
    host.stop(request.attempt_id, 0)
    host.forget(request.attempt_id)


def test_libtpus_lock_is_seen_by_whoever_has_it(host: HostSupervisor, check: DeviceCheck) -> None:
    Path(check.lock_file).touch()
    with holding(locked=check.lock_file) as holder, pytest.raises(DeviceBusyError) as caught:
        launch(host, replace(check, wait_seconds=0.2))
    assert f"libtpu_lockfile is held by pid {holder.pid} " in str(caught.value)
    assert Path(check.lock_file).exists()


def test_a_lock_tells_its_holder_even_if_open_files_are_hidden(
    check: DeviceCheck, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it is for the processes of other users, unless one is root."""
    Path(check.lock_file).touch()
    monkeypatch.setattr(devices, "_open_files", lambda pid, files: set())
    with holding(locked=check.lock_file) as holder:
        assert [(one.path, one.pid) for one in devices.holders(check)] == [(check.lock_file, holder.pid)]


def test_a_stale_lock_file_is_left_where_it_is(host: HostSupervisor, check: DeviceCheck) -> None:
    """Nobody holds it: libtpu takes it over."""
    Path(check.lock_file).write_text("123")
    assert launch(host, check).value() == "ran"
    assert Path(check.lock_file).read_text() == "123"


def test_a_lock_file_of_another_user_is_explained(check: DeviceCheck) -> None:
    """libtpu could not open it, so the message says whose it is. Asked as a user who may not, for root may all."""
    lock_file = Path(check.lock_file)
    lock_file.touch()
    lock_file.chmod(0o400 if os.getuid() == 0 else 0)
    script = (
        "import json, os, sys\n"
        "from prefect_tpu.host import devices\n"
        "from prefect_tpu.core.messages import DeviceCheck\n"
        "if os.getuid() == 0: os.setuid(65534)\n"
        "print(devices.lock_file_problem(DeviceCheck(**json.loads(sys.argv[1]))))\n"
    )
    ours = [one for one in lock_file.parents if Path(tempfile.gettempdir()) in one.parents]
    for directory in ours:
        directory.chmod(directory.stat().st_mode | 0o055)
    asked = subprocess.run(
        [sys.executable, "-c", script, json.dumps(asdict(check))], capture_output=True, text=True, check=True
    )
    assert f"{check.lock_file} belongs to user" in asked.stdout
    assert "its owner can remove it" in asked.stdout
    assert lock_file.exists()


def test_a_process_that_uses_no_chip_is_not_held_up(host: HostSupervisor, check: DeviceCheck, tmp_path: Path) -> None:
    """JAX_PLATFORMS=cpu, as on simulated hosts."""
    with holding(str(tmp_path / "accel0")):
        assert launch(host, replace(check, wait_seconds=0), platforms="cpu").value() == "ran"


def test_a_stop_ends_the_wait(host: HostSupervisor, check: DeviceCheck, tmp_path: Path) -> None:
    """At once, and the attempt never starts."""
    request = make_request(preload=PRELOAD, user_env={"JAX_PLATFORMS": "tpu"}, devices=check)
    errors: list[HostProcessError] = []

    def go() -> None:
        try:
            host.launch(request, [b""])
        except HostProcessError as error:
            errors.append(error)

    with holding(str(tmp_path / "accel0")):
        thread = threading.Thread(target=go)
        thread.start()
        assert any("waiting up to" in one.message for one in host.poll(request.attempt_id, 0, 20).events)
        host.stop(request.attempt_id, 5)
        thread.join(10)
        assert not thread.is_alive()
    assert "was stopped before it was launched" in str(errors[0])
    poll = host.poll(request.attempt_id, 1, 5)
    assert isinstance(poll.events[-1], Exited)
    host.forget(request.attempt_id)


def test_what_an_earlier_attempt_left_is_called_so(check: DeviceCheck, tmp_path: Path) -> None:
    with holding(str(tmp_path / "accel0"), env={ATTEMPT_MARK: attempt_mark("run-1", 4711)}) as holder:
        (found,) = devices.holders(check)
    assert (found.pid, found.attempt) == (holder.pid, "run-1")
    assert "left of attempt run-1" in found.describe()


def test_an_attempts_own_process_has_let_go_when_it_is_over(
    host: HostSupervisor, check: DeviceCheck, tmp_path: Path
) -> None:
    """Two attempts that follow each other need not wait: the first is dead before its end is told."""
    path = str(tmp_path / "accel0")

    def hold() -> int:
        import os

        os.open(path, os.O_RDWR)
        return os.getpid()

    env = CPU_JAX | {"JAX_PLATFORMS": "tpu,cpu"}
    first = Run(host, hold, preload=PRELOAD, user_env=env, devices=check)
    pid = first.value()
    assert not alive({pid})
    second = Run(host, hold, preload=PRELOAD, user_env=env, devices=replace(check, wait_seconds=0))
    wait_gone({second.value()}, 5)


def test_a_device_is_known_by_its_number(tmp_path: Path) -> None:
    """Under another name, in a container, it is still the same chip."""
    node, other = tmp_path / "accel0", tmp_path / "same"
    try:
        for path in (node, other):
            os.mknod(path, 0o600 | 0o020000, os.makedev(1, 3))
    except PermissionError:
        pytest.skip("only root may make device files")
    check = DeviceCheck((f"{tmp_path}/accel*",), "", 0)
    with holding(str(other)) as holder:
        assert holder.pid in {one.pid for one in devices.holders(check)}
