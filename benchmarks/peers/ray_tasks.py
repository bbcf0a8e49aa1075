"""Plain Ray tasks, as one would write them by hand: a placement group per slice, one task per host.

Usage: ray_tasks.py CALLS. The hosts' environment has JAX's variables already, so no task needs a runtime
environment, which would cost it some seconds more.
"""

from __future__ import annotations

import socket
import sys
import tempfile
import time

import ray
from cluster import FLEET, PAUSE_SECONDS, connected_fleet
from collective import HOSTS, add_up, durations, first_marks, read_notes
from messages import Messages
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from prefect_tpu.cluster import inventory
from prefect_tpu.core.gang import Slice

CHIPS = 4
RESERVE_SECONDS = 30.0


@ray.remote(num_cpus=0, resources={"TPU": CHIPS}, max_calls=1, max_retries=0)
def host(directory: str, coordinator: str, process_id: int) -> None:
    """A new process for every call, as JAX can be initialised only once in one."""
    marks = first_marks()
    import jax

    marks["import"] = time.time()
    jax.distributed.initialize(coordinator, HOSTS, process_id)
    marks["initialize"] = time.time()
    add_up(directory, process_id, marks)


def call(slices: list[Slice], case: str) -> None:
    """One round: reserve, run, and give back after the clock."""
    with tempfile.TemporaryDirectory() as directory:
        begin = time.time()
        groups = [reserve(one) for one in slices]
        for group in groups:
            if not group.wait(RESERVE_SECONDS):
                raise RuntimeError(f"no placement group within {RESERVE_SECONDS:g} s")
        coordinator = f"{slices[0].hosts[0].address}:{free_port()}"
        placed = [(group, bundle) for group in groups for bundle in range(group.bundle_count)]
        tasks = [
            host.options(
                scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=bundle)
            ).remote(directory, coordinator, process_id)
            for process_id, (group, bundle) in enumerate(placed)
        ]
        ray.get(tasks)
        notes = read_notes(directory)
    for group in groups:
        remove_placement_group(group)
    messages.measured(case, "ray_tasks", max(note["collective"] for note in notes) - begin, durations(begin, notes))


def reserve(one: Slice) -> PlacementGroup:
    """All hosts of a slice, the same way as prefect_tpu reserves them."""
    return placement_group(
        [
            {"TPU": CHIPS} | ({f"TPU-{FLEET.shape.pod_type}-head": 1} if host.has_head_resource else {})
            for host in one.hosts
        ],
        strategy="STRICT_SPREAD",
        bundle_label_selector=[{"ray.io/node-id": host.node_id} for host in one.hosts],
    )


def free_port() -> int:
    """Of the machine that all simulated hosts share; on real hosts this would cost one more task."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        port: int = probe.getsockname()[1]
        return port


if __name__ == "__main__":
    messages = Messages()
    with connected_fleet(messages):
        free = inventory.free_slices(FLEET.shape)
        for number in range(int(sys.argv[1])):
            call(free, "warm" if number else "first")
            time.sleep(PAUSE_SECONDS)
