"""The local fleets of this process, and their supervisors."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any, Protocol

from prefect_tpu.cluster import exit_hooks
from prefect_tpu.core.topology import SliceShape
from prefect_tpu.fleets.fleet import Say
from prefect_tpu.fleets.local_control import COMMAND_TIMEOUT_SECONDS, SupervisorProcess

log = logging.getLogger("prefect_tpu.fleet")


class Simulated(Hashable, Protocol):
    """What is asked of a LocalFleet."""

    @property
    def slices(self) -> int: ...

    @property
    def shape(self) -> SliceShape: ...

    @property
    def start_timeout_seconds(self) -> float: ...

    def describe(self) -> str: ...

    def configuration(self) -> dict[str, Any]: ...


@dataclass(slots=True)
class Running:
    """A local fleet that is up."""

    supervisor: SupervisorProcess
    address: str

    def request(self, do: str, *, timeout_seconds: float = COMMAND_TIMEOUT_SECONDS, **arguments: Any) -> Any:
        return self.supervisor.request(do, timeout_seconds=timeout_seconds, **arguments)


class Registry:
    """The local fleets of this process, by configuration."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """In a forked process: those of the first one are not its own."""
        self._lock = threading.Lock()
        self._starting: dict[Simulated, threading.Lock] = {}
        self._running: dict[Simulated, Running] = {}

    def get(self, fleet: Simulated) -> Running | None:
        with self._lock:
            running = self._running.get(fleet)
        return running if running is not None and running.supervisor.alive else None

    def died(self, fleet: Simulated) -> str | None:
        """How it ended and what it said last, if it was up and has ended by itself."""
        with self._lock:
            running = self._running.get(fleet)
        return None if running is None or running.supervisor.alive else running.supervisor.obituary()

    def token_of(self, address: str) -> str | None:
        """Of the fleet at "host:port"."""
        with self._lock:
            found = [one.supervisor for one in self._running.values() if one.address == address]
        return next((one.token for one in found if one.alive), None)

    def start(self, fleet: Simulated, say: Say | None) -> Running:
        with self._lock:
            turn = self._starting.setdefault(fleet, threading.Lock())
        with turn:
            running = self.get(fleet)
            if running is not None:
                return running
            with self._lock:
                died = self._running.pop(fleet, None)
            if died is not None:
                log.warning(
                    "%s has ended unexpectedly; starting it again. %s", fleet.describe(), died.supervisor.obituary()
                )
            running = self._start(fleet, say)
            with self._lock:
                exit_hooks.at_exit("local fleets", self.close_all)
                self._running[fleet] = running
            return running

    def _start(self, fleet: Simulated, say: Say | None) -> Running:
        def tell(text: str) -> None:
            log.info("%s", text)
            if say is not None:
                say(text)

        shape = fleet.shape
        tell(
            f"starting {fleet.slices} simulated {shape} slices on this machine: "
            f"{fleet.slices * shape.hosts} hosts with {shape.chips_per_host} chips each"
        )
        supervisor = SupervisorProcess(fleet.configuration(), tell)
        try:
            answer = supervisor.wait_ready(fleet.start_timeout_seconds)
        except BaseException:
            supervisor.stop()
            raise
        return Running(supervisor, answer["address"])

    def close(self, fleet: Simulated) -> None:
        with self._lock:
            running = self._running.pop(fleet, None)
        if running is None:
            return
        from prefect_tpu.cluster import session

        # First: a driver whose own raylet vanishes is ended by Ray.
        session.disconnect(running.address)
        running.supervisor.stop()

    def close_all(self) -> None:
        for fleet in list(self._running):
            self.close(fleet)


registry = Registry()
os.register_at_fork(after_in_child=registry.forget)
