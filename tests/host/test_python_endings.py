"""The end of a function on a host is as in plain Python: threads, exit hooks, and JAX's runtime last."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from prefect_tpu import runtime
from prefect_tpu.core.messages import Exited, LogRecord, Phase, Raised, Returned
from prefect_tpu.host import supervisor as host_module
from prefect_tpu.host.supervisor import HostSupervisor
from prefect_tpu.linux.ports import free_ports
from tests.host.host_support import Run, alive, jax_init, supervisor
from tests.processes import stop
from tests.waiting import eventually

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def host() -> Iterator[HostSupervisor]:
    with supervisor() as one:
        yield one


def warnings(run: Run) -> list[str]:
    return [one.message for one in run.records() if one.level == logging.WARNING]


def test_a_thread_that_saves_longer_than_the_grace(
    host: HostSupervisor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The result is there at once; the file is whole when the process has ended."""
    monkeypatch.setattr(host_module, "EXIT_GRACE_SECONDS", 0.3)
    target = tmp_path / "saved"

    def fn(path: str) -> int:
        import pathlib
        import threading

        def save() -> None:
            with pathlib.Path(path).open("w") as file:
                for _ in range(10):
                    file.write("part\n")
                    file.flush()
                    time.sleep(0.15)

        threading.Thread(target=save, name="saver").start()
        return 1

    assert Run(host, lambda: 1).value() == 1  # what is imported only once is there
    run = Run(host, fn, str(target))
    run.until_type(Returned)
    assert not target.exists() or target.read_text().count("part") < 10, "the result waits for nobody"
    assert run.value() == 1
    assert target.read_text().count("part") == 10
    assert run.events[-1] == Exited(0, None)
    assert warnings(run) == []


def test_jax_is_there_until_threads_and_hooks_are_done(host: HostSupervisor) -> None:
    """Its runtime is asked by a thread, a pool, and exit hooks of the function and of a preloaded module."""

    def fn() -> None:
        import atexit
        import concurrent.futures
        import multiprocessing.util
        import threading

        import jax

        def look(who: str, seconds: float = 0.0) -> None:
            time.sleep(seconds)
            print(who, jax.distributed.is_initialized(), flush=True)

        atexit.register(look, "hook")
        multiprocessing.util.Finalize(None, look, ("finalizer",), exitpriority=1)
        threading._register_atexit(look, "threading hook")  # type: ignore[attr-defined]
        threading.Thread(target=look, args=("thread", 0.3)).start()
        concurrent.futures.ThreadPoolExecutor(1).submit(look, "pool", 0.2)

    (port,) = free_ports(1)
    run = Run(host, fn, preload=("jax", "numpy", "cloudpickle", "multiprocessing.util"), jax=jax_init(host, 0, 1, port))
    run.value()
    assert sorted(run.lines("stdout")) == [f"{who} True" for who in sorted(LOOKERS)]
    assert run.events[-1] == Exited(0, None)


LOOKERS = ("hook", "finalizer", "threading hook", "thread", "pool")


def test_what_is_cut_is_named(host: HostSupervisor) -> None:
    """Every thread by name with the line that it is at; daemon threads, as in Python, hold nothing up."""

    def fn() -> int:
        import threading

        threading.Thread(target=time.sleep, args=(600,), name="idle", daemon=True).start()
        threading.Thread(target=lambda: time.sleep(600), name="saver").start()
        return 1

    run = Run(host, fn)
    run.until_type(Returned)
    host.cut(run.id, "exit_timeout_seconds=7 is over")
    run.exited()
    (text,) = warnings(run)
    assert "exit_timeout_seconds=7 is over" in text
    assert "thread 'saver' at " in text
    assert f"{Path(__file__).name}:" in text
    assert "idle" not in text
    assert not alive([run.pid])


def test_an_exit_hook_that_is_cut_is_named(host: HostSupervisor) -> None:
    """It runs in the main thread."""

    def fn() -> int:
        import atexit

        def upload() -> None:
            print("uploading", flush=True)
            time.sleep(600)

        atexit.register(upload)
        return 1

    run = Run(host, fn)
    run.until_line("uploading")
    host.cut(run.id, "exit_timeout_seconds=7 is over")
    run.exited()
    (text,) = warnings(run)
    assert "an exit hook at " in text
    assert "in upload" in text


def test_one_that_cannot_answer_is_told_all_the_same(host: HostSupervisor, monkeypatch: pytest.MonkeyPatch) -> None:
    """It holds the interpreter's lock, or is stopped: the agent says so, and ends it."""
    import signal

    monkeypatch.setattr(host_module, "CUT_SECONDS", 0.3)

    def fn() -> int:
        return 1

    run = Run(host, fn)
    run.until_type(Returned)
    stop(run.pid)
    host.cut(run.id, "exit_timeout_seconds=7 is over")
    assert run.exited().signal == signal.SIGKILL
    (text,) = warnings(run)
    assert "exit_timeout_seconds=7 is over" in text
    assert "did not say what it was doing" in text


