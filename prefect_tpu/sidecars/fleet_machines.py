"""The hosts of a local fleet, as the supervisor keeps them: started, killed, drained, brought back."""

from __future__ import annotations

import json
import os
import selectors
import socket
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from prefect_tpu.cluster.start_node import MAX_STARTS, NodePlan
from prefect_tpu.core import clock
from prefect_tpu.core.topology import SliceShape
from prefect_tpu.linux import processes
from prefect_tpu.sidecars import fleet_marks, simulated_host
from prefect_tpu.sidecars.fleet_janitor import Janitor
from prefect_tpu.sidecars.simulated_identity import (
    MARK_VARIABLE,
    host_environment,
    host_labels,
    host_resources,
    simulated_host_environment,
)

ADDRESS = "127.0.0.1"
"""Of every node: a simulated host is nobody's but this machine's."""
DRAIN_ANSWER_SECONDS = 10.0
STARTS_PER_CORE = 4
"""Hosts that start at the same time: most of a raylet's start is waiting."""


class CommandRefusedError(Exception):
    """The command cannot be done; the text is for the user."""


class HeadLostError(Exception):
    """The fleet's Ray cluster is gone."""


@dataclass(slots=True, eq=False)
class HostState:
    """One simulated host. state: "starting", "up", "draining" or "down"."""

    slice_name: str
    index: int
    state: str = "down"
    process: processes.Process | None = None
    """The first one, which leads the host's session. Our child, and not collected before the host is killed: so
    long its number is nobody else's."""
    node_id: str = ""
    started: float = 0.0
    channel: socket.socket | None = None
    deadline: float | None = None
    error: str = ""
    failed_starts: int = 0
    short_name: str = ""
    """Begins its directory's name: the names of Ray's sockets must stay short."""

    @property
    def name(self) -> str:
        return f"{self.slice_name}/{self.index}"

    @property
    def pid(self) -> int:
        return self.process.pid if self.process is not None else 0


