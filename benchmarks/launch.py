"""How long until a function runs on every host of two slices: prefect_tpu beside Ray tasks, JaxTrainer and eFormer.

Run it: `python benchmarks/launch.py`. README.md beside it says what each number is.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import importlib.util
import json as json_format
import math
import os
import platform
import signal
import sys
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter
from eformer_setup import ENVIRONMENT, accelerator_files, find_python
from launch_report import Row, beyond_thread_pool_seconds, plot, print_tables
from peer_process import SETTLE_SECONDS, SETTLE_VARIABLE, Peer, PeerError, run
from rich.console import Console

from prefect_tpu.linux import processes

CASES_OF = {
    "prefect_tpu": ("first", "warm", "noop"),
    "ray_tasks": ("first", "warm"),
    "jax_trainer": ("first", "warm"),
    "eformer": ("first", "warm"),
    "thread_pool": ("noop",),
}
SAME_PROCESS = {"prefect_tpu", "thread_pool"}
"""Measured by turns in one process, against one Prefect server."""
ALL_CASES = ("first", "warm", "noop")
LIMITS_SECONDS = {"prefect_tpu": 600.0, "ray_tasks": 900.0, "jax_trainer": 1500.0, "eformer": 1500.0}
"""For one cluster of a system, with its start; more only where --repeats asks for many runs."""
LIMIT_PER_CALL_SECONDS = 120.0
PACKAGES = ("prefect-tpu", "prefect", "ray", "jax", "jaxlib", "numpy")
SIGTERM_EXIT_CODE = 143

app = App(help=__doc__, suppress_keyboard_interrupt=False)


@dataclass(slots=True)
class Findings:
    """Everything that was heard."""

    rows: list[Row]
    memory: list[dict[str, Any]] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)

    def row(self, case: str, system: str) -> Row | None:
        """The row, if it was asked for."""
        return next((row for row in self.rows if (row.case, row.system) == (case, system)), None)

    def hear(self, message: dict[str, Any], cases: Iterable[str]) -> None:
        """Take in a message of a peer, as far as it is about these cases."""
        if "say" in message:
            tell(f"  {message['say']}")
        elif "versions" in message:
            self.versions |= message["versions"]
        elif "memory" in message:
            self.memory = message["memory"]
        elif message["case"] in cases and (row := self.row(message["case"], message["system"])) is not None:
            row.seconds.append(message["seconds"])
            row.phases += [message["phases"]] if message["phases"] else []
            tell(f"  {row.system} {row.case} {len(row.seconds)}: {message['seconds']:.3f} s")


def tell(text: str) -> None:
    """Progress goes to stderr; the tables are all that stdout gets."""
    print(text, file=sys.stderr, flush=True)


@app.default
def launch(
    *,
    repeats: int = 5,
    first_repeats: int = 2,
    noop_repeats: int = 20,
    systems: str = ",".join(CASES_OF),
    cases: str = ",".join(ALL_CASES),
    settle_seconds: float = SETTLE_SECONDS,
    json: Path | None = None,
    plot_path: Annotated[Path | None, Parameter(name="--plot")] = None,
    eformer_python: Path | None = None,
) -> int:
    """Measure, print the tables, write the plot.

    Args:
        repeats: runs of the case "warm" for each system.
        first_repeats: runs of the case "first": each needs a new cluster, half a minute or more.
        noop_repeats: runs of the case "noop".
        systems: which, with commas between them.
        cases: which, with commas between them.
        settle_seconds: from a cluster that is up, or mended, to the first call.
        json: file for the results.
        plot_path: file for the plot; by default launch.png beside the JSON file, else in the current directory.
        eformer_python: a Python that has eFormer; by default one is installed into the user's cache directory.
    """
    chosen, wanted = choose("systems", systems, CASES_OF), choose("cases", cases, ALL_CASES)
    if min(repeats, first_repeats, noop_repeats) < 1:
        sys.exit("--repeats, --first-repeats and --noop-repeats must be at least 1")
    if not 0 <= settle_seconds < math.inf:
        sys.exit("--settle-seconds must be a number of seconds, 0 or more")
    os.environ[SETTLE_VARIABLE] = str(settle_seconds)
    if importlib.util.find_spec("matplotlib") is None:
        sys.exit("the plot needs matplotlib: pip install -e '.[benchmarks]'")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(SIGTERM_EXIT_CODE))
    processes.adopt_orphans()
    rows = [Row(case, system) for case in ALL_CASES for system in CASES_OF if case in CASES_OF[system]]
    findings = Findings([row for row in rows if row.case in wanted and row.system in chosen])
    findings.versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    findings.versions["python"] = platform.python_version()
    machine = describe_machine()
    counts = {"first": first_repeats, "warm": repeats, "noop": noop_repeats}
    measured = dict.fromkeys("prefect_tpu" if one == "thread_pool" else one for one in chosen)
    rows_of = {
        system: [row for row in findings.rows if row.system == system or {row.system, system} <= SAME_PROCESS]
        for system in measured
    }
    for number in range(first_repeats if "first" in wanted else 1):
        for system, asked in rows_of.items():  # by turns: the machine may be slower a few minutes later
            _measure(system, asked, number, counts, findings, eformer_python)
    for row in findings.rows:
        if not row.seconds and not row.skipped:
            row.skipped = "its script ended without a run of this case"
    console = Console()
    print_tables("Launch: two slices of two hosts, four JAX devices each", findings.rows, findings.memory, console)
    if json is not None:
        json.write_text(json_format.dumps(as_results(findings, machine), indent=1) + "\n")
        tell(f"results: {json}")
    if any(row.seconds for row in findings.rows):
        plot_path = plot_path or (json.parent if json else Path()) / "launch.png"
        plot(findings.rows, plot_path, f"{machine['cpus']} CPUs, {machine['date']}")
        tell(f"plot: {plot_path}")
    return 1 if any(row.skipped for row in findings.rows if {row.system} <= SAME_PROCESS) else 0


def _measure(
    system: str,
    rows: list[Row],
    number: int,
    counts: dict[str, int],
    findings: Findings,
    eformer_python: Path | None,
) -> None:
    """One cluster of one system: the first for every case, each later one for another first call."""
    inside = {row.case for row in rows if not row.skipped}
    if number:
        inside &= {"first"}
    if not inside:
        return
    tell(f"{system}: cluster {number + 1}")
    calls = ("first" in inside or "warm" in inside) + (counts["warm"] if "warm" in inside else 0)
    noops = counts["noop"] if "noop" in inside else 0
    try:
        _run(system, calls, noops, lambda message: findings.hear(message, inside), eformer_python)
    except PeerError as error:
        tell(f"{system}: {error}")
        for row in rows:
            row.skipped = row.skipped or str(error)


def _run(
    system: str, calls: int, noops: int, hear: Callable[[dict[str, Any]], None], eformer_python: Path | None
) -> None:
    limit = max(LIMITS_SECONDS[system], LIMIT_PER_CALL_SECONDS * calls)
    if system == "prefect_tpu":
        peer = Peer("gang.py", sys.executable, limit, (str(calls), str(noops)))
    elif system == "eformer":
        peer = Peer("eformer_noop.py", find_python(eformer_python), limit, (str(calls),), ENVIRONMENT)
    else:
        if system == "jax_trainer" and importlib.util.find_spec("pyarrow") is None:
            raise PeerError("it needs ray[train]: pip install -e '.[benchmarks]'")
        peer = Peer(f"{system}.py", sys.executable, limit, (str(calls),))
    with accelerator_files() if system == "eformer" else nullcontext():
        run(peer, hear)


def as_results(findings: Findings, machine: dict[str, Any]) -> dict[str, Any]:
    """What the JSON file has."""
    return {
        "machine": machine,
        "versions": findings.versions,
        "rows": [row.as_json(findings.rows) for row in findings.rows],
        "noop_beyond_thread_pool_seconds": beyond_thread_pool_seconds(findings.rows),
        "memory": findings.memory,
    }


def describe_machine() -> dict[str, Any]:
    """Where and when."""
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "system": platform.platform(),
        "cpus": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "load_average_before": os.getloadavg()[0],
    }


def choose(option: str, given: str, known: Iterable[str]) -> list[str]:
    """What was asked for, or the end of the program with what there is."""
    chosen = [one.strip() for one in given.split(",") if one.strip()]
    unknown = [one for one in chosen if one not in known]
    if unknown or not chosen:
        sys.exit(f"--{option} {given!r}: give one or more of {', '.join(known)}, with commas between them")
    return chosen


def main() -> int:
    """Entry point."""
    try:
        return int(app() or 0)
    except KeyboardInterrupt:
        tell("interrupted; nothing is left running")
        return 130


if __name__ == "__main__":
    sys.exit(main())
