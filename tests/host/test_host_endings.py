"""Nothing that an attempt has started outlives it, however supervisor, zygote or child end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest

from prefect_tpu import runtime
from prefect_tpu.core.errors import HostProcessError
from prefect_tpu.core.messages import Exited, LogLine, Raised, Returned
from prefect_tpu.host.supervisor import HostSupervisor
from prefect_tpu.linux import processes
from prefect_tpu.linux.ports import free_ports
from prefect_tpu.wire import payload, pickling
from tests.host.host_support import CPU_JAX, PRELOAD, Run, alive, jax_init, make_request, supervisor, wait_gone

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def host() -> Iterator[HostSupervisor]:
    with supervisor() as one:
        yield one


def family() -> None:
    """Starts every kind of process that a user may start, names them, and hangs."""
    import subprocess
    import time

    plain = subprocess.Popen(["sleep", "600"])
    own_session = subprocess.Popen(["sleep", "600"], start_new_session=True)
    # A daemon: its parent is gone, its session its own, its environment empty.
    shell = subprocess.run(
        ["sh", "-c", "setsid env -i sleep 600 >/dev/null 2>&1 & echo $!"], capture_output=True, text=True, check=True
    )
    forked = os.fork()
    if forked == 0:
        os.setsid()
        time.sleep(600)
    print("family", plain.pid, own_session.pid, int(shell.stdout), forked)
    time.sleep(600)


def members(run: Run) -> list[int]:
    line = run.until(lambda event: isinstance(event, LogLine) and event.text.startswith("family"))
    assert isinstance(line, LogLine)
    pids = [run.pid, *map(int, line.text.split()[1:])]
    deadline = time.monotonic() + 5
    while alive(pids) != set(pids) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert alive(pids) == set(pids)
    return pids


def test_stop_kills_the_whole_family(host: HostSupervisor) -> None:
    """No grace: children, those with a session of their own, and a daemon without our environment."""
    run = Run(host, family)
    pids = members(run)
    host.stop(run.id, 0)
    host.stop(run.id, 0)
    assert run.until_type(Exited) == Exited(None, signal.SIGKILL, ())
    assert not alive(pids)
    run.exited()


def test_what_the_function_leaves_behind_is_killed(host: HostSupervisor) -> None:
    """Also after a result: the end is told when all is dead."""

    def fn() -> list[int]:
        import subprocess

        one = subprocess.Popen(["sleep", "600"])
        two = subprocess.Popen(["sleep", "600"], start_new_session=True)
        return [one.pid, two.pid]

    pids = Run(host, fn).value()
    assert not alive(pids)


def test_cancel_is_seen_by_the_function(host: HostSupervisor) -> None:
    def fn() -> None:
        try:
            print("working", flush=True)
            time.sleep(600)
        except BaseException as error:
            print("caught", type(error).__name__)
            raise
        finally:
            time.sleep(0.2)
            print("cleaned up")

    run = Run(host, fn)
    run.until_line("working")
    started = time.monotonic()
    host.stop(run.id, 20.0)
    exited = run.until_type(Exited)
    assert exited.exit_code == 128 + signal.SIGTERM
    assert run.lines("stdout") == ["working", "caught Cancelled", "cleaned up"]
    assert time.monotonic() - started < 5
    assert not any(isinstance(event, Raised) for event in run.events)
    run.exited()


def test_cancel_is_seen_in_a_coroutine(host: HostSupervisor) -> None:
    async def fn() -> None:
        import asyncio

        try:
            print("working", flush=True)
            await asyncio.sleep(600)
        finally:
            print("cleaned up")

    run = Run(host, fn)
    run.until_line("working")
    host.stop(run.id, 20.0)
    assert run.exited().exit_code == 128 + signal.SIGTERM
    assert run.lines("stdout") == ["working", "cleaned up"]


def test_cancel_is_seen_although_jax_takes_sigterm(host: HostSupervisor) -> None:
    def fn() -> None:
        try:
            print("working", flush=True)
            while True:
                time.sleep(0.1)
        finally:
            print("cleaned up")

    (port,) = free_ports(1)
    run = Run(host, fn, jax=jax_init(host, 0, 1, port))
    run.until_line("working")
    host.stop(run.id, 20.0)
    assert run.exited().exit_code == 128 + signal.SIGTERM
    assert run.lines("stdout") == ["working", "cleaned up"]


def test_grace_ends(host: HostSupervisor) -> None:
    """A function that does not let itself be cancelled is killed."""

    def fn() -> None:
        while True:
            try:
                print("working", flush=True)
                time.sleep(600)
            except BaseException:  # noqa: BLE001
                continue

    run = Run(host, fn)
    run.until_line("working")
    started = time.monotonic()
    host.stop(run.id, 0.5)
    host.stop(run.id, 30.0)
    assert run.exited().signal == signal.SIGKILL
    assert 0.4 < time.monotonic() - started < 5


def test_own_sigterm_handler_is_left_in_peace(host: HostSupervisor) -> None:
    """A function that handles SIGTERM itself is not interrupted beside that."""

    def fn() -> str:
        import signal

        told: list[int] = []
        signal.signal(signal.SIGTERM, lambda number, frame: told.append(number))
        print("working", flush=True)
        while not told:
            time.sleep(0.05)
        time.sleep(0.5)
        return "saved"

    run = Run(host, fn)
    run.until_line("working")
    host.stop(run.id, 20.0)
    assert run.value() == "saved"


def test_stop_while_jax_connects_does_not_wait_for_it(host: HostSupervisor) -> None:
    (port,) = free_ports(1)
    run = Run(host, family, jax=jax_init(host, 1, 2, port))
    time.sleep(0.5)
    started = time.monotonic()
    host.stop(run.id, 20.0)
    run.exited()
    assert time.monotonic() - started < 5


def test_stop_before_launch(host: HostSupervisor) -> None:
    """Calls of a driver may overtake each other: what is stopped never starts."""
    request = make_request()
    host.stop(request.attempt_id, 5.0)
    with pytest.raises(HostProcessError, match="stopped before it was launched"):
        host.launch(request, pickling.dumps((print, (), {})))
    assert host.poll(request.attempt_id, 0, 5.0).events == (Exited(None, signal.SIGKILL, ()),)
    host.forget(request.attempt_id)
    host.stop(request.attempt_id, 0)
    with pytest.raises(HostProcessError, match="stopped before it was launched"):
        host.launch(request, pickling.dumps((print, (), {})))


def test_exit_handlers_and_threads_finish_after_the_result(host: HostSupervisor) -> None:
    def fn() -> int:
        import atexit
        import threading

        atexit.register(print, "at exit")
        threading.Timer(0.3, print, ["from a thread"]).start()
        return 1

    run = Run(host, fn)
    assert run.value() == 1
    assert run.lines("stdout") == ["from a thread", "at exit"]


def test_function_that_raises_with_a_hanging_thread(host: HostSupervisor) -> None:
    """It holds the process until the driver cuts it, and is named then."""

    def fn() -> None:
        import threading

        threading.Thread(target=time.sleep, args=(600,), name="hangs").start()
        raise ValueError

    run = Run(host, fn)
    run.until_type(Raised)
    host.cut(run.id, "as told by a test")
    assert run.exited().exit_code == 1
    assert any("thread 'hangs'" in one.message for one in run.records())


def test_who_leaves_waits_for_the_others(host: HostSupervisor) -> None:
    """After runtime.leave() only the driver ends the process: other hosts may still save, for a minute."""

    def fn() -> None:
        runtime.leave()

    run = Run(host, fn)
    raised: Raised = run.until_type(Raised)
    assert raised.left == "drain"
    time.sleep(1.5)
    assert alive([run.pid]), "its agent has ended it while others may still save"
    host.stop(run.id, 0)
    run.exited()


def test_killed_zygote_takes_everything_with_it(host: HostSupervisor) -> None:
    """The supervisor ends the sessions and says so; the next attempt gets a new zygote."""
    run = Run(host, family)
    pids = members(run)
    zygote = host.prepare(PRELOAD, CPU_JAX).zygote_pid
    os.kill(zygote, signal.SIGKILL)
    assert run.exited().signal == signal.SIGKILL
    wait_gone([*pids[:3], *pids[4:], zygote], 5.0)
    os.kill(pids[3], signal.SIGKILL)  # without our environment and without a parent it cannot be found
    assert host.prepare(PRELOAD, CPU_JAX).zygote_pid != zygote


AGENT_SIDE = """
import sys
from prefect_tpu.wire import pickling
from tests.host import test_host_endings
from tests.host.host_support import Run
from prefect_tpu.host.supervisor import HostSupervisor
host = HostSupervisor()
run = Run(host, test_host_endings.family)
print(*test_host_endings.members(run), host.prepare(run.request.preload, run.request.user_env).zygote_pid, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def agent_side() -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", AGENT_SIDE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    yield process
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()


def end_by_kill(process: subprocess.Popen[str]) -> None:
    process.kill()


def end_by_leaving(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.close()


def end_by_killing_children_too(process: subprocess.Popen[str]) -> None:
    """As Ray's core worker does: its direct children first."""
    table = processes.snapshot()
    for one in table.values():
        if one.parent == process.pid:
            processes.send_signal(one.pid, signal.SIGKILL)
    process.kill()


@pytest.mark.parametrize("end", [end_by_kill, end_by_leaving, end_by_killing_children_too])
def test_gone_agent_takes_everything_with_it(
    agent_side: subprocess.Popen[str], end: Callable[[subprocess.Popen[str]], None]
) -> None:
    assert agent_side.stdout is not None
    pids = [int(word) for word in agent_side.stdout.readline().split()]
    assert len(pids) == 6
    assert alive(pids) == set(pids)
    end(agent_side)
    wait_gone(pids, 3.0)


def test_close_ends_everything() -> None:
    with supervisor() as fresh:
        run = Run(fresh, family)
        pids = [*members(run), fresh.prepare(PRELOAD, CPU_JAX).zygote_pid]
    assert not alive(pids)
    assert fresh.poll(run.id, 0, 0.0).events[-1] == Exited(None, signal.SIGKILL, ())
    with pytest.raises(HostProcessError, match="closed"):
        fresh.prepare(PRELOAD, CPU_JAX)
    fresh.close()


def test_attempts_side_by_side_do_not_end_each_other(host: HostSupervisor) -> None:
    first, second = Run(host, family), Run(host, family)
    pids, others = members(first), members(second)
    host.stop(first.id, 0)
    first.exited()
    assert not alive({*pids} - {pids[3], pids[4]})
    assert alive(others) == set(others)
    host.stop(second.id, 0)
    second.exited()
    assert not alive([*pids, *others])


def test_memory_of_a_result_is_given_back(host: HostSupervisor) -> None:
    """forget closes the result's file; views that are still held stay valid."""

    def fn() -> bytes:
        return bytes(1_000_000)

    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        run = Run(host, fn)
        run.until_type(Returned)
        views = payload.parse(host.result(run.id))
        host.finish(run.id)
        run.exited()
    assert len(pickling.loads(views)) == 1_000_000
    del views
    assert len(os.listdir("/proc/self/fd")) <= before + 1
