"""The process that a local fleet lives in: `python -m prefect_tpu.cluster.fleet_supervisor CONFIG`.

Reads commands as JSON lines on stdin and on a unix socket, answers in the same way. When stdin ends, or the
process that asked for the fleet is gone, it kills every process of every host, removes its directory and
exits. A small janitor does the same if the supervisor itself is killed.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import shutil
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from prefect_tpu.cluster import fleet_keeper, fleet_processes
from prefect_tpu.cluster.fleet_hosts import (
    MARK_VARIABLE,
    host_environment,
    host_labels,
    host_resources,
    simulated_host_environment,
)
from prefect_tpu.cluster.fleet_keeper import KeeperPlan
from prefect_tpu.core.topology import SliceShape

DRAIN_ANSWER_SECONDS = 10.0
OWNER_CHECK_SECONDS = 0.5
START_STAGGER = 4
"""Hosts that start at the same time per core: most of a raylet's start is waiting."""
DIRECTORY_PREFIX = "ptpu-"
OWNER_FILE = "owner"


@dataclass(slots=True)
class HostState:
    """One simulated host. state: "starting", "up", "draining" or "down"."""

    slice_name: str
    index: int
    state: str = "down"
    pid: int = 0
    node_id: str = ""
    started: float = 0.0
    channel: socket.socket | None = None
    deadline: float | None = None
    error: str = ""

    @property
    def name(self) -> str:
        return f"{self.slice_name}/{self.index}"


@dataclass(slots=True)
class Client:
    """Somebody who sends commands and gets answers."""

    reader: int
    write: Callable[[bytes], None]
    buffer: bytes = b""
    is_owner: bool = False

    def send(self, message: dict[str, Any]) -> None:
        with contextlib.suppress(OSError):
            self.write(json.dumps(message).encode() + b"\n")


@dataclass(slots=True)
class Waiter:
    """An answer that is due when these hosts are up."""

    client: Client
    request_id: int
    hosts: list[HostState]
    value: Any


class RefusedError(Exception):
    """The command cannot be done; the text is for the user."""


class Stop(BaseException):
    """End the fleet."""


