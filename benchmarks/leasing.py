"""How long it takes to lease N slices, and to give them back: its growth with N is what matters.

Run it: `python benchmarks/leasing.py`. README.md beside it says what each number is.
"""

from __future__ import annotations

import json as json_format
import statistics
import sys
import time
from pathlib import Path

from cyclopts import App
from launch import describe_machine, tell
from rich.console import Console
from rich.table import Table

from prefect_tpu import LocalFleet
from prefect_tpu.cluster import inventory
from prefect_tpu.leases.queue import LeaseQueue

TOPOLOGY = "2x2x1"
"""One host each: a simulated host is a whole Ray node, and costs some 200 MB and a second of CPU."""
FREE_SECONDS = 60.0
LEASE_SECONDS = 120.0

app = App(help=__doc__)


@app.default
def leasing(*, sizes: str = "1,4,16,32", repeats: int = 5, json: Path | None = None) -> int:
    """Measure, print the table.

    Args:
        sizes: numbers of slices, with commas between them.
        repeats: leases of each size, by turns.
        json: file for the results.
    """
    wanted = sorted({int(one) for one in sizes.split(",")})
    if wanted[0] < 1 or repeats < 1:
        sys.exit("--sizes and --repeats must be at least 1")
    machine = describe_machine()
    fleet = LocalFleet(slices=wanted[-1], topology=TOPOLOGY, start_timeout_seconds=600)
    seconds: dict[int, list[float]] = {size: [] for size in wanted}
    tell(f"starting {wanted[-1]} simulated slices")
    with fleet:
        shape, queue = fleet.shape, LeaseQueue()
        for number in range(repeats):
            for size in wanted:
                _wait_until_free(fleet, wanted[-1])
                began = time.perf_counter()
                lease = queue.acquire(
                    shape,
                    size,
                    timeout_seconds=LEASE_SECONDS,
                    fleet=fleet.describe(),
                    cancelled=lambda: False,
                    say=tell,
                    say_interval_seconds=LEASE_SECONDS,
                )
                seconds[size].append(time.perf_counter() - began)
                lease.release()
            tell(f"round {number + 1} of {repeats}")
    table = Table("slices", "median s", "min .. max s", "x one slice", "x as many slices", title="Leasing slices")
    rows = []
    first = statistics.median(seconds[wanted[0]])
    for size in wanted:
        median = statistics.median(seconds[size])
        rows.append({"case": "lease", "slices": size, "seconds": seconds[size], "median_seconds": median})
        span = f"{min(seconds[size]):.3f} .. {max(seconds[size]):.3f}"
        table.add_row(str(size), f"{median:.3f}", span, f"{median / first:.2f}", f"{size / wanted[0]:g}")
    Console().print(table)
    if json is not None:
        json.write_text(json_format.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")
        tell(f"results: {json}")
    return 0


def _wait_until_free(fleet: LocalFleet, count: int) -> None:
    deadline = time.monotonic() + FREE_SECONDS
    while len(inventory.free_slices(fleet.shape)) < count:
        if time.monotonic() > deadline:
            sys.exit(f"not all {count} slices are free after {FREE_SECONDS:g} s")
        time.sleep(0.1)


if __name__ == "__main__":
    sys.exit(app() or 0)
