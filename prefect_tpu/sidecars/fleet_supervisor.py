"""The process that a local fleet lives in: `python -m prefect_tpu.sidecars.fleet_supervisor CONFIG`.

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
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from prefect_tpu.cluster.start_node import import_ray
from prefect_tpu.core.topology import SliceShape
from prefect_tpu.linux import processes
from prefect_tpu.linux.directories import short_directory
from prefect_tpu.sidecars.fleet_janitor import Janitor
from prefect_tpu.sidecars.fleet_machines import CommandRefusedError, HeadLostError, HostState, Machines

TICK_SECONDS = 0.5
DIRECTORY_PREFIX = "ptpu-"


@dataclass(slots=True, eq=False)
class Client:
    """Somebody who sends commands and gets answers."""

    reader: int
    write: Callable[[bytes], None]
    buffer: bytes = b""
    is_owner: bool = False

    def send(self, message: dict[str, Any]) -> None:
        with contextlib.suppress(OSError):
            self.write(json.dumps(message).encode() + b"\n")


@dataclass(slots=True, eq=False)
class Waiter:
    """An answer that is due when these hosts are up."""

    client: Client
    request_id: int
    hosts: list[HostState]
    value: Callable[[], Any]


class Stop(BaseException):
    """End the fleet."""


@dataclass(slots=True)
class Supervisor:
    """Hears commands and answers them. Everything happens on the main thread.

    Attributes:
        machines: the hosts.
        owner: process id and start time of who asked for the fleet; (0, 0) when it stands by itself.
        control: path of the unix socket.
        answers: where the owner reads.
        state_file: removed in the end, if there is one.
    """

    machines: Machines
    owner: tuple[int, int]
    control: str
    answers: int
    state_file: str | None = None
    clients: list[Client] = field(default_factory=list)
    _waiters: list[Waiter] = field(default_factory=list)
    _listener: socket.socket = field(default_factory=lambda: socket.socket(socket.AF_UNIX))

    def run(self, slices: int) -> None:
        """Start everything, then obey until told to stop."""
        selector = self.machines.selector
        self._listener.bind(self.control)
        self._listener.listen()
        selector.register(self._listener, selectors.EVENT_READ, self._accept)
        owner = Client(0, lambda data: _write_all(self.answers, data), is_owner=True)
        self._add_client(owner)
        self.machines.start_head()
        first = [self.machines.head]
        for _ in range(slices):
            first += self.machines.add_slice()
        ready = {"control": self.control, "directory": self.machines.directory, "pid": os.getpid()}
        self._waiters.append(Waiter(owner, 0, first, lambda: ready | {"address": self.machines.address}))
        try:
            while True:
                for key, _ in selector.select(TICK_SECONDS):
                    key.data()
                self.machines.tick()
                self._answer_waiters()
                self._check_owner()
        except HeadLostError as error:
            for waiter in self._waiters:
                waiter.client.send({"id": waiter.request_id, "ok": False, "error": str(error)})

    def stop(self) -> None:
        """Kill every host and remove every trace."""
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        self.machines.kill_everything()
        if self.state_file:
            with contextlib.suppress(OSError):
                os.unlink(self.state_file)
        shutil.rmtree(self.machines.directory, ignore_errors=True)
        self.machines.janitor.dismiss()

    def say(self, text: str) -> None:
        """News for everybody who listens, and for the log."""
        print(text, file=sys.stderr, flush=True)
        for client in self.clients:
            client.send({"progress": text})

    def _command(self, client: Client, request: dict[str, Any]) -> None:
        number, do = request.get("id", 0), request.get("do")
        value: Any = None
        try:
            if do == "preempt":
                value = self.machines.preempt(request["target"])
            elif do == "drain":
                value = self.machines.drain(request["target"], float(request["seconds"]))
            elif do == "restore":
                hosts = self.machines.restore(request["target"])
                self._waiters.append(Waiter(client, number, hosts, lambda: None))
                return
            elif do == "add_slice":
                added = self.machines.add_slice(request.get("name"))
                self._waiters.append(Waiter(client, number, added, lambda: added[0].slice_name))
                return
            elif do == "remove_slice":
                self.machines.remove_slice(request["target"])
            elif do == "status":
                value = self.machines.status()
            elif do == "detach":
                self.state_file, self.owner, client.is_owner = request["state_file"], (0, 0), False
            elif do == "stop":
                self.stop()
                client.send({"id": number, "ok": True, "value": None})
                raise Stop
            else:
                raise CommandRefusedError(f"unknown command {do!r}")
        except CommandRefusedError as refused:
            client.send({"id": number, "ok": False, "error": str(refused), "refused": True})
        except (KeyError, TypeError, ValueError) as error:
            client.send({"id": number, "ok": False, "error": f"bad request {request!r}: {error!r}"})
        else:
            client.send({"id": number, "ok": True, "value": value})

    def _answer_waiters(self) -> None:
        for waiter in list(self._waiters):
            if any(host.state == "starting" for host in waiter.hosts):
                continue
            self._waiters.remove(waiter)
            down = [host for host in waiter.hosts if host.state == "down"]
            if down:
                text = "; ".join(f"{host.name}: {host.error or 'killed while it started'}" for host in down)
                waiter.client.send({"id": waiter.request_id, "ok": False, "error": f"not up: {text}"})
            else:
                waiter.client.send({"id": waiter.request_id, "ok": True, "value": waiter.value()})

    def _accept(self) -> None:
        reader = self._listener.accept()[0].detach()
        self._add_client(Client(reader, lambda data: _write_all(reader, data)))

    def _add_client(self, client: Client) -> None:
        self.clients.append(client)
        self.machines.selector.register(client.reader, selectors.EVENT_READ, lambda: self._read(client))

    def _read(self, client: Client) -> None:
        try:
            data = os.read(client.reader, 65536)
        except OSError:
            data = b""
        if not data:
            if client.is_owner:
                raise Stop
            self.machines.selector.unregister(client.reader)
            os.close(client.reader)
            self.clients.remove(client)
            self._waiters = [waiter for waiter in self._waiters if waiter.client is not client]
            return
        *lines, client.buffer = (client.buffer + data).split(b"\n")
        for line in lines:
            if line.strip():
                self._command(client, json.loads(line))

    def _check_owner(self) -> None:
        # The pipe's end is not enough: a process that the owner forked may hold it open.
        pid, start = self.owner
        if pid and not processes.is_alive(pid, start):
            raise Stop


def _stop(*_: object) -> None:
    raise Stop


def _write_all(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


def main() -> None:
    """Entry point; the argument is the fleet's configuration as JSON."""
    config = json.loads(sys.argv[1])
    directory = short_directory(DIRECTORY_PREFIX)
    janitor = Janitor(directory)
    # What Ray prints must not get between the answers.
    answers = os.dup(1)
    os.dup2(2, 1)
    signal.signal(signal.SIGTERM, _stop)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    import_ray()  # after the janitor's fork, and once for all hosts that are forked from here

    machines = Machines(
        shape=SliceShape(**config["shape"]),
        cpus_per_host=config["cpus_per_host"],
        object_store_bytes=config["object_store_bytes_per_host"],
        object_store_directory=config["object_store_directory"],
        dashboard_agents=config["dashboard_agents"],
        directory=directory,
        selector=selectors.DefaultSelector(),
        janitor=janitor,
        private=(answers,),
        say=lambda text: supervisor.say(text),
    )
    supervisor = Supervisor(
        machines,
        owner=(config["owner_pid"], config["owner_start"]),
        control=os.path.join(directory, "control"),
        answers=answers,
    )
    try:
        supervisor.run(config["slices"])
    except Stop:
        pass
    finally:
        supervisor.stop()


if __name__ == "__main__":
    main()