@dataclass(slots=True)
class Supervisor:
    """All hosts of one local fleet. Everything happens on the main thread."""

    shape: SliceShape
    cpus_per_host: int
    object_store_bytes: int
    owner: tuple[int, int]
    directory: str
    janitor: int
    answers: int
    slices: dict[str, list[HostState]] = field(default_factory=dict)
    head: HostState = field(default_factory=lambda: HostState("head", 0))
    address: str = ""
    state_file: str | None = None
    _selector: selectors.BaseSelector = field(default_factory=selectors.DefaultSelector)
    _queue: list[HostState] = field(default_factory=list)
    _waiters: list[Waiter] = field(default_factory=list)
    _clients: list[Client] = field(default_factory=list)
    _listener: socket.socket = field(default_factory=lambda: socket.socket(socket.AF_UNIX))
    _added: int = 0

    @property
    def mark(self) -> str:
        return os.path.basename(self.directory) + "/"

    def run(self, slices: int) -> None:
        """Start everything, then obey until told to stop."""
        signal.signal(signal.SIGTERM, _stop)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        path = os.path.join(self.directory, "control")
        self._listener.bind(path)
        self._listener.listen()
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)
        owner = Client(0, lambda data: _write_all(self.answers, data), is_owner=True)
        self._add_client(owner)
        began = time.monotonic()
        self._fork(self.head)
        for _ in range(slices):
            self._queue += self._new_slice()
        first = [self.head, *self._queue]
        ready = {"address": "", "control": path, "directory": self.directory, "pid": os.getpid()}
        self._waiters.append(Waiter(owner, 0, first, ready))
        while True:
            for key, _ in self._selector.select(OWNER_CHECK_SECONDS):
                key.data()
            fleet_processes.reap_children()
            self._start_queued(began)
            self._answer_waiters()
            self._kill_at_deadlines()
            self._check_owner()

    def stop(self) -> None:
        """Kill every host and remove every trace."""
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        sessions = [host.pid for host in self._all_hosts() if host.pid] + [self.head.pid]
        stuck = fleet_processes.kill([self.mark], [pid for pid in sessions if pid], reap=True)
        if stuck:
            self._say(f"processes {stuck} of the local fleet do not die after SIGKILL")
        if self.state_file:
            with contextlib.suppress(OSError):
                os.unlink(self.state_file)
        shutil.rmtree(self.directory, ignore_errors=True)
        with contextlib.suppress(OSError):
            os.write(self.janitor, b"done\n")

    # --- hosts

    def _all_hosts(self) -> list[HostState]:
        return [host for hosts in self.slices.values() for host in hosts]

    def _new_slice(self) -> list[HostState]:
        name = f"slice-{self._added}"
        self._added += 1
        self.slices[name] = [HostState(name, index, state="starting") for index in range(self.shape.hosts)]
        return self.slices[name]

    def _plan(self, host: HostState) -> KeeperPlan:
        if host is self.head:
            return KeeperPlan(
                name="head",
                directory=os.path.join(self.directory, "head"),
                gcs_address=None,
                cpus=0,
                object_store_bytes=self.object_store_bytes,
                resources={},
                labels={},
                environment={MARK_VARIABLE: self.mark + host.name},
            )
        where = (self.shape, host.slice_name, host.index)
        # A host that comes back is a new machine: its files must not meet those of the old one.
        directory = tempfile.mkdtemp(prefix=f"{host.slice_name[6:]}-{host.index}-", dir=self.directory)
        return KeeperPlan(
            name=host.name,
            directory=directory,
            gcs_address=self.address,
            cpus=self.cpus_per_host,
            object_store_bytes=self.object_store_bytes,
            resources=host_resources(*where),
            labels=host_labels(*where),
            environment=host_environment(*where)
            | simulated_host_environment(self.shape, os.environ.get("XLA_FLAGS", ""))
            | {MARK_VARIABLE: self.mark + host.name},
        )

    def _fork(self, host: HostState) -> None:
        plan = self._plan(host)
        ours, theirs = socket.socketpair()
        supervisor = os.getpid()
        pid = os.fork()
        if pid == 0:
            # Held open in a child, these would keep alive what waits for their end.
            null = os.open(os.devnull, os.O_RDONLY)
            for descriptor in [key.fd for key in self._selector.get_map().values() if key.fd != 0]:
                os.close(descriptor)
            os.dup2(null, 0)
            for descriptor in (null, self.answers, self.janitor):
                os.close(descriptor)
            ours.close()
            fleet_keeper.run(plan, theirs, supervisor)
        theirs.close()
        os.write(self.janitor, f"{pid}\n".encode())
        host.state, host.pid, host.channel, host.error = "starting", pid, ours, ""
        host.started, host.deadline, host.node_id = time.monotonic(), None, ""
        self._selector.register(ours, selectors.EVENT_READ, lambda: self._hear(host))

    def _start_queued(self, began: float) -> None:
        if not self.address:
            return
        at_once = START_STAGGER * (os.cpu_count() or 1)
        starting = sum(1 for host in self._all_hosts() if host.state == "starting" and host not in self._queue)
        while self._queue and starting < at_once:
            self._fork(self._queue.pop(0))
            starting += 1

    def _hear(self, host: HostState) -> None:
        assert host.channel is not None
        data = host.channel.recv(65536)
        if not data:
            self._lost(host)
            return
        for line in data.splitlines():
            message = json.loads(line)
            if "up" in message:
                host.state, host.node_id = "up", message["up"]
                self._tell_up(host, message)
            elif "failed" in message:
                host.error = message["failed"]

    def _tell_up(self, host: HostState, message: dict[str, Any]) -> None:
        seconds = time.monotonic() - host.started
        if host is self.head:
            self.address = message["gcs_address"]
            self._say(f"head of the local fleet is up at {self.address} ({seconds:.1f} s)")
            return
        hosts = self._all_hosts()
        up = sum(1 for one in hosts if one.state == "up")
        self._say(f"{host.slice_name} host {host.index} is up ({up} of {len(hosts)} hosts, {seconds:.1f} s)")

    def _lost(self, host: HostState) -> None:
        """A keeper's end of the line is gone: it was killed, or its raylet was."""
        was = host.state
        self._kill([host])
        if host is self.head:
            self._say(f"the head of the local fleet ended {host.error}".rstrip())
            self._fail_all(f"the head did not stay up: {host.error or 'its process ended'}")
            raise Stop
        if was == "starting":
            host.error = host.error or "its process ended"
        self._say(f"{host.slice_name} host {host.index} is down {host.error}".rstrip())

    def _fail_all(self, text: str) -> None:
        for waiter in self._waiters:
            waiter.client.send({"id": waiter.request_id, "ok": False, "error": text})
        self._waiters.clear()

    def _kill(self, hosts: list[HostState]) -> None:
        """SIGKILL everything on these hosts at the same time, as when a cloud takes a slice."""
        sessions = [host.pid for host in hosts if host.pid]
        stuck = fleet_processes.kill([self.mark + host.name for host in hosts], sessions, reap=True)
        if stuck:
            self._say(f"processes {stuck} do not die after SIGKILL")
        for host in hosts:
            if host.channel is not None:
                self._selector.unregister(host.channel)
                host.channel.close()
            if host in self._queue:
                self._queue.remove(host)
            host.channel, host.state, host.pid, host.deadline = None, "down", 0, None

    def _kill_at_deadlines(self) -> None:
        now = time.monotonic()
        due = [host for host in self._all_hosts() if host.deadline is not None and host.deadline <= now]
        if due:
            self._kill(due)
            self._say(f"{due[0].slice_name} is gone: the deadline of its drain is over")

    # --- commands

    def _find(self, target: object, *, whole: bool = False) -> list[HostState]:
        name, _, index = str(target).partition("/")
        known = ", ".join(self.slices) or "none"
        if name not in self.slices:
            raise RefusedError(f"there is no slice {name!r} in this fleet; it has: {known}")
        hosts = self.slices[name]
        if not index:
            return hosts
        if whole:
            raise RefusedError(f"this is done to a whole slice: {name!r}, not {target!r}")
        if not index.isdigit() or int(index) >= len(hosts):
            raise RefusedError(f"{name} has hosts 0 to {len(hosts) - 1}, not {index!r}")
        return [hosts[int(index)]]

    def _command(self, client: Client, request: dict[str, Any]) -> None:
        number, do = request.get("id", 0), request.get("do")
        try:
            if do == "preempt":
                hosts = [host for host in self._find(request["target"]) if host.state != "down"]
                self._kill(hosts)
                self._say(f"{request['target']} preempted: {len(hosts)} hosts killed")
                value: Any = len(hosts)
            elif do == "drain":
                value = self._drain(self._find(request["target"], whole=True), float(request["seconds"]))
            elif do == "restore":
                self._wait_for(client, number, self._restore(self._find(request["target"])), None)
                return
            elif do == "add_slice":
                hosts = self._new_slice()
                self._queue += hosts
                self._wait_for(client, number, hosts, hosts[0].slice_name)
                return
            elif do == "status":
                value = self._status()
            elif do == "detach":
                self.state_file = request["state_file"]
                self.owner = (0, 0)
                client.is_owner = False
                value = None
            elif do == "stop":
                self.stop()
                client.send({"id": number, "ok": True, "value": None})
                raise Stop
            else:
                raise RefusedError(f"unknown command {do!r}")
        except RefusedError as refused:
            client.send({"id": number, "ok": False, "error": str(refused), "refused": True})
        except (KeyError, TypeError, ValueError) as error:
            client.send({"id": number, "ok": False, "error": f"bad request {request!r}: {error!r}"})
        else:
            client.send({"id": number, "ok": True, "value": value})

    def _drain(self, hosts: list[HostState], seconds: float) -> int:
        up = [host for host in hosts if host.state == "up"]
        if not up:
            raise RefusedError(f"{hosts[0].slice_name} has no host that is up and not draining yet")
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
                raise RefusedError(f"{host.name} could not be drained: {failed}")
        for host in hosts:
            if host.state in ("up", "starting"):
                host.state, host.deadline = "draining", deadline
        self._say(f"{hosts[0].slice_name} drains: preemption in {seconds:g} s")
        return len(up)

    def _restore(self, hosts: list[HostState]) -> list[HostState]:
        self._kill([host for host in hosts if host.state == "draining"])
        for host in hosts:
            if host.state == "down":
                host.state, host.error = "starting", ""
                self._queue.append(host)
        return hosts

    def _status(self) -> dict[str, Any]:
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

    def _wait_for(self, client: Client, number: int, hosts: list[HostState], value: Any) -> None:
        self._waiters.append(Waiter(client, number, hosts, value))

    def _answer_waiters(self) -> None:
        for waiter in list(self._waiters):
            if any(host.state == "starting" or host in self._queue for host in waiter.hosts):
                continue
            self._waiters.remove(waiter)
            down = [host for host in waiter.hosts if host.state == "down"]
            if down:
                text = "; ".join(f"{host.name}: {host.error or 'killed while it started'}" for host in down)
                waiter.client.send({"id": waiter.request_id, "ok": False, "error": f"not up: {text}"})
                continue
            value = waiter.value | {"address": self.address} if isinstance(waiter.value, dict) else waiter.value
            waiter.client.send({"id": waiter.request_id, "ok": True, "value": value})

    # --- those who ask

    def _accept(self) -> None:
        connection, _ = self._listener.accept()
        self._add_client(Client(connection.detach(), lambda data: None))
        client = self._clients[-1]
        client.write = lambda data: _write_all(client.reader, data)

    def _add_client(self, client: Client) -> None:
        self._clients.append(client)
        self._selector.register(client.reader, selectors.EVENT_READ, lambda: self._read(client))

    def _read(self, client: Client) -> None:
        try:
            data = os.read(client.reader, 65536)
        except OSError:
            data = b""
        if not data:
            if client.is_owner:
                raise Stop
            self._selector.unregister(client.reader)
            os.close(client.reader)
            self._clients.remove(client)
            self._waiters = [waiter for waiter in self._waiters if waiter.client is not client]
            return
        *lines, client.buffer = (client.buffer + data).split(b"\n")
        for line in lines:
            if line.strip():
                self._command(client, json.loads(line))

    def _check_owner(self) -> None:
        # The pipe's end is not enough: a process that the owner forked may hold it open.
        pid, start = self.owner
        if pid and not fleet_processes.is_alive(pid, start):
            raise Stop

    def _say(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)
        for client in self._clients:
            client.send({"progress": text})


