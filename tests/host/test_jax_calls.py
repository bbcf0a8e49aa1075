"""What becomes of a function that starts JAX's distributed runtime itself, and of notices where JAX is alone."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest

from prefect_tpu import runtime
from prefect_tpu.core.errors import AlreadyInitializedError, ConfigurationError
from prefect_tpu.core.messages import Exited, Raised
from prefect_tpu.host.supervisor import HostSupervisor
from prefect_tpu.linux.ports import free_ports
from tests.host.host_support import PRELOAD, Run, jax_init, supervisor

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def host() -> Iterator[HostSupervisor]:
    with supervisor() as one:
        yield one


def script() -> tuple[bool, int, float]:
    """As every multi-host script begins and ends."""
    import jax
    import jax.numpy as jnp

    jax.distributed.initialize()
    there = jax.distributed.is_initialized()
    total = float(jax.jit(jnp.sum)(jnp.ones(4)))
    jax.distributed.shutdown()
    jax.distributed.initialize()
    return there, jax.process_count(), total


@pytest.mark.parametrize("preload", [PRELOAD, ("cloudpickle",)], ids=["preloaded", "imported late"])
def test_a_multi_host_script_runs_on_one_host(host: HostSupervisor, preload: tuple[str, ...]) -> None:
    """Whose JAX has no runtime until the script asks for it."""
    run = Run(host, script, preload=preload)
    assert run.value() == (True, 1, 4.0)
    assert run.events[-1] == Exited(0, None)
    assert run.lines("stderr") == []


def by_name() -> bool:
    """With the names imported before; also after JAX has its devices, where JAX itself would refuse it."""
    import jax
    from jax.distributed import initialize, is_initialized

    assert jax.devices()
    initialize()
    return is_initialized()


def test_the_names_may_be_imported(host: HostSupervisor) -> None:
    assert Run(host, by_name).value() is True


def test_a_runtime_that_the_function_describes_is_refused(host: HostSupervisor) -> None:
    """While that of the gang is up. As something that no repetition mends, with the way out and the line."""

    def fn() -> None:
        import jax

        jax.distributed.initialize("10.0.0.1:1234", num_processes=4, process_id=0)

    (port,) = free_ports(1)
    run = Run(host, fn, jax=jax_init(host, 0, 1, port))
    raised: Raised = run.until_type(Raised)
    assert raised.stage == "program"
    assert "coordinator_address=..., num_processes=..., process_id=..." in raised.message
    for way_out in ("Take the call out", "without arguments", "jax_distributed=False"):
        assert way_out in raised.message
    assert 'jax.distributed.initialize("10.0.0.1:1234"' in raised.traceback
    host.stop(run.id, 0)
    run.exited()


def test_who_expects_the_refusal_goes_on(host: HostSupervisor) -> None:
    """JAX raises a RuntimeError for a second call, and scripts catch that."""

    def fn() -> bool:
        import jax

        try:
            jax.distributed.initialize("10.0.0.1:1234", 4, 0)
        except RuntimeError:
            return True
        return False

    (port,) = free_ports(1)
    assert Run(host, fn, jax=jax_init(host, 0, 1, port)).value() is True
    assert issubclass(AlreadyInitializedError, ConfigurationError)


def test_a_runtime_of_the_functions_own(host: HostSupervisor) -> None:
    """With jax_distributed=False it is JAX's own affair, start, errors and end."""

    def fn(port: int) -> Any:
        import jax

        failed = ""
        try:
            jax.distributed.initialize(cluster_detection_method="deactivate")
        except ValueError as error:
            failed = str(error)
        jax.distributed.initialize(f"127.0.0.1:{port}", 1, 0, cluster_detection_method="deactivate")
        there = jax.distributed.is_initialized()
        jax.distributed.shutdown()
        return failed, there, jax.distributed.is_initialized()

    (port,) = free_ports(1)
    run = Run(host, fn, port, context={"num_processes": 2, "num_slices": 2})
    assert run.value() == ("coordinator_address should be defined.", True, False)


@pytest.mark.parametrize("preload", [PRELOAD, ("cloudpickle",)], ids=["preloaded", "imported late"])
def test_the_sync_point_of_one_host(host: HostSupervisor, preload: tuple[str, ...]) -> None:
    """It is reached once, at a step after the notice, although JAX has its devices and no runtime."""

    def fn() -> tuple[bool, list[int], int, float]:
        print("works", flush=True)
        while not runtime.current().draining:
            time.sleep(0.02)
        import jax.numpy as jnp
        from jax.experimental import multihost_utils

        before = float(jnp.ones(2).sum())
        reached: list[int] = []
        step = 0
        while step < 500 and (not reached or step < reached[0] + 3):
            step += 1
            if multihost_utils.reached_preemption_sync_point(step):
                reached.append(step)
            time.sleep(0.02)
        import jax

        return runtime.current().draining, reached, jax.process_count(), before + float(jnp.ones(2).sum())

    run = Run(host, fn, preload=preload)
    run.until_line("works")
    host.notify_drain(run.id, [0], 100.0, tell_jax=True)
    draining, reached, processes, total = run.value()
    assert draining
    assert len(reached) == 1
    assert (processes, total) == (1, 4.0)
    exited = run.events[-1]
    assert isinstance(exited, Exited)
    assert exited.exit_code == 0


def test_a_cancel_after_a_notice_is_seen(host: HostSupervisor) -> None:
    """Although JAX takes SIGTERM from then on."""

    def fn() -> None:
        import jax

        try:
            print("works", flush=True)
            while not jax.distributed.is_initialized():
                time.sleep(0.02)
            print("told", flush=True)
            time.sleep(600)
        finally:
            print("cleaned up")

    run = Run(host, fn)
    run.until_line("works")
    host.notify_drain(run.id, [0], 100.0, tell_jax=True)
    run.until_line("told")
    host.stop(run.id, 20.0)
    assert run.exited().exit_code == 128 + signal.SIGTERM
    assert run.lines("stdout")[-1] == "cleaned up"


def test_a_handler_of_the_functions_own_stays(host: HostSupervisor) -> None:
    """Of SIGTERM: JAX's would take its place."""

    def fn() -> tuple[bool, list[int]]:
        import signal

        import jax

        heard: list[int] = []
        signal.signal(signal.SIGTERM, lambda number, _: heard.append(number))
        print("works", flush=True)
        while not runtime.current().draining:
            time.sleep(0.02)
        time.sleep(0.5)
        signal.raise_signal(signal.SIGTERM)
        return jax.distributed.is_initialized(), heard

    run = Run(host, fn)
    run.until_line("works")
    host.notify_drain(run.id, [0], 100.0, tell_jax=True)
    assert run.value() == (False, [signal.SIGTERM])
