"""A function on one host: what it gets, what it gives back, what is heard of it."""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from collections.abc import Iterator

import numpy
import pytest

from prefect_tpu import runtime
from prefect_tpu.core.errors import ConfigurationError, HostProcessError, PreloadError
from prefect_tpu.core.messages import Exited, Phase, Poll, Progress, Returned
from prefect_tpu.host import streams
from prefect_tpu.host import supervisor as host_module
from prefect_tpu.host.supervisor import HostSupervisor
from prefect_tpu.linux.ports import free_ports
from prefect_tpu.runtime.reporter import REPORT_INTERVAL_SECONDS
from prefect_tpu.wire import payload, pickling
from tests.host.host_support import CPU_JAX, PRELOAD, Run, make_request, supervisor

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def host() -> Iterator[HostSupervisor]:
    with supervisor() as one:
        yield one


def test_value_lines_and_records_come_back(host: HostSupervisor) -> None:
    """stdout and stderr as lines, logging with its level, phases in order, exit code 0."""

    def fn(a: int, b: int) -> int:
        import logging

        print("to stdout")
        print("to stderr", file=sys.stderr)
        logging.getLogger("mine").warning("careful: %d", 3)
        logging.getLogger("mine").info("info")
        logging.getLogger("mine").debug("not asked for")
        print("no end", end="")
        return a + b

    run = Run(host, fn, 1, 2)
    assert run.value() == 3
    assert run.lines("stdout") == ["to stdout", "no end"]
    assert run.lines("stderr") == ["to stderr"]
    assert [(one.level, one.logger, one.message) for one in run.records()] == [
        (30, "mine", "careful: 3"),
        (20, "mine", "info"),
    ]
    assert [one.name for one in run.events if isinstance(one, Phase)] == ["forked", "entered", "ended"]
    assert next(one.summary for one in run.events if isinstance(one, Returned)) == "3"
    assert run.events[-1] == Exited(0, None, ("to stderr",))


def test_async_function(host: HostSupervisor) -> None:
    async def fn() -> str:
        import asyncio

        await asyncio.sleep(0)
        return "done"

    assert Run(host, fn).value() == "done"


def test_closures_classes_and_other_functions_of_the_file_travel(host: HostSupervisor) -> None:
    """By value: the child does not import this file."""
    factor = 3

    def fn(point: Point) -> object:
        assert not hasattr(sys.modules["tests.host.test_host_runs"], "pytestmark")  # it has what the function uses
        return Point(helper(point.x) * factor, point.y)

    moved = Run(host, fn, Point(1, 2)).value()
    assert isinstance(moved, Point)
    assert (moved.x, moved.y) == (6, 2)


class Point:
    def __init__(self, x: int, y: int) -> None:
        self.x, self.y = x, y


def helper(x: int) -> int:
    return x * 2


def test_neither_ray_nor_prefect_nor_a_backend_is_in_the_child(host: HostSupervisor) -> None:
    def fn() -> tuple[list[str], bool]:
        import sys

        from jax._src import xla_bridge

        heavy = [name for name in ("ray", "prefect", "pydantic") if name in sys.modules]
        return heavy, xla_bridge.backends_are_initialized()

    assert Run(host, fn).value() == ([], False)


def test_child_has_no_threads_that_are_not_ours(host: HostSupervisor) -> None:
    def fn() -> int:
        import threading

        return threading.active_count()

    assert Run(host, fn).value() == 2  # the main thread, and the one that listens to the agent


def test_environment_of_import_time_counts(host: HostSupervisor) -> None:
    """JAX reads JAX_ENABLE_X64 when it is imported, before the fork."""

    def fn() -> str:
        import jax.numpy as jnp

        return str(jnp.ones(3).dtype)

    assert Run(host, fn).value() == "float32"
    assert Run(host, fn, user_env=CPU_JAX | {"JAX_ENABLE_X64": "1"}).value() == "float64"


def test_nothing_leaks_into_the_next_attempt(host: HostSupervisor) -> None:
    """Environment, modules, JAX backend, random state of an attempt are its own."""

    def fn() -> tuple[object, ...]:
        import json
        import os
        import random

        import jax
        import numpy
        from jax._src import xla_bridge

        before = (os.environ.get("LEAK"), hasattr(json, "leak"), xla_bridge.backends_are_initialized())
        os.environ["LEAK"] = "1"
        json.leak = True  # type: ignore[attr-defined]
        return (*before, os.environ["MEGASCALE_PORT"], jax.device_count(), random.random(), numpy.random.rand())

    first = Run(host, fn, gang_env={"MEGASCALE_PORT": "1"}).value()
    second = Run(host, fn, gang_env={"MEGASCALE_PORT": "2"}).value()
    assert first[:5] == (None, False, False, "1", 2)
    assert second[:5] == (None, False, False, "2", 2)
    assert first[5] != second[5]
    assert first[6] != second[6]