def _stop(*_: object) -> None:
    raise Stop


def _write_all(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


def start_janitor(directory: str) -> int:
    """Fork the process that cleans up when the supervisor is killed; returns the pipe that it watches."""
    reader, writer = os.pipe()
    if os.fork():
        os.close(reader)
        return writer
    os.close(writer)
    os.setsid()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    with os.fdopen(reader) as pipe:
        lines = pipe.read().split()
    if "done" not in lines:
        fleet_processes.kill([os.path.basename(directory) + "/"], [int(pid) for pid in lines])
        shutil.rmtree(directory, ignore_errors=True)
    os._exit(0)


def main() -> None:
    """Entry point; the argument is the fleet's configuration as JSON."""
    config = json.loads(sys.argv[1])
    base = "/tmp" if os.access("/tmp", os.W_OK) else None
    directory = tempfile.mkdtemp(prefix=DIRECTORY_PREFIX, dir=base)
    janitor = start_janitor(directory)
    # What Ray prints must not get between the answers.
    answers = os.dup(1)
    os.dup2(2, 1)
    import ray._private.node  # noqa: F401 - imported once here, for all keepers to be forked with it

    supervisor = Supervisor(
        shape=SliceShape(**config["shape"]),
        cpus_per_host=config["cpus_per_host"],
        object_store_bytes=config["object_store_bytes_per_host"],
        owner=(config["owner_pid"], config["owner_start"]),
        directory=directory,
        janitor=janitor,
        answers=answers,
    )
    try:
        supervisor.run(config["slices"])
    except Stop:
        pass
    except BaseException:
        traceback.print_exc()
        raise
    finally:
        supervisor.stop()


if __name__ == "__main__":
    main()
