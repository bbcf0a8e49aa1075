"""The agents of this process: one on each host and runtime_env that a gang of ours uses, kept while they are wanted."""

from __future__ import annotations

import functools
import logging
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from prefect_tpu.cluster import session
from prefect_tpu.cluster.runtime_env import key_of
from prefect_tpu.core.gang import Host
from prefect_tpu.host.agent import Agent

log = logging.getLogger("prefect_tpu.agents")

HOUSEKEEPING_SECONDS = 5.0


@dataclass(slots=True)
class _Entry:
    handle: Any
    generation: int
    users: int = 0
    idle_since: float = 0.0


class AgentPool:
    """Starts agents, hands them to attempts, and ends those that idle too long.

    An idle agent keeps its host busy in the eyes of Ray's autoscaler, so it is ended after
    `agent_idle_release_seconds`. One that was started with another runtime_env cannot be used; it is ended as soon as
    nobody uses it, so that a host does not keep the imports of both.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entries: dict[_Key, _Entry] = {}
        self._idle_seconds = float("inf")
        self._keeper: threading.Thread | None = None

    def take(
        self, hosts: Sequence[Host], *, idle_release_seconds: float, runtime_env: Mapping[str, Any] | None = None
    ) -> list[Any]:
        """Actor handles for `hosts`, in their order; starts what is missing and does not wait for it."""
        packages = dict(runtime_env or {})
        with self._lock:
            self._idle_seconds = idle_release_seconds
            entries = []
            for host in hosts:
                key = _key(host, packages)
                entry = self._entries.get(key)
                if entry is None or entry.generation != session.generation():
                    handle = start_agent(host.node_id, f"prefect-tpu-agent-{uuid4().hex[:8]}", packages)
                    entry = self._entries[key] = _Entry(handle, session.generation())
                entries.append(entry)
            for entry in entries:
                entry.users += 1
            replaced = self._pop_replaced({_key(host, packages) for host in hosts})
            if self._keeper is None:
                self._keeper = threading.Thread(target=self._keep, name="prefect-tpu-agents", daemon=True)
                self._keeper.start()
        for entry in replaced:
            _end(entry)
        return [entry.handle for entry in entries]

    def give_back(self, hosts: Sequence[Host], runtime_env: Mapping[str, Any] | None = None) -> None:
        """The attempt is over; its agents stay warm for the next one."""
        with self._lock:
            for host in hosts:
                entry = self._entries.get(_key(host, runtime_env or {}))
                if entry is not None and entry.users:
                    entry.users -= 1
                    entry.idle_since = time.monotonic()

    def drop(self, host: Host, runtime_env: Mapping[str, Any] | None = None) -> None:
        """End an agent that does not answer, with every process that it started."""
        with self._lock:
            entry = self._entries.pop(_key(host, runtime_env or {}), None)
        if entry is not None:
            _end(entry)

    def _pop_replaced(self, wanted: set[_Key]) -> list[_Entry]:
        """Agents that nobody uses on the same hosts, in another runtime_env."""
        nodes = {node for node, _ in wanted}
        found = [
            key for key, entry in self._entries.items() if key[0] in nodes and key not in wanted and not entry.users
        ]
        return [self._entries.pop(key) for key in found]

    def close(self) -> None:
        """End all agents."""
        with self._lock:
            entries, self._entries = list(self._entries.values()), {}
        for entry in entries:
            _end(entry)

    def _keep(self) -> None:
        while True:
            time.sleep(HOUSEKEEPING_SECONDS)
            with self._lock:
                limit = time.monotonic() - self._idle_seconds
                used = {key for key, entry in self._entries.items() if entry.users}
                over = [
                    key
                    for key, entry in self._entries.items()
                    if not entry.users and (entry.idle_since < limit or entry.generation != session.generation())
                ]
                entries = [self._entries.pop(key) for key in over] + self._pop_replaced(used)
            for entry in entries:
                _end(entry)


_Key = tuple[str, str]
"""Of a host's node, and of a runtime_env."""


def _key(host: Host, runtime_env: Mapping[str, Any]) -> _Key:
    return host.node_id, key_of(runtime_env)


def _end(entry: _Entry) -> None:
    try:
        # Of another generation: it went with its cluster.
        session.while_connected(entry.generation, lambda: ray.kill(entry.handle))
    except (ray.exceptions.RayError, ValueError) as error:
        log.debug("an agent had already gone: %s", error)


MAX_CONCURRENT_CALLS = 16
"""A long poll per attempt, and the calls beside it."""


def start_agent(node_id: str, name: str, runtime_env: dict[str, Any]) -> Any:
    """Start an agent on the Ray node `node_id`; returns its handle at once.

    It asks for no chips, so Ray hides none from it: the placement group of the lease holds them.

    Args:
        node_id: of the host.
        name: of the actor.
        runtime_env: set up by Ray before the agent starts; what the agent starts is in it, too.
    """
    affinity = NodeAffinitySchedulingStrategy(node_id=node_id, soft=False)
    options = {"runtime_env": runtime_env} if runtime_env else {}
    return _actor_class().options(name=name, scheduling_strategy=affinity, **options).remote()


@functools.cache
def _actor_class() -> Any:
    """One for all agents: Ray takes each new one apart and exports it, 0.1 s in the first call of a gang."""
    return ray.remote(num_cpus=0, max_concurrency=MAX_CONCURRENT_CALLS, max_restarts=0)(Agent)
