"""How long until a function runs again after a loss: prefect_tpu beside Ray Train's JaxTrainer and eFormer.

Run it: `python benchmarks/recovery.py`. README.md beside it says what each number is.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json as json_format
import math
import os
import platform
import signal
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter
from eformer_setup import ENVIRONMENT, accelerator_files, find_python
from launch import PACKAGES, SIGTERM_EXIT_CODE, Findings, as_results, choose, describe_machine, tell
from launch_report import Row, plot, print_tables
from peer_process import SETTLE_SECONDS, SETTLE_VARIABLE, Peer, PeerError, run
from rich.console import Console

from prefect_tpu.linux import processes

CASES_OF = {
    "prefect_tpu": ("host_killed", "verdict", "user_error"),
    "jax_trainer": ("host_killed", "user_error"),
    "eformer": ("host_killed",),
}
ALL_CASES = ("host_killed", "verdict", "user_error")
START_LIMIT_SECONDS = 240.0
LIMIT_PER_LOSS_SECONDS = 240.0
"""Beyond the start of the cluster; then the system is ended, and its row says so."""

app = App(help=__doc__, suppress_keyboard_interrupt=False)


@app.default
def recovery(
    *,
    repeats: int = 3,
    systems: str = ",".join(CASES_OF),
    cases: str = ",".join(ALL_CASES),
    settle_seconds: float = SETTLE_SECONDS,
    json: Path | None = None,
    plot_path: Annotated[Path | None, Parameter(name="--plot")] = None,
    eformer_python: Path | None = None,
) -> int:
    """Measure, print the table, write the plot.

    Args:
        repeats: losses of each case for each system.
        systems: which, with commas between them.
        cases: which, with commas between them.
        settle_seconds: from a cluster that is up, or mended, to the first call.
        json: file for the results.
        plot_path: file for the plot; by default recovery.png beside the JSON file, else in the current directory.
        eformer_python: a Python that has eFormer; by default one is installed into the user's cache directory.
    """
    chosen, wanted = choose("systems", systems, CASES_OF), choose("cases", cases, ALL_CASES)
    if repeats < 1:
        sys.exit("--repeats must be at least 1")
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
    for number in range(repeats):
        for system in chosen:  # by turns: the machine may be slower a few minutes later
            tell(f"{system}: cluster {number + 1} of {repeats}")
            _measure(system, findings, eformer_python)
    for row in findings.rows:
        if not row.seconds and not row.skipped:
            row.skipped = "its script ended without a run of this case"
    print_tables("Recovery: two of three slices of two hosts", findings.rows, [], Console())
    if json is not None:
        json.write_text(json_format.dumps(as_results(findings, machine), indent=1) + "\n")
        tell(f"results: {json}")
    if any(row.seconds for row in findings.rows):
        plot_path = plot_path or (json.parent if json else Path()) / "recovery.png"
        plot(findings.rows, plot_path, f"{machine['cpus']} CPUs, {machine['date']}")
        tell(f"plot: {plot_path}")
    return 1 if any(row.skipped for row in findings.rows if row.system == "prefect_tpu") else 0


def _measure(system: str, findings: Findings, eformer_python: Path | None) -> None:
    rows = [row for row in findings.rows if row.system == system and not row.skipped]
    inside = [row.case for row in rows if row.case != "verdict"]
    if any(row.case == "verdict" for row in rows) and "host_killed" not in inside:
        inside.insert(0, "host_killed")
    if not inside:
        return
    limit = START_LIMIT_SECONDS + LIMIT_PER_LOSS_SECONDS * len(inside)
    try:
        if system == "eformer":
            peer = Peer("recovery_eformer.py", find_python(eformer_python), limit, ("1",), ENVIRONMENT)
        else:
            if system == "jax_trainer" and importlib.util.find_spec("pyarrow") is None:
                raise PeerError("it needs ray[train]: pip install -e '.[benchmarks]'")
            script = "recovery_gang.py" if system == "prefect_tpu" else "recovery_jax_trainer.py"
            peer = Peer(script, sys.executable, limit, ("1", ",".join(inside)))
        with accelerator_files() if system == "eformer" else nullcontext():
            run(peer, lambda message: findings.hear(message, ALL_CASES))
    except PeerError as error:
        tell(f"{system}: {error}")
        for row in rows:
            row.skipped = str(error)


def main() -> int:
    """Entry point."""
    try:
        return int(app() or 0)
    except KeyboardInterrupt:
        tell("interrupted; nothing is left running")
        return 130


if __name__ == "__main__":
    sys.exit(main())
