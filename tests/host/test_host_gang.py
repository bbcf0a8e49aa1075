"""Several host processes with JAX between them, each under a supervisor of its own."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from prefect_tpu.core.messages import Exited, Phase, Raised, Returned
from prefect_tpu.host.supervisor import HostSupervisor
from prefect_tpu.linux.ports import free_ports
from prefect_tpu.wire import payload, pickling
from tests.host.host_support import Run, jax_init, supervisor

pytestmark = pytest.mark.timeout(180)


@pytest.fixture(scope="module")
def hosts() -> Iterator[list[HostSupervisor]]:
    with supervisor() as first, supervisor() as second:
        yield [first, second]


def launch(hosts: list[HostSupervisor], fn: Callable[..., Any], *args: Any, can_grow: bool = False) -> list[Run]:
    """One process per supervisor: two slices of one host with two CPU devices each."""
    (port,) = free_ports(1)
    return [
        Run(
            host,
            fn,
            *args,
            context={
                "slice_index": index,
                "num_slices": 2,
                "process_id": index,
                "num_processes": 2,
                "can_grow": can_grow,
            },
            jax=jax_init(host, index, 2, port),
        )
        for index, host in enumerate(hosts)
    ]


def values(runs: list[Run]) -> list[Any]:
    for run in runs:
        ended = run.until_type(Returned, Raised, Exited)
        assert isinstance(ended, Returned), run.events
    results = [pickling.loads(payload.parse(run.host.result(run.id))) for run in runs]
    for run in runs:
        run.host.finish(run.id)
    for run in runs:
        run.exited()
    return results


def test_psum_over_both_and_a_clean_end_twice(hosts: list[HostSupervisor]) -> None:
    """Distinct values meet; JAX shuts down on both at once; nothing is left for the second attempt."""

    def fn() -> tuple[float, int, int]:
        import jax
        import jax.numpy as jnp
        from jax.sharding import NamedSharding, PartitionSpec

        from prefect_tpu import runtime

        mesh = runtime.mesh(("data",), (2,))
        local = jnp.arange(2.0) + 10 * jax.process_index()
        values = jax.make_array_from_process_local_data(
            NamedSharding(mesh, PartitionSpec("data")), jax.device_get(local)
        )
        total = jax.jit(jnp.sum, out_shardings=NamedSharding(mesh, PartitionSpec()))(values)
        return total, jax.process_index(), jax.device_count()

    for _ in range(2):
        runs = launch(hosts, fn)
        assert values(runs) == [(22.0, 0, 4), (22.0, 1, 4)]
        for run in runs:
            assert [one.name for one in run.events if isinstance(one, Phase)] == [
                "forked",
                "initialized",
                "entered",
                "ended",
            ]
            assert run.events[-1] == Exited(0, None, run.events[-1].last_stderr)  # type: ignore[union-attr]
            assert [line for line in run.lines("stderr") if "gloo" not in line.lower()] == []


def test_scripts_that_initialize_and_shut_down_jax_themselves(hosts: list[HostSupervisor]) -> None:
    """Without arguments both are done already, as often as they are called; a host that is early cuts off nobody."""

    def fn() -> tuple[bool, float, int]:
        import jax
        import jax.numpy as jnp
        from jax.experimental import multihost_utils

        jax.distributed.initialize()
        jax.distributed.initialize(initialization_timeout=600)
        if jax.process_index() == 0:
            jax.distributed.shutdown()
        total = multihost_utils.process_allgather(jnp.float32(jax.process_index() + 1)).sum()
        jax.distributed.shutdown()
        return jax.distributed.is_initialized(), float(total), jax.process_count()

    runs = launch(hosts, fn)
    assert values(runs) == [(True, 3.0, 2)] * 2
    for run in runs:
        (warning,) = run.records()
        assert "initialization_timeout of jax.distributed.initialize() have no effect" in warning.message


def points(folder: str, most: int) -> int:
    """Goes from resize point to resize point; what it has saved there is in the folder."""
    import pathlib
    import time as clock

    from prefect_tpu import runtime

    number = runtime.current().process_id
    for point in range(most):
        path = pathlib.Path(folder, f"saved-{number}")
        runtime.resize_point(lambda path=path, point=point: path.write_text(str(point)))
        clock.sleep(0.05 * (1 + number))
    return most


def test_all_hosts_leave_at_the_same_resize_point(hosts: list[HostSupervisor], tmp_path: Path) -> None:
    """However late each of them hears of more slices, and after all of them have saved."""
    runs = launch(hosts, points, str(tmp_path), 1_000, can_grow=True)
    for run in runs:
        run.until(lambda event: event == Phase("entered"))
    time.sleep(1)
    for run in reversed(runs):
        run.host.offer(run.id, True)
        time.sleep(0.3)
    assert [run.until_type(Raised).left for run in runs] == ["resize"] * 2
    first, second = (int((tmp_path / f"saved-{number}").read_text()) for number in range(2))
    assert first == second > 0
    for run in runs:
        run.host.stop(run.id, 0)
        run.exited()


@pytest.mark.parametrize("can_grow", [False, True])
def test_nobody_leaves_without_more_slices(hosts: list[HostSupervisor], tmp_path: Path, can_grow: bool) -> None:
    """No offer, one that was taken back, or a gang of a fixed size: a resize point does nothing."""
    runs = launch(hosts, points, str(tmp_path), 5, can_grow=can_grow)
    for run in runs:
        run.host.offer(run.id, True)
        run.host.offer(run.id, False)
    assert values(runs) == [5, 5]
    assert not list(tmp_path.iterdir())


def test_mesh_has_the_layout_of_real_slices(hosts: list[HostSupervisor]) -> None:
    """The same rule as jax's create_hybrid_device_mesh, which is told that each process is a slice."""

    def fn() -> list[bool]:
        import jax
        from jax.experimental import mesh_utils

        from prefect_tpu import runtime

        def real(ici: tuple[int, ...], dcn: tuple[int, ...]) -> object:
            return mesh_utils.create_hybrid_device_mesh(ici, dcn, jax.devices(), process_is_granule=True)

        cases = [((2,), (2,)), ((1, 2), (2, 1)), ((2, 1), (1, 2)), ((2, 1), (2, 1)), ((1, 2), (1, 2))]
        return [
            bool((runtime.mesh([f"a{i}" for i in range(len(ici))], ici, dcn).devices == real(ici, dcn)).all())
            for ici, dcn in cases
        ]

    assert values(launch(hosts, fn)) == [[True] * 5] * 2


