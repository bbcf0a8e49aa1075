"""eFormer's executor with a no-op, run by the Python of its own virtual environment, which has no prefect_tpu.

Usage: eformer_noop.py CALLS. A run counts up to the entry of the no-op on the last host: no JAX is
initialised and no collective done, which is to eFormer's advantage.
"""

from __future__ import annotations

import importlib.metadata
import os
import sys
import tempfile
import time

import ray
from collective import durations, first_marks, leave_note, read_notes
from eformer.executor.ray import JobSucceeded, RayExecutor
from eformer_cluster import GANG_SLICES, PAUSE_SECONDS, configuration, start_hosts
from messages import SETTLE_SECONDS, Messages


@ray.remote
def enter(directory: str) -> None:
    """Leaves its note at entry."""
    leave_note(directory, os.getpid(), first_marks())


def call(case: str) -> None:
    """One call of what eFormer offers for several slices."""
    with tempfile.TemporaryDirectory() as directory:
        begin = time.time()
        status = RayExecutor.autoscale_execute(enter, configuration(), directory=directory)
        if not isinstance(status, JobSucceeded):
            raise RuntimeError(f"eFormer: {status}")  # noqa: TRY004 - no wrong type: a run that failed
        notes = read_notes(directory)
    messages.measured(case, "eformer", max(note["function"] for note in notes) - begin, durations(begin, notes))


if __name__ == "__main__":
    messages = Messages()
    messages.versions(**{f"{name} (eformer)": importlib.metadata.version(name) for name in ("ray", "jax")})
    messages.versions(eformer=importlib.metadata.version("eformer"))
    messages.say("starting two simulated slices of two hosts")
    hosts, _ = start_hosts(GANG_SLICES)
    try:
        ray.init(address=hosts.address)
        time.sleep(SETTLE_SECONDS)
        for number in range(int(sys.argv[1])):
            call("warm" if number else "first")
            time.sleep(PAUSE_SECONDS)
        ray.shutdown()
    finally:
        hosts.shutdown()
