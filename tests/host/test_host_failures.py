"""What a function can do wrong on a host, and how it is told."""

from __future__ import annotations

import os
import pickle
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from prefect_tpu.core.messages import Exited, JaxInit, Raised
from prefect_tpu.host.supervisor import HostSupervisor
from prefect_tpu.linux.ports import free_ports
from prefect_tpu.wire import pickling
from tests.host.host_support import PRELOAD, Run, supervisor

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def host() -> Iterator[HostSupervisor]:
    with supervisor() as one:
        yield one


class Mine(Exception):  # noqa: N818
    def __init__(self, code: int) -> None:
        super().__init__(f"code {code}")
        self.code = code

    def __reduce__(self) -> tuple[object, ...]:
        return Mine, (self.code,)

    def twice(self) -> int:
        return 2 * self.code


def raised(run: Run) -> Raised:
    event: Raised = run.until_type(Raised, Exited)
    assert isinstance(event, Raised), run.events
    assert run.exited().exit_code == 1
    return event


def test_users_exception_is_itself(host: HostSupervisor) -> None:
    """isinstance holds in the driver, its class there is untouched, the traceback has only the user's frames."""

    def fn() -> None:
        inner()

    def inner() -> None:
        raise Mine(7)

    method = Mine.twice
    event = raised(Run(host, fn))
    assert (event.stage, event.type_name.rpartition(".")[2], event.message) == ("function", "Mine", "code 7")
    assert event.pickled is not None
    error = pickle.loads(event.pickled)
    assert isinstance(error, Mine)
    assert error.twice() == 14
    assert Mine.twice is method
    frames = [line for line in event.traceback.splitlines() if line.strip().startswith("File")]
    assert [line.rpartition(" in ")[2] for line in frames] == ["fn", "inner"]


def test_async_exception_has_only_the_users_frames(host: HostSupervisor) -> None:
    async def fn() -> None:
        raise ValueError("from a coroutine")

    event = raised(Run(host, fn))
    frames = [line for line in event.traceback.splitlines() if line.strip().startswith("File")]
    assert len(frames) == 1
    assert event.type_name == "ValueError"


def test_exception_that_cannot_be_rebuilt_travels_as_text(host: HostSupervisor) -> None:
    """Its class, which the function has made, does not pickle."""

    def fn() -> None:
        class Stubborn(Exception):  # noqa: N818
            lock = threading.Lock()

        raise Stubborn("1 2")

    event = raised(Run(host, fn))
    assert event.pickled is None
    assert event.message == "1 2"
    assert "Stubborn" in event.traceback


def test_exception_with_a_lock_travels_without_it(host: HostSupervisor) -> None:
    def fn() -> None:
        error = ValueError("with a lock")
        error.lock = threading.Lock()  # type: ignore[attr-defined]
        raise error

    event = raised(Run(host, fn))
    assert event.pickled is not None
    rebuilt = pickle.loads(event.pickled)
    assert (type(rebuilt), str(rebuilt), vars(rebuilt)) == (ValueError, "with a lock", {})


def test_huge_exception(host: HostSupervisor) -> None:
    """More than fits into one message of the channel."""

    def fn() -> None:
        raise ValueError(b"x" * 1_000_000)

    event = raised(Run(host, fn))
    assert event.pickled is not None
    assert pickle.loads(event.pickled).args == (b"x" * 1_000_000,)
    assert len(event.message) < 21_000


def test_exception_whose_str_raises(host: HostSupervisor) -> None:
    class Bad(Exception):  # noqa: N818
        def __str__(self) -> str:
            raise RuntimeError("no")

    def fn() -> None:
        raise Bad

    assert "__str__ raised RuntimeError" in raised(Run(host, fn)).message


@pytest.mark.parametrize("code", [0, 3, "text"])
def test_system_exit_is_raised_by_the_function(host: HostSupervisor, code: object) -> None:
    def fn() -> None:
        sys.exit(code)  # type: ignore[arg-type]

    event = raised(Run(host, fn))
    assert (event.stage, event.type_name) == ("function", "SystemExit")


def test_os_exit_leaves_only_the_code(host: HostSupervisor) -> None:
    def fn() -> None:
        print("before", file=sys.stderr)
        os._exit(3)

    run = Run(host, fn)
    assert run.until_type(Raised, Exited) == Exited(3, None, ("before",))
    run.exited()


def test_segfault_leaves_signal_and_stack(host: HostSupervisor) -> None:
    """faulthandler names the function; the last lines of stderr travel with the end."""

    def fn() -> None:
        import ctypes

        ctypes.string_at(0)

    run = Run(host, fn)
    ended = run.until_type(Raised, Exited)
    assert isinstance(ended, Exited)
    assert ended.signal == signal.SIGSEGV
    assert any("Segmentation fault" in line for line in ended.last_stderr)
    assert any("in fn" in line for line in ended.last_stderr)
    run.exited()


def test_killed_child_is_told_at_once(host: HostSupervisor) -> None:
    def fn() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    run = Run(host, fn)
    assert run.until_type(Raised, Exited) == Exited(None, signal.SIGKILL, ())
    run.exited()


def test_unpicklable_result_is_named(host: HostSupervisor) -> None:
    def fn() -> object:
        return {"model": [1, {"lock": threading.Lock()}]}

    event = raised(Run(host, fn))
    assert event.stage == "result"
    assert "['model'] -> [1] -> ['lock'] -> _thread.lock" in event.message


def test_random_key_is_refused_with_the_way_out(host: HostSupervisor) -> None:
    def fn() -> object:
        import jax

        return {"key": jax.random.key(0)}

    event = raised(Run(host, fn))
    assert event.stage == "result"
    assert "['key']" in event.message
    assert event.advice == "send jax.random.key_data(key) instead"
    assert "key_data" not in event.message


def test_what_jax_still_computes_fails_as_the_function(host: HostSupervisor) -> None:
    def fn() -> object:
        import jax

        def boom(x: object) -> object:
            raise ValueError("in the callback")

        shape = jax.ShapeDtypeStruct((), "float32")
        return jax.jit(lambda x: jax.pure_callback(boom, shape, x))(1.0)

    assert raised(Run(host, fn)).stage == "function"


def test_function_that_cannot_be_loaded(host: HostSupervisor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed module that the host does not have."""
    (tmp_path / "only_in_the_driver.py").write_text("def fn():\n    return 1\n")
    host.prepare(PRELOAD, {"A": "1"})  # its path is that of before
    monkeypatch.syspath_prepend(str(tmp_path))
    import only_in_the_driver  # type: ignore[import-not-found]

    monkeypatch.setattr(pickling, "project_root_of", lambda fn: None)
    event = raised(Run(host, only_in_the_driver.fn, user_env={"A": "1"}))
    assert (event.stage, event.type_name) == ("unpickle", "ModuleNotFoundError")
    assert "only_in_the_driver" in event.message


def test_jax_that_cannot_initialize(host: HostSupervisor) -> None:
    def fn() -> None:
        return None

    (port,) = free_ports(1)
    run = Run(host, fn, jax=JaxInit(f"127.0.0.1:{port}", 2, 0, 1))  # the other process never comes
    ended = run.until_type(Raised, Exited)
    if isinstance(ended, Raised):
        assert ended.stage == "jax"
    else:  # jaxlib may abort the process instead
        assert ended.signal == signal.SIGABRT
    run.exited()