@dataclass(slots=True)
class Machines:
    """Every host of one fleet, and its head. Used by one thread, the one that forks.

    Attributes:
        shape, cpus_per_host, object_store_bytes, object_store_directory, dashboard_agents: of every host.
        directory: everything of the fleet is in it, and its name marks the fleet's processes.
        selector: told which sockets to watch; each key's data is called when there is something to read.
        janitor: told about every host.
        private: descriptors that hosts must not keep open, beside those of selector and janitor.
        say: where news go.
    """

    shape: SliceShape
    cpus_per_host: int
    object_store_bytes: int
    object_store_directory: str | None
    dashboard_agents: bool
    directory: str
    selector: selectors.BaseSelector
    janitor: Janitor
    private: Callable[[], Iterable[int]]
    say: Callable[[str], None]
    slices: dict[str, list[HostState]] = field(default_factory=dict)
    head: HostState = field(default_factory=lambda: HostState("head", 0))
    address: str = ""
    _queue: list[HostState] = field(default_factory=list)
    _added: int = 0

    @property
    def hosts(self) -> list[HostState]:
        return [host for hosts in self.slices.values() for host in hosts]

    def start_head(self) -> None:
        """Hosts that are added start when it is up."""
        try:
            self._fork(self.head)
        except OSError as error:
            raise HeadLostError(f"the head cannot be started: {error}") from error

    def add_slice(self, name: str | None = None) -> list[HostState]:
        """One more slice; its hosts start as soon as there is room."""
        number = self._added
        name = f"slice-{number}" if name is None else name
        if name in self.slices:
            raise CommandRefusedError(f"there is a slice {name!r} in this fleet already")
        self._added += 1
        self.slices[name] = [
            HostState(name, index, state="starting", short_name=f"{number}-{index}")
            for index in range(self.shape.hosts)
        ]
        self._queue += self.slices[name]
        return self.slices[name]

    def remove_slice(self, target: object) -> None:
        """Kill its hosts and forget it."""
        self.kill(self.find(target, whole=True))
        self.say(f"{target} removed")
        del self.slices[str(target)]

    def find(self, target: object, *, whole: bool = False) -> list[HostState]:
        """The hosts of "slice-1", or the one of "slice-1/0"."""
        name, _, index = str(target).partition("/")
        known = ", ".join(self.slices) or "none"
        if name not in self.slices:
            raise CommandRefusedError(f"there is no slice {name!r} in this fleet; it has: {known}")
        hosts = self.slices[name]
        if not index:
            return hosts
        if whole:
            raise CommandRefusedError(f"this is done to a whole slice: {name!r}, not {target!r}")
        if not index.isdigit() or int(index) >= len(hosts):
            raise CommandRefusedError(f"{name} has hosts 0 to {len(hosts) - 1}, not {index!r}")
        return [hosts[int(index)]]

    def preempt(self, target: object) -> int:
        """Kill hosts now; how many were there."""
        hosts = [host for host in self.find(target) if host.state != "down"]
        self.kill(hosts)
        self.say(f"{target} preempted: {len(hosts)} hosts killed")
        return len(hosts)

    def drain(self, target: object, seconds: float) -> int:
        """Give a slice notice; how many of its hosts got it."""
        if not clock.is_notice(seconds):
            raise CommandRefusedError(f"seconds={seconds:g}: must be {clock.NOTICE_WORDS}")
        hosts = self.find(target, whole=True)
        if any(host.state == "starting" for host in hosts):
            raise CommandRefusedError(f"{hosts[0].slice_name} is still starting")
        up = [host for host in hosts if host.state == "up"]
        if not up:
            raise CommandRefusedError(f"{hosts[0].slice_name} has no host that is up and not draining yet")
        for host in up:
            assert host.channel is not None
            host.channel.sendall(json.dumps({"drain_seconds": seconds}).encode())
        deadline = time.monotonic() + seconds
        for host in up:
            assert host.channel is not None
            host.channel.settimeout(DRAIN_ANSWER_SECONDS)
            try:
                answer = host.channel.recv(65536)
            except TimeoutError:
                answer = b'{"failed": "no answer from the host"}'
            host.channel.settimeout(None)
            failed = json.loads(answer.splitlines()[0]).get("failed") if answer else "the host is gone"
            if failed:
                raise CommandRefusedError(f"{host.name} could not be drained: {failed}")
        for host in up:
            host.state, host.deadline = "draining", deadline
        self.say(f"{hosts[0].slice_name} drains: preemption in {seconds:g} s")
        return len(up)

    def restore(self, target: object) -> list[HostState]:
        """Start what is down or draining; the hosts that have to be up then."""
        hosts = self.find(target)
        self.kill([host for host in hosts if host.state == "draining"])
        for host in hosts:
            if host.state == "down":
                host.state, host.error, host.failed_starts = "starting", "", 0
                self._queue.append(host)
        return hosts

    def status(self) -> dict[str, Any]:
        """JSON-able."""
        now = time.monotonic()
        return {
            "address": self.address,
            "pid": os.getpid(),
            "directory": self.directory,
            "accelerator_type": self.shape.accelerator_type,
            "topology": self.shape.topology,
            "slices": [
                {
                    "name": name,
                    "hosts": [
                        {
                            "index": host.index,
                            "state": host.state,
                            "node_id": host.node_id,
                            "pid": host.pid,
                            "seconds_left": None if host.deadline is None else max(0.0, host.deadline - now),
                            "error": host.error,
                        }
                        for host in hosts
                    ],
                }
                for name, hosts in self.slices.items()
            ],
        }

    def tick(self) -> None:
        """What time brings: room for hosts that wait to start, ends of drains."""
        at_once = STARTS_PER_CORE * (os.cpu_count() or 1)
        starting = sum(1 for host in self.hosts if host.state == "starting" and host not in self._queue)
        while self.address and self._queue and starting < at_once:
            host = self._queue.pop(0)
            try:
                self._fork(host)
            except OSError as error:  # no room for its directory, no more processes
                host.state, host.error = "down", f"it cannot be started: {error}"
                self.say(f"{host.slice_name} host {host.index}: {host.error}")
            starting += 1
        now = time.monotonic()
        due = [host for host in self.hosts if host.deadline is not None and host.deadline <= now]
        if due:
            self.kill(due)
            self.say(f"{due[0].slice_name} is gone: the deadline of its drain is over")

    def kill(self, hosts: list[HostState]) -> None:
        """SIGKILL everything on these hosts at the same time, as when a cloud takes a slice."""
        leaders = [host.process for host in hosts if host.process is not None]
        marks = [self._mark(host) for host in hosts]
        stuck = fleet_marks.kill(marks, leaders)
        if stuck:
            self.say(f"processes {stuck} do not die after SIGKILL")
        for leader in leaders:
            os.waitpid(leader.pid, os.WNOHANG)  # only now may its number be used again
            self.janitor.forget(leader)
        for host in hosts:
            if host.channel is not None:
                self.selector.unregister(host.channel)
                host.channel.close()
            if host in self._queue:
                self._queue.remove(host)
            host.channel, host.state, host.process, host.deadline = None, "down", None, None

    def kill_everything(self) -> None:
        """The head too, and what nobody remembers but carries the fleet's mark."""
        leaders = [host.process for host in (self.head, *self.hosts) if host.process is not None]
        stuck = fleet_marks.kill([fleet_marks.fleet_mark(self.directory)], leaders)
        if stuck:
            self.say(f"processes {stuck} of the local fleet do not die after SIGKILL")

    def _mark(self, host: HostState) -> str:
        return fleet_marks.fleet_mark(self.directory) + host.name

    def _plan(self, host: HostState) -> NodePlan:
        if host is self.head:
            return NodePlan(
                name="head",
                directory=os.path.join(self.directory, "head"),
                gcs_address=None,
                cpus=0,
                object_store_bytes=self.object_store_bytes,
                object_store_directory=self.object_store_directory,
                resources={},
                labels={},
                environment={MARK_VARIABLE: self._mark(host)},
                address=ADDRESS,
                dashboard_agent=self.dashboard_agents,
            )
        where = (self.shape, host.slice_name, host.index)
        # A host that comes back is a new machine: its files must not meet those of the old one.
        directory = tempfile.mkdtemp(prefix=f"{host.short_name}-", dir=self.directory)
        return NodePlan(
            name=host.name,
            directory=directory,
            gcs_address=self.address,
            cpus=self.cpus_per_host,
            object_store_bytes=self.object_store_bytes,
            object_store_directory=self.object_store_directory,
            resources=host_resources(*where),
            labels=host_labels(*where),
            environment=host_environment(*where)
            | simulated_host_environment(self.shape, os.environ.get("XLA_FLAGS", ""))
            | {MARK_VARIABLE: self._mark(host)},
            address=ADDRESS,
            dashboard_agent=self.dashboard_agents,
        )

    def _fork(self, host: HostState) -> None:
        plan = self._plan(host)
        ours, theirs = socket.socketpair()
        supervisor = os.getpid()
        # Held open in a child, these would keep alive what waits for their end.
        private = {key.fd for key in self.selector.get_map().values()} | {self.janitor.pipe, *self.private()}
        try:
            pid = os.fork()
        except OSError:
            ours.close()
            theirs.close()
            raise
        if pid == 0:
            try:
                for descriptor in private:
                    os.close(descriptor)
                ours.close()
                simulated_host.run(plan, theirs, supervisor)
            finally:
                os._exit(1)  # whatever happens: there is one supervisor
        theirs.close()
        host.process = processes.read_process(pid)
        assert host.process is not None  # a child that nobody has collected
        self.janitor.remember(host.process)
        host.state, host.channel, host.error = "starting", ours, ""
        host.started, host.deadline, host.node_id = time.monotonic(), None, ""
        self.selector.register(ours, selectors.EVENT_READ, lambda: self._hear(host, ours))

    def _hear(self, host: HostState, channel: socket.socket) -> None:
        if host.channel is not channel:  # it was killed a moment ago
            return
        try:
            messages = [json.loads(line) for line in channel.recv(65536).splitlines()]
        except (OSError, ValueError) as error:
            host.error, messages = f"its words are not understood: {error}", []
        if not messages:
            self._lost(host)
            return
        for message in messages:
            if "up" in message:
                host.state, host.node_id, host.failed_starts = "up", message["up"], 0
                self._tell_up(host, message)
            elif "failed" in message:
                host.error = message["failed"]

    def _tell_up(self, host: HostState, message: dict[str, Any]) -> None:
        seconds = time.monotonic() - host.started
        if host is self.head:
            self.address = message["gcs_address"]
            self.say(f"head of the local fleet is up at {self.address} ({seconds:.1f} s)")
            return
        hosts = self.hosts
        up = sum(1 for one in hosts if one.state == "up")
        self.say(f"{host.slice_name} host {host.index} is up ({up} of {len(hosts)} hosts, {seconds:.1f} s)")

    def _lost(self, host: HostState) -> None:
        """A keeper's end of the line is gone: it was killed, or its raylet was."""
        was = host.state
        self.kill([host])
        if host is self.head:
            self.say(f"the head of the local fleet ended {host.error}".rstrip())
            raise HeadLostError(f"the head did not stay up: {host.error or 'its process ended'}")
        if was == "starting":
            host.error = host.error or "its process ended"
            host.failed_starts += 1
            if host.failed_starts < MAX_STARTS:
                self.say(f"{host.slice_name} host {host.index} did not start ({host.error}); once more")
                host.state = "starting"
                self._queue.append(host)
                return
        self.say(f"{host.slice_name} host {host.index} is down {host.error}".rstrip())
