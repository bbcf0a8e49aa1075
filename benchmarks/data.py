"""How fast big arguments and results travel between the driver and the hosts, and what memory that takes.

Run it: `python benchmarks/data.py`. Beside gang tasks, the same array through plain Ray: `ray.put` and a task
that gets it on each host; a task on each host that returns one, and `ray.get`. README.md beside it says more.
"""

from __future__ import annotations

import json as json_format
import math
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import ray
from cyclopts import App
from prefect import flow
from prefect.cache_policies import NO_CACHE
from prefect.testing.utilities import prefect_test_harness
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from rich.console import Console
from rich.table import Table

import prefect_tpu
from prefect_tpu import LocalFleet, TpuMultisliceRunner

HOSTS = 2
STORE_BYTES_PER_ARRAY_BYTE = 1.6
SAMPLE_SECONDS = 0.02
SETTLE_SECONDS = 1.0
SERVER_START_SECONDS = 90

app = App(help=__doc__)


@dataclass(slots=True)
class Row:
    """One direction with one system.

    Attributes:
        case: "arguments" or "results".
        system: "prefect_tpu" or "ray".
        seconds: of each timed run.
        peaks: bytes of memory, in all and shared, of the whole machine beyond what was in use before the first
            call of all: Ray's object store keeps pages that it has touched, so a later call adds fewer.
    """

    case: str
    system: str
    seconds: list[float] = field(default_factory=list)
    peaks: list[dict[str, int]] = field(default_factory=list)


@ray.remote(num_cpus=0, max_retries=0)
def take(array: np.ndarray[Any, Any]) -> float:
    """On a host: the array is there."""
    return float(array[-1])


@ray.remote(num_cpus=0, max_retries=0)
def give(count: int) -> np.ndarray[Any, Any]:
    """On a host: an array for the driver."""
    return np.ones(count)


def take_in_gang(array: np.ndarray[Any, Any]) -> float:
    """As `take`."""
    return float(array[-1])


def give_in_gang(count: int) -> np.ndarray[Any, Any]:
    """As `give`."""
    return np.ones(count)


@app.default
def data(
    *, gigabytes: float = 1.0, repeats: int = 5, settle_seconds: float = SETTLE_SECONDS, json: Path | None = None
) -> None:
    """Measure and print the table.

    Args:
        gigabytes: size of the array, in 1e9 bytes; it goes to two hosts, or comes from each of two.
        repeats: timed runs of each case with each system, by turns, after one that does not count.
        settle_seconds: after each run, for memory to be given back.
        json: file for the results.
    """
    count = int(gigabytes * 1e9 / 8)
    if count < 1 or repeats < 1 or not 0 <= settle_seconds < math.inf:
        sys.exit("--gigabytes must be more than 0, --repeats at least 1, --settle-seconds 0 or more")
    fleet = LocalFleet(slices=1, object_store_bytes_per_host=max(10**8, int(count * 8 * STORE_BYTES_PER_ARRAY_BYTE)))
    rows = {key: Row(*key) for key in ((c, s) for c in ("arguments", "results") for s in ("prefect_tpu", "ray"))}
    with prefect_test_harness(server_startup_timeout=SERVER_START_SECONDS), fleet:
        _measure(fleet, rows, count, repeats, settle_seconds)
    _print(list(rows.values()), count * 8)
    if json is not None:
        json.write_text(
            json_format.dumps({"bytes": count * 8, "hosts": HOSTS, "rows": _results(rows)}, indent=1) + "\n"
        )


def _measure(
    fleet: LocalFleet, rows: dict[tuple[str, str], Row], count: int, repeats: int, settle_seconds: float
) -> None:
    runner: TpuMultisliceRunner[Any] = TpuMultisliceRunner(pool=fleet, jax_distributed=False)
    # Prefect hashes every argument for its cache key unless it is told not to cache.
    gang_take = prefect_tpu.task(task_runner=runner, cache_policy=NO_CACHE)(take_in_gang)
    gang_give = prefect_tpu.task(task_runner=runner, cache_policy=NO_CACHE)(give_in_gang)

    @flow
    def measure() -> None:
        array = np.ones(count)
        where = [
            NodeAffinitySchedulingStrategy(one["NodeID"], soft=False)
            for one in ray.nodes()
            if "TPU" in one["Resources"]
        ]
        assert len(where) == HOSTS

        def ray_arguments() -> None:
            reference = ray.put(array)
            ray.get([take.options(scheduling_strategy=one).remote(reference) for one in where])

        def ray_results() -> Any:
            return ray.get([give.options(scheduling_strategy=one).remote(count) for one in where])

        calls: dict[tuple[str, str], Callable[[], Any]] = {
            ("arguments", "prefect_tpu"): lambda: gang_take(array),
            ("arguments", "ray"): ray_arguments,
            ("results", "prefect_tpu"): lambda: gang_give(count),
            ("results", "ray"): ray_results,
        }
        before = _memory()
        for number in range(repeats + 1):
            for key, call in calls.items():
                with _watched(before) as peak:
                    begin = time.perf_counter()
                    result = call()
                    seconds = time.perf_counter() - begin
                del result
                time.sleep(settle_seconds)
                print(f"{' '.join(key)} {number}: {seconds:.2f} s", file=sys.stderr, flush=True)
                rows[key].peaks.append(peak)
                if number:
                    rows[key].seconds.append(seconds)

    measure()


@contextmanager
def _watched(before: dict[str, int]) -> Iterator[dict[str, int]]:
    """The most memory in use while it is open, beyond what was in use before."""
    stop = threading.Event()
    peak = {"used": 0, "shared": 0}

    def look() -> None:
        while not stop.wait(SAMPLE_SECONDS):
            now = _memory()
            for name in peak:
                peak[name] = max(peak[name], now[name] - before[name])

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        stop.set()
        thread.join()


def _memory() -> dict[str, int]:
    lines = (line.split() for line in Path("/proc/meminfo").read_text().splitlines())
    found = {name.rstrip(":"): int(value) * 1024 for name, value, *_ in lines}
    return {"used": found["MemTotal"] - found["MemAvailable"], "shared": found["Shmem"]}


def _results(rows: dict[tuple[str, str], Row]) -> list[dict[str, Any]]:
    return [
        {
            "case": row.case,
            "system": row.system,
            "seconds": row.seconds,
            "median_seconds": statistics.median(row.seconds),
            "speed_ratio_to_ray": statistics.median(rows[row.case, "ray"].seconds) / statistics.median(row.seconds),
            "peak_memory_bytes": row.peaks,
        }
        for row in rows.values()
    ]


def _print(rows: list[Row], size: int) -> None:
    table = Table(title=f"{size / 1e9:g} GB to each of {HOSTS} hosts (arguments), and from each (results)")
    table.add_column("case")
    table.add_column("system")
    for name in ("median s", "min .. max s", "GB/s", "speed / ray", "peak GB", "of it shared"):
        table.add_column(name, justify="right")
    for row in rows:
        median = statistics.median(row.seconds)
        peer = statistics.median(next(one for one in rows if (one.case, one.system) == (row.case, "ray")).seconds)
        table.add_row(
            row.case,
            row.system,
            f"{median:.2f}",
            f"{min(row.seconds):.2f} .. {max(row.seconds):.2f}",
            f"{HOSTS * size / median / 1e9:.2f}",
            f"{peer / median:.2f}",
            f"{max(peak['used'] for peak in row.peaks) / 1e9:.1f}",
            f"{max(peak['shared'] for peak in row.peaks) / 1e9:.1f}",
        )
    Console().print(table)


if __name__ == "__main__":
    app()
