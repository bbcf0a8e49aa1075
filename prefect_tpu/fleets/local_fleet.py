"""Simulated slices on this machine."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from typing import Any, Self

from prefect_tpu.core import clock
from prefect_tpu.core.errors import ConfigurationError, ProvisioningError
from prefect_tpu.core.topology import DEFAULT_ACCELERATOR_TYPE, DEFAULT_TOPOLOGY, SliceShape
from prefect_tpu.fleets.fleet import Demand, Say
from prefect_tpu.fleets.local_registry import Running, registry
from prefect_tpu.options.given import GivenOptions

DEFAULT_OBJECT_STORE_BYTES = 2 * 1024**3
"""Taken from shared memory as it is used; what does not fit goes to disk."""
DEFAULT_START_TIMEOUT_SECONDS = 180.0
MAX_SLICES = 64
"""Far more raylets than one machine can start; catches a number that was meant for something else."""


@dataclass(frozen=True, slots=True)
class LocalFleet:
    """Simulated TPU slices on this machine: one real raylet per host, chips as JAX CPU devices.

    A value: equal configurations are the same fleet inside a process. Nothing starts until `connect()`, which
    a gang calls by itself. It ends with the process, however that ends, or at `close()`.

        with LocalFleet(slices=2) as fleet:
            fleet.preempt("slice-1")

    Args:
        slices: how many at the start; they are called slice-0, slice-1, ... None at all (0) is for `add_slice`.
        accelerator_type: "v4", "v5e", ...
        topology: of every slice, "2x2x2".
        chips_per_host: None for what hosts of this type have.
        cpus_per_host: CPUs that Ray counts for each host. Gangs do not use them.
        object_store_bytes_per_host: of Ray's object store on each host.
        object_store_directory: where it lives; None for shared memory, or the disk if that is too small.
        start_timeout_seconds: for starting, restoring and adding hosts.
        dashboard_agents: each host gets Ray's agent for metrics, profiles and jobs, where `ray[default]` is installed.

    Raises:
        TopologyError: unknown type or topology, or it does not divide into hosts.
        ConfigurationError: another value that cannot be right.
    """

    slices: int = 2
    accelerator_type: str = DEFAULT_ACCELERATOR_TYPE
    topology: str = DEFAULT_TOPOLOGY
    chips_per_host: int | None = None
    cpus_per_host: int = 1
    object_store_bytes_per_host: int = DEFAULT_OBJECT_STORE_BYTES
    object_store_directory: str | None = None
    start_timeout_seconds: float = DEFAULT_START_TIMEOUT_SECONDS
    dashboard_agents: bool = False

    def __post_init__(self) -> None:
        _check_whole("slices", self.slices, 0, MAX_SLICES)
        _check_whole("cpus_per_host", self.cpus_per_host, 0, 1024)
        _check_whole("object_store_bytes_per_host", self.object_store_bytes_per_host, 80 * 1024**2, 1024**4)
        if self.object_store_directory is not None and not os.path.isdir(self.object_store_directory):
            raise ConfigurationError(
                f"LocalFleet(object_store_directory={self.object_store_directory!r}): must be a directory, or None"
            )
        seconds = self.start_timeout_seconds
        if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not seconds > 0:
            raise ConfigurationError(f"LocalFleet(start_timeout_seconds={seconds!r}): must be more than 0")
        if not isinstance(self.dashboard_agents, bool):
            raise ConfigurationError(f"LocalFleet(dashboard_agents={self.dashboard_agents!r}): must be True or False")
        self.shape  # noqa: B018 - checks type, topology and chips

    @property
    def shape(self) -> SliceShape:
        """What its slices are made of."""
        from prefect_tpu.cluster import tpu

        return tpu.resolve_shape(self.accelerator_type, self.topology, self.chips_per_host)

    @property
    def address(self) -> str:
        """The "host:port" of its Ray cluster, "" when it is not up."""
        running = registry.get(self)
        return running.address if running else ""

    def access(self) -> dict[str, str]:
        """Variables for another process of yours that is to use this fleet too, with its token: a secret.

        subprocess.run([...], env=os.environ | fleet.access())
        """
        return {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self._running().supervisor.token,
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # else plain Ray looks for loopback at the outer address
        }

    def describe(self) -> str:
        """How messages call it."""
        where = f" at {self.address}" if self.address else ""
        return f"the local fleet of {self.slices} simulated {self.accelerator_type} {self.topology} slices{where}"

    def options(self) -> GivenOptions:
        """Of the slices that it simulates."""
        return {
            "accelerator_type": self.accelerator_type,
            "topology": self.topology,
            "chips_per_host": self.chips_per_host,
        }

    def connect(self, say: Say | None = None) -> None:
        """Start it if it is not up, and make it this process's Ray cluster.

        Args:
            say: told about the progress of a start.

        Raises:
            ProvisioningError: it did not come up.
            ConfigurationError: this process is connected to another Ray cluster.
        """
        from prefect_tpu.cluster import session

        running = registry.start(self, say)
        session.connect(running.address, token_of=lambda _: running.supervisor.token)

    def demand(self, shape: SliceShape, num_slices: int, run_id: str, say: Say) -> Demand | None:  # noqa: ARG002
        """None: it has the slices that it was made with."""
        return None

    def preempt(self, target: str) -> None:
        """Take away a whole slice ("slice-1") or one host ("slice-1/0"), at once and without notice.

        Every process of those hosts gets SIGKILL: raylets, agents, zygotes and what they run.
        """
        self._running().request("preempt", target=target)

    def drain(self, target: str, seconds: float) -> None:
        """Give a slice notice of its preemption; it is killed when the time is over.

        Ray sees a drain with reason PREEMPTION and that deadline on every host.

        Args:
            target: "slice-1".
            seconds: above 0, at most a year.

        Raises:
            ConfigurationError: other seconds; no such slice.
        """
        if not clock.is_notice(seconds):
            raise ConfigurationError(f"drain({target!r}, {seconds!r}): seconds must be {clock.NOTICE_WORDS}")
        self._running().request("drain", target=target, seconds=seconds)

    def restore(self, target: str) -> None:
        """Bring back what was preempted or is draining, and wait until it is up. What is up stays."""
        self._running().request("restore", target=target, timeout_seconds=self.start_timeout_seconds)

    def add_slice(self, name: str | None = None) -> str:
        """Add one more slice and wait until it is up.

        Args:
            name: what it is called, up to 63 letters, digits, dashes, dots, underscores; None for the next "slice-N".

        Returns:
            Its name.

        Raises:
            ConfigurationError: it cannot be called so, or there is a slice of that name.
        """
        return str(self._running().request("add_slice", name=name, timeout_seconds=self.start_timeout_seconds))

    def remove_slice(self, target: str) -> None:
        """Take away a whole slice as `preempt` does, and forget it: it cannot be restored."""
        self._running().request("remove_slice", target=target)

    def status(self) -> dict[str, Any]:
        """Every slice and host with its state ("starting", "up", "draining", "down"), JSON-able."""
        status = self._running().request("status")
        assert isinstance(status, dict)
        return status

    def slices_now(self) -> int:
        """How many slices it has, up or down: those that were added too, once it is up."""
        running = registry.get(self)
        return self.slices if running is None else len(running.request("status")["slices"])

    def close(self) -> None:
        """End it and wait until every process of it is gone. Does nothing when it is not up."""
        registry.close(self)

    def __enter__(self) -> Self:
        self.connect()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def configuration(self) -> dict[str, Any]:
        """What its supervisor has to know, JSON-able."""
        return {
            "slices": self.slices,
            "shape": asdict(self.shape),
            "cpus_per_host": self.cpus_per_host,
            "object_store_bytes_per_host": self.object_store_bytes_per_host,
            "object_store_directory": self.object_store_directory,
            "dashboard_agents": self.dashboard_agents,
        }

    def _running(self) -> Running:
        running = registry.get(self)
        if running is not None:
            return running
        died = registry.died(self)
        if died is not None:
            raise ProvisioningError(f"{self.describe()} is not up any more; connect() starts it again. {died}")
        raise ConfigurationError(f"{self.describe()} is not up in this process: call connect() first")


def _check_whole(name: str, value: object, least: int, most: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise ConfigurationError(f"LocalFleet({name}={value!r}): must be a whole number from {least} to {most}")
