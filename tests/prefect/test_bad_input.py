"""Bad input ends in a clear error before anything is reserved or started."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from prefect_tpu import (
    ConfigurationError,
    HostProcessError,
    LocalFleet,
    RayFleet,
    SliceUnavailableError,
    TopologyError,
    TpuMultisliceRunner,
    task,
)

Runner = TpuMultisliceRunner[Any]


def answer() -> int:
    return 42


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"num_slices": 0}, "num_slices=0"),
        ({"num_slices": -1}, "num_slices=-1"),
        ({"num_slices": "2"}, "num_slices='2'"),
        ({"num_slices": True}, "num_slices=True"),
        ({"num_slices": []}, "several of them such as [2, 4, 8]"),
        ({"num_slices": [2, 0]}, "num_slices=[2, 0]"),
        ({"resize_after_seconds": -1}, "resize_after_seconds=-1"),
        ({"returns": "first"}, '"all" or "process0"'),
        ({"pool": 3}, "a fleet"),
        ({"env": {"A": 1}}, "strings to strings"),
        ({"jax_distributed": "yes"}, "jax_distributed='yes'"),
        ({"lease_timeout_seconds": -1}, "lease_timeout_seconds=-1"),
        ({"topology": 4}, "topology=4"),
        ({"preload": "jax"}, "preload='jax'"),
        ({"env": ["A=1"]}, "env=['A=1']"),
        ({"max_workers": "x"}, "max_workers='x'"),
    ],
)
def test_wrong_arguments_are_named_at_once(options: dict[str, Any], says: str) -> None:
    """The argument, its value and what is allowed, when the runner is made."""
    with pytest.raises(ConfigurationError, match="TpuMultisliceRunner") as caught:
        TpuMultisliceRunner(**options)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"accelerator_type": "v9"}, "v6e"),
        ({"topology": "3x3x3"}, "2x2x2"),
        ({"chips_per_host": 3}, "do not divide"),
    ],
)
def test_unknown_shapes_list_the_valid_ones(fleet: LocalFleet, options: dict[str, Any], says: str) -> None:
    """From Ray's own table, when the gang would start."""
    runner: Runner = TpuMultisliceRunner(pool=fleet, **options)
    with pytest.raises(TopologyError, match=says):
        task(task_runner=runner)(answer)()


def test_ray_out_of_reach(fleet: LocalFleet) -> None:
    """The address, and what to do."""
    with pytest.raises(ConfigurationError, match=r"127\.0\.0\.1:9"):
        task(task_runner=TpuMultisliceRunner(pool=RayFleet("127.0.0.1:9")))(answer)()


def test_not_a_runner() -> None:
    """task_runner= takes a TpuMultisliceRunner, and says where others go."""
    with pytest.raises(ConfigurationError, match="@flow"):
        task(task_runner=3)(answer)  # type: ignore[call-overload]


def test_a_function_that_does_not_pickle_names_the_object(one_slice: Runner) -> None:
    """The closure's variable, before anything is reserved."""
    lock = threading.Lock()

    @task(task_runner=one_slice, retries=3)
    def holds_lock() -> bool:
        return lock.locked()

    with pytest.raises(ConfigurationError, match="lock"):
        holds_lock()


def test_a_parameter_that_does_not_pickle_is_named(one_slice: Runner) -> None:
    """By the parameter's position or name, and its type."""

    @task(task_runner=one_slice)
    def takes(anything: Any) -> None:
        return None

    with pytest.raises(ConfigurationError, match=r"lock"):
        takes(threading.Lock())


def test_a_result_that_does_not_pickle_names_host_and_type(one_slice: Runner) -> None:
    """A clear error, never a hang, and the next call works."""

    @task(task_runner=one_slice, retries=2)
    def returns_lock() -> Any:
        import threading

        return {"deep": [threading.Lock()]}

    with pytest.raises(HostProcessError, match=r"slice 0 host 0.*lock"):
        returns_lock()
    assert task(task_runner=one_slice)(answer)() == [42, 42]


def test_an_exception_that_does_not_pickle_names_host_and_type(one_slice: Runner) -> None:
    """Its type, message and traceback are shown although it cannot travel."""

    @task(task_runner=one_slice)
    def raises_lock() -> None:
        import threading

        class LockedError(Exception):
            def __init__(self) -> None:
                super().__init__("holds a lock")
                self.lock = threading.Lock()

        raise LockedError

    with pytest.raises(HostProcessError, match=r"slice 0 host \d raised .*LockedError: holds a lock"):
        raises_lock()


def test_a_preload_that_fails_is_fatal(fleet: LocalFleet) -> None:
    """It names the module, and no retry is spent on it."""
    runner: Runner = TpuMultisliceRunner(pool=fleet, preload=("no_such_module",))
    attempts: list[int] = []

    @task(task_runner=runner, retries=5, on_running=[lambda *_: attempts.append(1)])
    def never() -> None:
        return None

    with pytest.raises(ConfigurationError, match="no_such_module"):
        never()
    assert len(attempts) == 1


def test_too_few_slices_says_what_there_is(fleet: LocalFleet) -> None:
    """What was asked, what the fleet has, and what to do; nothing stays reserved."""
    runner: Runner = TpuMultisliceRunner(pool=fleet, num_slices=3, lease_timeout_seconds=1)
    with pytest.raises(SliceUnavailableError) as caught:
        task(task_runner=runner)(answer)()
    text = str(caught.value)
    for wanted in ("3 free v4 2x2x2", "slice-0 (v4 2x2x2, 2 of 2 hosts, 8 chips): free", "lease_timeout_seconds"):
        assert wanted in text
    both: Runner = TpuMultisliceRunner(pool=fleet, num_slices=2, jax_distributed=False, lease_timeout_seconds=10)
    assert task(task_runner=both)(answer)() == [42] * 4


def test_background_task_runs_are_refused(one_slice: Runner) -> None:
    """delay, serve, deferred map, and an engine that was not started by us: never a body without a gang."""
    from prefect.task_engine import run_task_sync

    ran: list[int] = []
    gang: Any = task(task_runner=one_slice)(lambda: ran.append(1))
    for start in (gang.delay, gang.apply_async, gang.serve, lambda: gang.map([], deferred=True)):
        with pytest.raises(ConfigurationError, match="background task runs"):
            start()
    with pytest.raises(ConfigurationError, match=r"\.submit\(\)"):
        run_task_sync(gang)
    assert not ran


def test_a_result_that_does_not_unpickle_here_names_the_host(one_slice: Runner) -> None:
    """Its class breaks when it is rebuilt: FATAL, not retried, and the next gang runs."""
    attempts: list[int] = []

    @task(task_runner=one_slice, retries=3, on_running=[lambda *_: attempts.append(1)])
    def returns_broken() -> Any:
        return Broken()

    with pytest.raises(HostProcessError, match=r"slice 0 host 0.*cannot be rebuilt in the driver"):
        returns_broken()
    assert len(attempts) == 1
    assert task(task_runner=one_slice)(answer)() == [42, 42]


class Broken:
    """Pickles anywhere, unpickles nowhere."""

    def __reduce__(self) -> Any:
        return _broken, ()


def _broken() -> None:
    raise RuntimeError("not today")
