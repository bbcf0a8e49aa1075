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
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from prefect_tpu.cluster.start_node import import_ray
from prefect_tpu.core.topology import SliceShape
from prefect_tpu.linux import places, processes
from prefect_tpu.sidecars.fleet_clients import MAX_CLIENTS, Client
from prefect_tpu.sidecars.fleet_janitor import Janitor
from prefect_tpu.sidecars.fleet_machines import CommandRefusedError, HeadLostError, HostState, Machines

TICK_SECONDS = 0.5
DIRECTORY_PREFIX = "ptpu-"


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
        commands, answers: descriptors that the owner writes to and reads from.
        state_file: removed in the end, if there is one.
    """

    machines: Machines
    owner: tuple[int, int]
    control: str
    commands: int
    answers: int
    state_file: str | None = None
    clients: list[Client] = field(default_factory=list)
    _over: bool = False
    _waiters: list[Waiter] = field(default_factory=list)
    _listener: socket.socket = field(default_factory=lambda: socket.socket(socket.AF_UNIX))

    def run(self, slices: int) -> None:
        """Start everything, then obey until told to stop."""
        selector = self.machines.selector
        self._listener.bind(self.control)
        self._listener.listen()
        self._listener.setblocking(False)
        selector.register(self._listener, selectors.EVENT_READ, self._accept)
        owner = self._add_client(self.commands, self.answers, is_owner=True)
        try:
            self.machines.start_head()
            first = [self.machines.head]
            for _ in range(slices):
                first += self.machines.add_slice()
            ready = {"control": self.control, "directory": self.machines.directory, "pid": os.getpid()}
            self._waiters.append(Waiter(owner, 0, first, lambda: ready | {"address": self.machines.address}))
            while not self._over:
                for key, _ in selector.select(TICK_SECONDS):
                    key.data()
                self.machines.tick()
                self._answer_waiters()
                self._check_owner()
        except HeadLostError as error:
            for waiter in self._waiters:
                waiter.client.answer({"id": waiter.request_id, "ok": False, "error": str(error)})

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
        for client in list(self.clients):
            client.news({"progress": text})

    def _command(self, client: Client, request: dict[str, Any]) -> None:
        """Do it and answer; whatever goes wrong with one command ends neither the fleet nor another's."""
        number = request["id"]
        try:
            later = self._do(client, request)
        except CommandRefusedError as refused:
            client.refuse(str(refused), number)
        except HeadLostError:
            raise
        except Exception as error:  # noqa: BLE001 - told and logged
            traceback.print_exc()
            says = f"{request['do']} failed inside the fleet's supervisor: {type(error).__name__}: {error}"
            client.answer({"id": number, "ok": False, "error": says})
        else:
            if isinstance(later, Waiter):
                self._waiters.append(later)
            else:
                client.answer({"id": number, "ok": True, "value": later})
        if request["do"] == "stop":
            raise Stop

    def _do(self, client: Client, request: dict[str, Any]) -> Any:
        """The answer's value, or who waits for it."""
        number, target = request["id"], request.get("target")
        match request["do"]:
            case "preempt":
                return self.machines.preempt(target)
            case "drain":
                return self.machines.drain(target, float(request["seconds"]))
            case "restore":
                return Waiter(client, number, self.machines.restore(target), lambda: None)
            case "add_slice":
                added = self.machines.add_slice(request.get("name"))
                return Waiter(client, number, added, lambda: added[0].slice_name)
            case "remove_slice":
                return self.machines.remove_slice(target)
            case "status":
                return self.machines.status()
            case "detach":
                if not client.is_owner:
                    raise CommandRefusedError("only who started the fleet can let it go")
                self.state_file, self.owner, client.is_owner = request["state_file"], (0, 0), False
            case "stop":
                self.stop()
        return None

    def _answer_waiters(self) -> None:
        for waiter in list(self._waiters):
            if any(host.state == "starting" for host in waiter.hosts):
                continue
            self._waiters.remove(waiter)
            down = [host for host in waiter.hosts if host.state == "down"]
            if down:
                text = "; ".join(f"{host.name}: {host.error or 'killed while it started'}" for host in down)
                waiter.client.answer({"id": waiter.request_id, "ok": False, "error": f"not up: {text}"})
            else:
                waiter.client.answer({"id": waiter.request_id, "ok": True, "value": waiter.value()})

    def _accept(self) -> None:
        try:
            descriptor = self._listener.accept()[0].detach()
        except OSError as error:  # it has gone already, or there is no room for one more
            print(f"a client could not be heard: {error}", file=sys.stderr, flush=True)
            return
        client = self._add_client(descriptor, descriptor)
        if len(self.clients) > MAX_CLIENTS:
            client.refuse(f"more than {MAX_CLIENTS} connections to this fleet at the same time")
            client.close()

    def _add_client(self, reader: int, writer: int, *, is_owner: bool = False) -> Client:
        client = Client(reader, writer, self.machines.selector, self._command, self._gone, is_owner=is_owner)
        self.clients.append(client)
        return client

    def _gone(self, client: Client) -> None:
        self._over = self._over or client.is_owner
        self.clients.remove(client)
        self._waiters = [waiter for waiter in self._waiters if waiter.client is not client]

    def private(self) -> Iterable[int]:
        """What hosts must not keep open."""
        return [one for client in self.clients for one in (client.reader, client.writer)]

    def _check_owner(self) -> None:
        # The pipe's end is not enough: a process that the owner forked may hold it open.
        pid, start = self.owner
        if pid and not processes.is_alive(pid, start):
            raise Stop


def _stop(*_: object) -> None:
    raise Stop


def main() -> None:
    """Entry point; the argument is the fleet's configuration as JSON."""
    config = json.loads(sys.argv[1])
    directory = places.new_short_directory(DIRECTORY_PREFIX)
    janitor = Janitor(directory)
    # What Ray prints must not get between the answers; and 0 stays taken when the owner has gone.
    commands, answers = os.dup(0), os.dup(1)
    with open(os.devnull) as null:
        os.dup2(null.fileno(), 0)
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
        private=lambda: supervisor.private(),
        say=lambda text: supervisor.say(text),
    )
    supervisor = Supervisor(
        machines,
        owner=(config["owner_pid"], config["owner_start"]),
        control=os.path.join(directory, "control"),
        commands=commands,
        answers=answers,
    )
    try:
        supervisor.run(config["slices"])
    except Stop:
        pass
    finally:
        supervisor.stop()
        for client in list(supervisor.clients):
            client.finish()


if __name__ == "__main__":
    main()