def test_threads_and_hooks_that_fail_are_told(host: HostSupervisor) -> None:
    """After the function has returned nobody else would say so."""

    def fn() -> int:
        import atexit
        import threading

        def save() -> None:
            time.sleep(0.2)
            raise OSError("disk full")

        def bye() -> None:
            raise KeyError("run id")

        atexit.register(bye)
        threading.Thread(target=save, name="saver").start()
        return 1

    run = Run(host, fn)
    assert run.value() == 1
    first, second = warnings(run)
    assert first == "thread 'saver' failed after the function had ended: OSError: disk full"
    assert "exit hook" in second
    assert "KeyError: 'run id'" in second
    assert "OSError: disk full" in run.lines("stderr"), "with its traceback, as Python prints it"


def test_whoever_holds_up_the_end_is_told(host: HostSupervisor, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a while, so that nobody wonders what the run waits for."""

    def fn() -> int:
        import threading

        from prefect_tpu.host.process import endings

        endings.WORD_SECONDS = 0.2
        threading.Thread(target=time.sleep, args=(1.5,), name="saver").start()
        return 1

    run = Run(host, fn)
    run.value()
    (text,) = [one.message for one in run.records() if "has ended; waits for" in one.message]
    assert "thread 'saver'" in text


def test_a_function_that_raises_while_a_thread_saves(
    host: HostSupervisor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The error is told at once, and the file is whole."""
    from prefect_tpu.host import attempt

    monkeypatch.setattr(attempt, "EXIT_GRACE_SECONDS", 0.3, raising=False)
    target = tmp_path / "saved"

    def fn(path: str) -> None:
        import pathlib
        import threading

        def save() -> None:
            time.sleep(1.2)
            pathlib.Path(path).write_text("whole")

        threading.Thread(target=save).start()
        raise ValueError("as asked")

    run = Run(host, fn, str(target))
    assert run.until_type(Raised).message == "as asked"
    assert not target.exists()
    assert run.exited().exit_code == 1
    assert target.read_text() == "whole"


def test_leaving_ends_threads_first(host: HostSupervisor, tmp_path: Path) -> None:
    """A save that runs in a thread when the function leaves."""
    target = tmp_path / "saved"

    def fn(path: str) -> None:
        import pathlib
        import threading

        def save() -> None:
            time.sleep(0.5)
            pathlib.Path(path).write_text("whole")

        threading.Thread(target=save).start()
        runtime.leave()

    run = Run(host, fn, str(target))
    assert run.until_type(Raised).left == "drain"
    run.until(lambda event: event == Phase("ended"))
    assert target.read_text() == "whole"
    host.stop(run.id, 0)
    run.exited()


def test_a_cancel_gives_its_grace_to_threads(host: HostSupervisor, tmp_path: Path) -> None:
    """Also one that comes when the function has ended; after the grace nothing is waited for."""
    target = tmp_path / "saved"

    def fn(path: str) -> int:
        import pathlib
        import threading

        def save() -> None:
            time.sleep(0.8)
            pathlib.Path(path).write_text("whole")

        threading.Thread(target=save).start()
        return 1

    run = Run(host, fn, str(target))
    run.until_type(Returned)
    host.stop(run.id, 20.0)
    assert run.exited().signal is None
    assert target.read_text() == "whole"


def test_processes_that_are_left_are_told(host: HostSupervisor) -> None:
    """They are ended, as always; by name and number, without their arguments."""

    def fn() -> int:
        import subprocess

        return subprocess.Popen(["sleep", "600"]).pid

    run = Run(host, fn)
    pid = run.value()
    assert not alive([pid])
    records = [one for one in run.records() if isinstance(one, LogRecord) and one.level == logging.WARNING]
    (text,) = [one.message for one in records]
    assert f"sleep ({pid})" in text
    assert "600" not in text.replace(str(pid), "")


def test_processes_of_another_host_on_this_machine_are_left_alone(host: HostSupervisor, tmp_path: Path) -> None:
    """Simulated hosts share it, and the gang's attempt: what the one leaves is not the other's."""

    def waits(folder: str) -> bool:
        import pathlib
        import subprocess
        import time

        child = subprocess.Popen(["sleep", "600"], start_new_session=True)
        pathlib.Path(folder, "runs").touch()
        while not pathlib.Path(folder, "go").exists():
            time.sleep(0.05)
        alive = child.poll() is None
        child.kill()
        child.wait()
        return alive

    def leaves() -> int:
        import subprocess

        return subprocess.Popen(["sleep", "600"], start_new_session=True).pid

    with supervisor() as other:
        slow = Run(other, waits, str(tmp_path))
        eventually((tmp_path / "runs").exists, "the other host's function runs")
        quick = Run(host, leaves, attempt_id=slow.id)
        pid = quick.value()
        (text,) = warnings(quick)
        assert text.endswith(f"were ended: sleep ({pid})")
        (tmp_path / "go").touch()
        assert slow.value()
        assert warnings(slow) == []


def test_processes_that_end_by_themselves_are_not_told(host: HostSupervisor) -> None:
    """Such as the helpers of multiprocessing, which see their parent go."""

    def fn() -> int:
        import subprocess

        return subprocess.Popen(["sleep", "0.1"]).pid

    run = Run(host, fn)
    run.value()
    assert warnings(run) == []