def test_what_ray_and_prefect_set_does_not_reach_the_function(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nor does an older gang's coordinator; what the user sets does, whatever its name."""
    names = ("OMP_NUM_THREADS", "RAY_JOB_ID", "PREFECT_API_KEY", "MEGASCALE_SLICE_ID", "JAX_COORDINATOR_ADDRESS")
    for name in names:
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("KEPT", "1")

    def fn(names: list[str]) -> list[str]:
        import os

        return [name for name in names if name in os.environ]

    with supervisor() as fresh:
        wanted = [*names, "KEPT", "PREFECT_USERS"]
        run = Run(fresh, fn, wanted, preload=("cloudpickle",), user_env={"PREFECT_USERS": "1", "RAY_JOB_ID": "x"})
        assert run.value() == ["RAY_JOB_ID", "KEPT", "PREFECT_USERS"]


@pytest.mark.slow
def test_big_argument_and_result(host: HostSupervisor) -> None:
    """300 MB there and back; the function may write to its argument, the driver to its result."""
    big = numpy.zeros(300_000_000 // 8)
    big[-1] = 1.0

    def fn(array: numpy.ndarray) -> numpy.ndarray:
        array[0] = array[-1] + 1
        return array

    result = Run(host, fn, big).value()
    assert (result[0], result[-1], result.nbytes) == (2.0, 1.0, 300_000_000)
    assert big[0] == 0.0
    result[1] = 5.0


def test_jax_arrays_arrive_as_writable_numpy(host: HostSupervisor) -> None:
    def fn() -> dict[str, object]:
        import jax.numpy as jnp

        return {"small": jnp.arange(3), "big": jnp.ones((300, 300), jnp.bfloat16), "scalar": jnp.float32(1.5)}

    run = Run(host, fn)
    result = run.value()
    assert {type(one) for one in result.values()} == {numpy.ndarray}
    assert str(result["big"].dtype) == "bfloat16"
    result["small"][0] = 7
    result["big"][0, 0] = 7
    assert next(one.summary for one in run.events if isinstance(one, Returned)) == (
        "{'small': int32[3], 'big': bfloat16[300, 300], 'scalar': 1.5}"
    )


def test_flood_of_lines_is_bounded_and_does_not_block(host: HostSupervisor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines beyond the limit are dropped and counted; events of other kinds never are."""
    monkeypatch.setattr(streams, "MAX_BUFFERED_LINES", 100)

    def fn() -> str:
        for index in range(50_000):
            print(index)
        return "x"

    run = Run(host, fn)
    host._attempts[run.id].over.wait(0.5)  # nobody polls meanwhile
    deadline = time.monotonic() + 30
    while not host._attempts[run.id].returned and time.monotonic() < deadline:
        time.sleep(0.05)
    assert run.value() == "x"
    lines = run.lines("stdout")
    assert lines[:3] == ["0", "1", "2"]
    assert run.dropped > 0
    assert run.dropped + len(lines) == 50_000


def test_long_lines_are_cut_and_progress_bars_are_one_line(host: HostSupervisor) -> None:
    def fn() -> None:
        print("x" * 50_000)
        for step in range(100):
            print(f"\rstep {step}", end="")
        print()

    run = Run(host, fn)
    run.value()
    long, bar = run.lines("stdout")
    assert long.startswith("x" * 20_000 + "...")
    assert long.endswith("[30000 more characters]")
    assert bar == "step 99"


def test_run_logger_of_prefect_works_without_api(host: HostSupervisor) -> None:
    """Level and logger arrive, whether Prefect is imported in the function, with it, or ahead."""
    from prefect import get_run_logger

    def inside() -> None:
        from prefect import get_run_logger

        get_run_logger().warning("inside %s", "x")
        get_run_logger().debug("not asked for")

    def with_it() -> None:
        get_run_logger().error("with it")

    async def in_a_loop() -> None:
        get_run_logger().info("in a loop")

    with socket.create_server(("127.0.0.1", 0)) as api:
        api.setblocking(False)
        user_env = CPU_JAX | {"PREFECT_API_URL": f"http://127.0.0.1:{api.getsockname()[1]}/api"}
        runs = [Run(host, inside, user_env=user_env, preload=("cloudpickle",))]
        runs += [Run(host, fn, user_env=user_env, preload=("cloudpickle", "prefect")) for fn in (with_it, in_a_loop)]
        assert [run.value() for run in runs] == [None] * 3
        with pytest.raises(BlockingIOError):  # nobody has called the API
            api.accept()
    records = [(one.level, one.logger, one.message) for run in runs for one in run.records()]
    assert records == [
        (30, "prefect.task_runs", "inside x"),
        (40, "prefect.task_runs", "with it"),
        (20, "prefect.task_runs", "in a loop"),
    ]
    assert [line for run in runs for line in run.lines("stderr")] == []


def test_report_sends_the_newest(host: HostSupervisor) -> None:
    def fn() -> None:
        import jax.numpy as jnp

        from prefect_tpu import runtime

        for step in range(1_000):
            runtime.report(step=step, loss=jnp.float32(2.0))

    run = Run(host, fn)
    run.value()
    reports = [one for one in run.events if isinstance(one, Progress)]
    assert reports[-1] == Progress(999, {"loss": 2.0}, first_step=0, highest_step=999)
    assert len(reports) < 10


def test_drain_notice_reaches_the_function(host: HostSupervisor) -> None:
    def fn() -> tuple[bool, tuple[int, ...], object]:
        import time

        from prefect_tpu import runtime

        ctx = runtime.current()
        print("running", ctx.draining)
        while not ctx.draining:
            time.sleep(0.01)
        return ctx.draining, ctx.draining_slices, ctx.deadline

    run = Run(host, fn)
    run.until_line("running False")
    before = time.time()
    host.notify_drain(run.id, [1, 0], 1_000.0)
    draining, slices, deadline = run.value()
    assert draining
    assert slices == (0, 1)
    assert before + 1_000 <= deadline.timestamp() <= time.time() + 1_000


def test_a_drain_that_is_taken_back_reaches_the_function(host: HostSupervisor) -> None:
    def fn() -> tuple[bool, object]:
        import time

        from prefect_tpu import runtime

        ctx = runtime.current()
        while not ctx.draining:
            time.sleep(0.01)
        print("draining")
        while ctx.draining:
            time.sleep(0.01)
        return ctx.draining, ctx.deadline

    run = Run(host, fn)
    host.notify_drain(run.id, [0], 1_000.0)
    run.until(lambda event: event == Phase("entered"))
    host.notify_drain(run.id, [0], 1_000.0)
    run.until_line("draining")
    host.notify_drain(run.id, [], None)
    assert run.value() == (False, None)


def test_failing_preload_names_the_module(host: HostSupervisor) -> None:
    with pytest.raises(PreloadError, match=r"module 'no_such_module_here' cannot be imported .*ModuleNotFoundError"):
        host.prepare(("cloudpickle", "no_such_module_here"), {})


def test_preload_that_starts_a_backend_is_refused(host: HostSupervisor, tmp_path: object) -> None:
    path = f"{tmp_path}/starts_backend_at_import.py"
    with open(path, "w") as file:
        file.write("import jax\njax.devices()\n")
    sys.path.append(str(tmp_path))
    try:
        with pytest.raises(PreloadError, match="starts a JAX backend"):
            host.prepare(("starts_backend_at_import",), CPU_JAX)
    finally:
        sys.path.remove(str(tmp_path))


def test_preload_that_kills_the_zygote_is_told(host: HostSupervisor, tmp_path: object) -> None:
    with open(f"{tmp_path}/dies_at_import.py", "w") as file:
        file.write("import os, sys\nprint('last words', file=sys.stderr, flush=True)\nos._exit(7)\n")
    sys.path.append(str(tmp_path))
    try:
        with pytest.raises(HostProcessError, match=r"(?s)ended while it imported dies_at_import.*last words"):
            host.prepare(("dies_at_import",), {})
    finally:
        sys.path.remove(str(tmp_path))


def test_prepares_share_a_zygote_and_old_ones_are_ended() -> None:
    """Two at the same time start one; the third kind ends the one that was used longest ago."""
    with supervisor() as fresh:
        reports = []
        threads = [
            threading.Thread(target=lambda: reports.append(fresh.prepare(("cloudpickle",), {}))) for _ in range(4)
        ]
        for one in threads:
            one.start()
        for one in threads:
            one.join()
        assert len({one.zygote_pid for one in reports}) == 1
        second = fresh.prepare(("cloudpickle",), {"JAX_A": "1"})
        third = fresh.prepare(("cloudpickle",), {"JAX_A": "2"})
        assert len(fresh._zygotes) == host_module.MAX_ZYGOTES
        assert fresh.prepare(("cloudpickle",), {"JAX_A": "1"}).zygote_pid == second.zygote_pid
        assert fresh.prepare(("cloudpickle",), {"JAX_A": "2"}).zygote_pid == third.zygote_pid
        assert fresh.prepare(("cloudpickle",), {}).zygote_pid != reports[0].zygote_pid
        assert second.agent_pid == os.getpid()


def test_free_ports_differ() -> None:
    assert len(set(free_ports(20))) == 20


def test_an_attempt_id_is_used_once(host: HostSupervisor) -> None:
    run = Run(host, helper, 1)
    with pytest.raises(ConfigurationError, match="launched here already"):
        host.launch(run.request, pickling.dumps((helper, (1,), {})))
    assert run.value() == 2
    with pytest.raises(HostProcessError, match="stopped before"):
        host.launch(run.request, pickling.dumps((helper, (1,), {})))


def test_poll_repeats_what_was_not_acknowledged_and_waits_for_a_launch(host: HostSupervisor) -> None:
    assert host.poll("unknown", 0, 0.05) == Poll()
    request = make_request()
    answers: list[Poll] = []
    waiting = threading.Thread(target=lambda: answers.append(host.poll(request.attempt_id, 0, 20.0)))
    waiting.start()
    host.launch(request, pickling.dumps((helper, (1,), {}), pickling.project_root_of(helper)))
    waiting.join()
    assert answers[0].events[0] == Phase("forked")
    again = host.poll(request.attempt_id, 0, 0.0)
    assert again.events[0] == Phase("forked")
    host.stop(request.attempt_id, 0)
    cursor, events = 0, []
    while not (events and isinstance(events[-1], Exited)):
        poll = host.poll(request.attempt_id, cursor, 5.0)
        cursor = poll.cursor
        events.extend(poll.events)
    assert host.poll(request.attempt_id, cursor, 5.0).events == ()
    host.forget(request.attempt_id)


def test_payload_and_result_as_arrays_of_bytes(host: HostSupervisor) -> None:
    """As the agent gets it from Ray's object store."""
    buffers = [numpy.frombuffer(one, dtype=numpy.uint8) for one in pickling.dumps((len, ("abc",), {}))]
    request = make_request(preload=PRELOAD)
    host.launch(request, buffers)
    host.poll(request.attempt_id, 0, 5.0)
    while not host._attempts[request.attempt_id].returned:
        time.sleep(0.01)
    views = [numpy.frombuffer(one, dtype=numpy.uint8) for one in payload.parse(host.result(request.attempt_id))]
    host.finish(request.attempt_id)
    host.forget(request.attempt_id)
    assert pickling.loads(views) == 3  # the views outlive the attempt


def test_a_donated_step_and_a_value_that_is_computed_for_long_disturb_nothing(host: HostSupervisor) -> None:
    """The function hears of a drain at once, whatever it has reported, and every step arrives."""

    def fn() -> bool:
        import threading

        import jax
        import jax.numpy as jnp

        gate = threading.Event()

        class Slow:
            """A device computes it."""

            def __float__(self) -> float:
                assert gate.wait(60)
                return 0.5

        class Broken:
            def __float__(self) -> float:
                raise SystemExit(3)

        advance = jax.jit(lambda n: n + 1, donate_argnums=0)
        runtime.report(step=1)
        step, norm = jnp.int32(7), jnp.float32(7.0)
        runtime.report(step=step, norm=norm, loss=Slow(), broken=Broken())
        step, norm = advance(step), advance(norm)
        time.sleep(2 * REPORT_INTERVAL_SECONDS)  # by now it has been sent, or has ended the thread that sends
        print("reported", flush=True)
        while not runtime.current().draining:
            time.sleep(0.02)
        runtime.report(step=step)
        gate.set()
        return True

    run = Run(host, fn)
    run.until_line("reported")
    host.notify_drain(run.id, [0], 100.0)
    assert run.value() is True
    assert [one for one in run.lines("stderr") if "Traceback" in one] == []
    reports = [one for one in run.events if isinstance(one, Progress)]
    assert [one.step for one in reports if one.metrics] == [7]
    assert reports[-1].highest_step == 8
