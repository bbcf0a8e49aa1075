"""What a host process finds: flags, one hash seed, no Ray; and messages of every size that damage nothing."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from prefect_tpu.core.messages import Progress, Raised
from prefect_tpu.host.supervisor import HostSupervisor
from tests.host.host_support import CPU_JAX, Run, supervisor

pytestmark = pytest.mark.timeout(120)
BARE = ("cloudpickle",)


@pytest.fixture(scope="module")
def host() -> Iterator[HostSupervisor]:
    with supervisor() as one:
        yield one


def test_flags_of_the_host_stay_and_the_users_come_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """A flag of the user's own takes no device away."""
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=3")
    monkeypatch.setenv("LIBTPU_INIT_ARGS", "--of_the_host=1")

    def fn() -> tuple[int, str, str]:
        import os

        import jax

        return jax.local_device_count(), os.environ["XLA_FLAGS"], os.environ["LIBTPU_INIT_ARGS"]

    flags = {"XLA_FLAGS": "--xla_cpu_enable_fast_math=false", "LIBTPU_INIT_ARGS": "--mine=2"}
    with supervisor() as fresh:
        devices, xla, libtpu = Run(fresh, fn, user_env={"JAX_PLATFORMS": "cpu", "NPROC": "8"} | flags).value()
    assert devices == 3
    assert xla == "--xla_force_host_platform_device_count=3 --xla_cpu_enable_fast_math=false"
    assert libtpu == "--of_the_host=1 --mine=2"


def order() -> tuple[int, list[str]]:
    return hash("layer"), list({"w", "b", "scale", "bias", "kernel"})


def test_all_hosts_have_one_hash_seed(host: HostSupervisor) -> None:
    """The user's value wins."""
    first = Run(host, order, preload=BARE).value()
    with supervisor() as another:
        assert Run(another, order, preload=BARE).value() == first
        other = Run(another, order, preload=BARE, user_env={"PYTHONHASHSEED": "7"}).value()
    assert other[0] != first[0]


def test_modules_of_the_users_pythonpath_are_found(host: HostSupervisor, tmp_path: Path) -> None:
    (tmp_path / "only_there.py").write_text("WORD = 'there'")

    def fn() -> str:
        import only_there  # type: ignore[import-not-found]

        return str(only_there.WORD)

    assert Run(host, fn, preload=BARE, user_env={"PYTHONPATH": str(tmp_path)}).value() == "there"


def test_no_ray_is_started_by_what_is_no_ray_task(host: HostSupervisor) -> None:
    """Each way to start one by accident is refused, with what to do; nothing of Ray runs afterwards."""

    def fn() -> list[str]:
        import ray

        told = []
        for way in (lambda: ray.put(1), ray.remote(lambda: 1).remote, ray.init, lambda: ray.wait([])):
            try:
                told.append(repr(way()))
            except Exception as error:  # noqa: BLE001 - whatever it is, it is told
                told.append(f"{type(error).__name__}: {error}")
        return [*told, str(ray.is_initialized())]

    *told, initialized = Run(host, fn, preload=BARE).value()
    assert initialized == "False"
    for one in told:
        assert one.startswith("ConfigurationError: ")
        for part in ("no Ray task", "return the value", "RAY_RUNTIME_ENV_HOOK"):
            assert part in one


def count_devices() -> int:
    import jax

    return jax.local_device_count()


@pytest.mark.parametrize(("chips", "told"), [(4, True), (2, False), (0, False)])
@pytest.mark.parametrize("preload", [("jax", "numpy", "cloudpickle"), BARE])
def test_fewer_devices_than_chips_are_told(
    host: HostSupervisor, chips: int, told: bool, preload: tuple[str, ...]
) -> None:
    """As a warning in the run's logs, however late JAX is imported."""
    run = Run(host, count_devices, chips=chips, preload=preload)
    assert run.value() == 2
    warnings = [one.message for one in run.records() if one.level == logging.WARNING]
    assert len(warnings) == int(told)
    for part in ("2 devices (cpu)", "4 chips", "XLA_FLAGS") if told else ():
        assert part in warnings[0]


def test_big_reports_of_a_thread_that_goes_on_do_not_damage_the_result(host: HostSupervisor) -> None:
    """Neither while it is written nor while it is fetched."""

    def fn() -> bytes:
        import threading

        from prefect_tpu import runtime
        from prefect_tpu.runtime import reporter

        reporter.REPORT_INTERVAL_SECONDS = 0.0
        many = {f"{index:0190}": 1.0 for index in range(1_000)}

        def go_on() -> None:
            while True:
                runtime.report(**many)

        runtime.report(step=1, **many)
        threading.Thread(target=go_on, daemon=True).start()
        return b"result" * 1_000_000

    run = Run(host, fn, preload=BARE)
    assert run.value() == b"result" * 1_000_000
    assert any(len(one.metrics) == 1_000 for one in run.events if isinstance(one, Progress))


def test_a_report_of_too_many_metrics_is_refused(host: HostSupervisor) -> None:
    def fn() -> None:
        from prefect_tpu import runtime

        runtime.report(step=1, **{f"m{index}": 1.0 for index in range(20_000)})

    run = Run(host, fn, preload=BARE)
    raised = run.until_type(Raised)
    assert "20,000 metrics" in raised.message
    assert "1,000" in raised.message
    run.exited()


def test_a_process_that_does_not_read_blocks_nobody(host: HostSupervisor) -> None:
    """It hears the newest of each kind when it goes on."""

    def fn() -> float:
        import time

        from prefect_tpu import runtime

        while runtime.current().draining_slices != (1_999,):
            time.sleep(0.01)
        return 1.0

    run = Run(host, fn, preload=BARE)
    run.until(lambda event: getattr(event, "name", "") == "entered")
    os.kill(run.pid, signal.SIGSTOP)

    def tell() -> None:
        for number in range(2_000):
            host.notify_drain(run.id, [number], None)

    telling = threading.Thread(target=tell, daemon=True)
    telling.start()
    telling.join(20)
    blocked = telling.is_alive()
    os.kill(run.pid, signal.SIGCONT)
    assert not blocked
    assert run.value() == 1.0


def test_a_preload_of_any_length_arrives() -> None:
    """More than fits into one message."""
    long: Any = ("json",) * 20_000
    with supervisor() as fresh:
        assert fresh.prepare(long, CPU_JAX).zygote_pid > 0
