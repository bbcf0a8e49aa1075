"""What the agent and the zygote of each simulated host hold while they wait for the next attempt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ray
from cluster import FLEET

from prefect_tpu.linux import processes

RUN_VARIABLE = "BENCHMARK_RUN"
"""Set in the driver before the fleet starts: a zygote that has it is of this fleet and no other on the machine."""

AGENT_NAME = "prefect-tpu-agent-"
FIELDS = {"Pss": "pss", "Rss": "rss", "Private_Clean": "private", "Private_Dirty": "private"}


def idle_memory(run: str) -> list[dict[str, Any]]:
    """Per host: slice, host, and pss, rss and private bytes of its agent and its zygotes.

    Args:
        run: what RUN_VARIABLE was set to.
    """
    agents = agent_pids()
    table = processes.snapshot()
    ours = processes.marked(table, RUN_VARIABLE, run)
    ours = {pid for pid in ours if processes.has_variable(pid, processes.ZYGOTE_MARK)}
    rows = []
    for one in FLEET.status()["slices"]:
        for host in one["hosts"]:
            place = {f"TPU_NAME={one['name']}".encode(), f"TPU_WORKER_ID={host['index']}".encode()}
            zygotes = [pid for pid in ours if place <= set(processes.environment_of(pid))]
            row: dict[str, Any] = {"slice": one["name"], "host": host["index"], "zygotes": len(zygotes)}
            for name, pids in (("agent", agents.get(host["node_id"], [])), ("zygote", zygotes)):
                for kind, size in memory_of(pids).items():
                    row[f"{name}_{kind}_bytes"] = size
            rows.append(row)
    return rows


def agent_pids() -> dict[str, list[int]]:
    """Process ids of the living agents by Ray node id."""
    found: dict[str, list[int]] = {}
    for actor in ray._private.state.actors().values():
        if actor["State"] == "ALIVE" and actor["Name"].startswith(AGENT_NAME):
            found.setdefault(actor["Address"]["NodeID"], []).append(int(actor["Pid"]))
    return found


def memory_of(pids: list[int]) -> dict[str, int]:
    """Sums over processes: proportional share, resident, and what is only theirs."""
    sizes = dict.fromkeys(FIELDS.values(), 0)
    for pid in pids:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            name, _, rest = line.partition(":")
            if name in FIELDS:
                sizes[FIELDS[name]] += int(rest.split()[0]) * 1024
    return sizes
