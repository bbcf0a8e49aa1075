"""eFormer's resumable executor, run by the Python of its own virtual environment. Usage: recovery_eformer.py REPEATS.

A run counts from the loss of a host to the entry of a no-op on all hosts again: no JAX, which is to its advantage.
"""

from __future__ import annotations

import importlib.metadata
import os
import sys
import tempfile
import time
from typing import Any

import ray
from eformer.executor.ray import RayExecutor
from eformer_cluster import HOSTS_PER_SLICE, configuration, start_hosts
from losses import Loss
from messages import SETTLE_SECONDS, Messages

SLICES = 3
MAX_PREEMPTIONS, MAX_FAILURES = 5, 3
HERE = os.path.dirname(os.path.abspath(__file__))


@ray.remote
def stay(directory: str) -> None:
    """Enters, and stays until the benchmark has seen enough; its process id in the gang is not told, so its host's."""
    sys.path.insert(0, HERE)
    from losses import enter

    where = ray.get_runtime_context().get_node_id()
    enter(directory, int(where[:12], 16))


def lose(hosts: Any, first_hosts: list[Any]) -> None:
    """One run with one loss; the host that goes is the first of a slice that is used."""
    with tempfile.TemporaryDirectory() as directory:

        def kill(entered: list[dict[str, Any]]) -> None:
            used = {f"{note['process']:012x}" for note in entered}
            victim = [node for node in first_hosts if node.node_id[:12] in used][-1]
            hosts.remove_node(victim, allow_graceful=False)

        loss = Loss(directory, kill)
        RayExecutor.autoscale_execute_resumable(
            stay,
            configuration(),
            max_retries_preemption=MAX_PREEMPTIONS,
            max_retries_failure=MAX_FAILURES,
            directory=directory,
        )
        messages.measured("host_killed", "eformer", loss.seconds)


if __name__ == "__main__":
    messages = Messages()
    messages.versions(**{f"{name} (eformer)": importlib.metadata.version(name) for name in ("ray", "jax")})
    messages.versions(eformer=importlib.metadata.version("eformer"))
    for _ in range(int(sys.argv[1])):
        messages.say(f"starting {SLICES} simulated slices of {HOSTS_PER_SLICE} hosts")
        cluster, first_hosts = start_hosts(SLICES)
        try:
            ray.init(address=cluster.address)
            time.sleep(SETTLE_SECONDS)
            lose(cluster, first_hosts)
            ray.shutdown()
        finally:
            cluster.shutdown()
