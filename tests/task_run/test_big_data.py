"""Arguments and results of gigabytes; no room for them; results that cannot travel. The next attempt works."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from prefect import flow
from prefect.cache_policies import NO_CACHE

from prefect_tpu import LocalFleet, TpuMultisliceRunner, runtime, task
from prefect_tpu.core.errors import HostProcessError
from tests.waiting import eventually

Runner = TpuMultisliceRunner[Any]
GIGABYTE = 1_000_000_000


def store_is_empty() -> bool:
    free = ray.available_resources().get("object_store_memory", 0)
    return bool(free >= 0.999 * ray.cluster_resources()["object_store_memory"])


@pytest.mark.slow
def test_a_gigabyte_to_every_host_and_one_back_from_each(one_slice: Runner) -> None:
    """Every byte arrives, can be written to at both ends, and nothing stays in the object store."""

    @task(task_runner=one_slice, cache_policy=NO_CACHE)
    def double(big: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        big += runtime.current().process_id
        return big

    @flow
    def there_and_back() -> None:
        sent = np.arange(GIGABYTE // 8)
        results = double(sent)
        assert sent[-1] == GIGABYTE // 8 - 1
        for process_id, got in enumerate(results):
            assert np.array_equal(got, sent + process_id)
            got[0] = 7

    there_and_back()
    eventually(store_is_empty, "an empty object store")


@pytest.mark.slow
def test_a_result_of_three_gigabytes(fleet: LocalFleet) -> None:
    """Bigger than the object store of a host, and than what one read or write of the kernel moves."""
    runner: Runner = TpuMultisliceRunner(pool=fleet, jax_distributed=False, returns="process0")

    @task(task_runner=runner, cache_policy=NO_CACHE)
    def make() -> np.ndarray[Any, Any]:
        return np.arange(3 * GIGABYTE // 8 if runtime.current().process_id == 0 else 1)

    @flow
    def fetch() -> None:
        got = make()
        assert got.nbytes == 3 * GIGABYTE
        assert got[-1] == got.size - 1
        assert int(got[:: got.size // 1000].sum()) == sum(range(0, got.size, got.size // 1000))

    fetch()
    eventually(store_is_empty, "an empty object store")


def test_a_result_that_does_not_pickle_spoils_nothing(one_slice: Runner) -> None:
    """Said clearly, not retried; the same task with another argument runs on the same hosts."""

    @task(task_runner=one_slice, retries=3)
    def give(bad: bool) -> Any:
        return threading.Lock() if bad else "fine"

    @flow
    def twice() -> Any:
        state = give(True, return_state=True)
        assert state.is_failed()
        with pytest.raises(HostProcessError, match=r"the result cannot be pickled: .*lock"):
            state.result()
        return give(False)

    assert twice() == ["fine", "fine"]


@pytest.fixture
def small_device(tmp_path: Path) -> Iterator[Path]:
    """A device of its own in memory, much smaller than this machine's."""
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=300m", "prefect-tpu-test", str(tmp_path)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"may not mount a small device here: {mounted.stderr}")
    yield tmp_path
    subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)


def fill(device: Path) -> Path:
    filler = device / "somebody-elses"
    with filler.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
        while True:
            file.write(bytes(1_000_000))
    return filler


@pytest.mark.slow
def test_no_room_in_shared_memory(small_device: Path) -> None:
    """Without the check before, the kernel would end raylet or driver; with it, it is an error, and then works."""
    pool = LocalFleet(slices=1, object_store_bytes_per_host=90_000_000, object_store_directory=str(small_device))
    runner: Runner = TpuMultisliceRunner(pool=pool, jax_distributed=False, resumable=False)

    @task(task_runner=runner)
    def echo(small: int, big: np.ndarray[Any, Any] | None) -> Any:
        return np.ones(small // 8) if big is None else float(big[-1])

    @flow
    def fail_and_mend() -> None:
        assert len(echo(8, None)) == 2
        filler = fill(small_device)
        expected = (
            rf"no room for arguments of 0\.08 GB in the shared memory of host .*: {small_device} has 0\.00 GB free"
        )
        with pytest.raises(HostProcessError, match=expected):
            echo(8, np.ones(10_000_000))
        with pytest.raises(HostProcessError, match=r"no room for results? of 0\.(08|16) GB.*df "):
            echo(80_000_000, None)
        assert len(echo(8, None)) == 2
        filler.unlink()
        assert echo(8, np.ones(10_000_000)) == [1.0, 1.0]
        assert [one.nbytes for one in echo(80_000_000, None)] == [80_000_000] * 2

    with pool:
        fail_and_mend()