def test_wrong_mesh_shapes_say_what_there_is(hosts: list[HostSupervisor]) -> None:
    def fn() -> list[str]:
        from prefect_tpu import runtime
        from prefect_tpu.core.errors import ConfigurationError

        told = []
        for names, ici, dcn in [(["a"], (4,), None), (["a"], (2,), (3,)), (["a", "b"], (2,), None), ("a", 2, None)]:
            try:
                runtime.mesh(names, ici, dcn)
            except ConfigurationError as error:
                told.append(str(error))
        return told

    first, second, third, fourth = values(launch(hosts, fn))[0]
    assert "ici_shape (4,) needs 4 devices per slice" in first
    assert "there are 2 devices per slice and 2 slices" in first
    assert "dcn_shape (3,) needs 3 slices" in second
    assert "must be of one length" in third
    assert fourth == "axis_names must be a tuple, one entry for each axis of the mesh, got 'a'"


def test_array_over_both_hosts_names_the_way_out(hosts: list[HostSupervisor]) -> None:
    def fn() -> object:
        import jax
        import numpy
        from jax.sharding import NamedSharding, PartitionSpec

        from prefect_tpu import runtime

        sharding = NamedSharding(runtime.mesh(("data",), (2,)), PartitionSpec("data"))
        return {"w": jax.make_array_from_callback((4,), sharding, lambda index: numpy.ones(1, "float32"))}

    runs = launch(hosts, fn)
    raised = [run.until_type(Raised, Exited) for run in runs]
    for run in runs:
        run.host.stop(run.id, 0)
        run.exited()
    told = [one for one in raised if isinstance(one, Raised) and one.stage == "result"]
    assert told
    assert "['w']" in told[0].message
    assert "process_allgather" in told[0].advice


def test_failing_process_does_not_wait_for_its_peers(hosts: list[HostSupervisor]) -> None:
    """JAX would wait at exit until all shut down. The other one may hang in its collective until it is stopped."""

    def fn() -> float:
        import jax
        import jax.numpy as jnp
        from jax.sharding import NamedSharding, PartitionSpec

        from prefect_tpu import runtime

        mesh = runtime.mesh(("data",), (2,))
        ones = jax.make_array_from_process_local_data(
            NamedSharding(mesh, PartitionSpec("data")), jax.device_get(jnp.ones(2))
        )
        total = jax.jit(jnp.sum, out_shardings=NamedSharding(mesh, PartitionSpec()))
        assert float(total(ones)) == 4.0
        if jax.process_index() == 1:
            raise KeyError("mine")
        return float(total(ones))

    peer, culprit = launch(hosts, fn)
    raised = culprit.until_type(Raised, Exited)
    assert isinstance(raised, Raised)
    assert raised.type_name == "KeyError"
    culprit.until(lambda event: event == Phase("ended"))
    culprit.host.finish(culprit.id)  # as the driver does; a peer's thread might have needed it until now
    started = time.monotonic()
    assert culprit.exited().exit_code == 1
    assert time.monotonic() - started < 5
    assert culprit.lines("stderr") == []
    peer.host.stop(peer.id, 0)
    assert peer.exited().signal in (signal.SIGKILL, signal.SIGABRT)


def test_result_survives_a_peer_that_dies_before_the_end(hosts: list[HostSupervisor]) -> None:
    """One is killed after both have returned: the other's shutdown does not wait for ever, and makes no noise."""

    def fn() -> int:
        return os.getpid()

    first, second = launch(hosts, fn)
    for run in (first, second):
        run.until_type(Returned)
    os.kill(second.pid, signal.SIGKILL)
    started = time.monotonic()
    first.host.finish(first.id)
    assert pickling.loads(payload.parse(first.host.result(first.id))) == first.pid
    first.exited()
    second.exited()
    assert time.monotonic() - started < 15
    assert [line for line in first.lines("stderr") if "gloo" not in line.lower()] == []


def test_stdout_of_both_is_kept_apart(hosts: list[HostSupervisor]) -> None:
    def fn() -> None:
        import jax

        print("process", jax.process_index(), file=sys.stderr)

    runs = launch(hosts, fn)
    values(runs)
    assert ["process 0" in run.lines("stderr") for run in runs] == [True, False]
