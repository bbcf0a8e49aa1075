"""Local fleets that were started by hand and outlive the command that started them: their state files."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import signal
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from prefect_tpu.core.errors import ConfigurationError, ProvisioningError
from prefect_tpu.fleets.local_control import (
    COMMAND_TIMEOUT_SECONDS,
    STOP_TIMEOUT_SECONDS,
    Progress,
    SupervisorProcess,
    request_by_socket,
)
from prefect_tpu.fleets.local_fleet import LocalFleet
from prefect_tpu.linux import places, processes

DEFAULT_NAME = "default"
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,39}")
_POLL_SECONDS = 0.1
_STATE, _LOG, _SETTING = "the state files of local fleets", "the log of a local fleet", "PREFECT_HOME"


@dataclass(frozen=True, slots=True)
class FleetState:
    """What is written down about a fleet that is up.

    Attributes:
        name: given with --name.
        pid: of its supervisor.
        start: when the supervisor started, in clock ticks since boot; tells it from a later process with its id.
        address: Ray's "host:port".
        control: unix socket for commands.
        log: what the supervisor wrote.
        start_timeout_seconds: for restoring and adding hosts.
        token: lets into its Ray cluster; only its owner can read the file.
        machine: boot and pid namespace in which `pid` and `start` mean something; "" in files of older versions.
    """

    name: str
    pid: int
    start: int
    address: str
    control: str
    log: str
    start_timeout_seconds: float
    token: str = field(default="", repr=False)
    machine: str = ""

    @property
    def alive(self) -> bool:
        return self.machine in ("", processes.machine()) and processes.is_alive(self.pid, self.start)


class FleetNotUpError(ProvisioningError):
    """No fleet of that name is up."""


def state_directory() -> Path:
    """Where state files are: $PREFECT_HOME/tpu, else ~/.prefect-tpu.

    Raises:
        ConfigurationError: there is no home directory.
    """
    given = os.environ.get("PREFECT_HOME")
    if given and not given.startswith("~"):
        return Path(given) / "tpu"
    home = places.home_directory("PREFECT_HOME")
    return home / given.removeprefix("~").lstrip("/") / "tpu" if given else home / ".prefect-tpu"


def up(name: str, fleet: LocalFleet, progress: Progress) -> FleetState:
    """Start a fleet that stays up until `down`.

    Raises:
        ProvisioningError: it did not come up, or one of that name is up already.
    """
    file = _state_file(name)
    with _locked(file):
        old = _read(file)
        if old is not None and old.alive:
            raise ProvisioningError(
                f"A fleet called {name!r} is up already at {old.address}. Use it, end it with "
                f"`prefect-tpu fleet down{_name_option(name)}`, or give another --name."
            )
        if old is not None:
            progress(_stale_text(old))
            file.unlink(missing_ok=True)
        log = file.with_suffix(".log")
        places.need_room(str(file.parent), _LOG, _SETTING)
        with places.usable(log, _LOG, _SETTING):
            log_file = open(log, "w+b", opener=_for_owner_alone)  # noqa: SIM115
        with log_file:
            supervisor = SupervisorProcess(fleet.configuration(), progress, log_file)
            try:
                ready = supervisor.wait_ready(fleet.start_timeout_seconds)
                state = FleetState(
                    name=name,
                    pid=ready["pid"],
                    start=processes.start_of(ready["pid"]),
                    address=ready["address"],
                    control=ready["control"],
                    log=str(log),
                    start_timeout_seconds=fleet.start_timeout_seconds,
                    token=supervisor.token,
                    machine=processes.machine(),
                )
                _write(file, state)
                supervisor.let_go(str(file))
            except BaseException:
                supervisor.stop()
                raise
    return state


def find(name: str) -> FleetState:
    """The fleet of that name.

    Raises:
        FleetNotUpError: there is none; a state file that an earlier one left is removed.
    """
    file = _state_file(name)
    state = _read(file)
    if state is not None and state.alive:
        return state
    others = [one.stem for one in sorted(file.parent.glob("*.json")) if one != file and (s := _read(one)) and s.alive]
    hint = f" Up are: {', '.join(others)} (--name)." if others else ""
    start = f"Start one with `prefect-tpu fleet up{_name_option(name)}`."
    if state is None:
        raise FleetNotUpError(f"No fleet called {name!r} is up.{hint} {start}")
    file.unlink(missing_ok=True)
    raise FleetNotUpError(f"{_stale_text(state)}{hint} {start}")


def token_of(address: str) -> str | None:
    """Of the fleet of this user that is up at "host:port", whatever its name is."""
    with contextlib.suppress(OSError, RuntimeError):  # no home, or not readable: none of ours
        for file in sorted(state_directory().glob("*.json")):
            state = _read(file)
            if state is not None and state.address == address and state.alive:
                return state.token or None
    return None


def request(name: str, do: str, progress: Progress, *, starts_hosts: bool = False, **arguments: Any) -> Any:
    """Send one command to the fleet of that name and wait for its answer."""
    state = find(name)
    timeout_seconds = state.start_timeout_seconds if starts_hosts else COMMAND_TIMEOUT_SECONDS
    return request_by_socket(state.control, do, progress=progress, timeout_seconds=timeout_seconds, **arguments)


def down(name: str, progress: Progress) -> FleetState:
    """End the fleet of that name and wait until its supervisor is gone; hosts are gone before that."""
    state = find(name)
    try:
        request_by_socket(state.control, "stop", progress=progress, timeout_seconds=STOP_TIMEOUT_SECONDS)
    except ProvisioningError:
        # It does not answer. Its janitor ends what it leaves behind.
        supervisor = processes.read_process(state.pid)
        if supervisor is not None and supervisor.start == state.start:
            processes.signal_process(supervisor, signal.SIGKILL)
    deadline = time.monotonic() + STOP_TIMEOUT_SECONDS
    while state.alive:
        if time.monotonic() > deadline:
            raise ProvisioningError(f"The supervisor of fleet {name!r} (pid {state.pid}) does not end.")
        time.sleep(_POLL_SECONDS)
    _state_file(name).unlink(missing_ok=True)
    return state


def _state_file(name: str) -> Path:
    if not _NAME.fullmatch(name):
        raise ConfigurationError(
            f"{name!r} cannot be a fleet's name: up to 40 small letters, digits and dashes, no dash first."
        )
    return state_directory() / f"{name}.json"


def _read(file: Path) -> FleetState | None:
    with places.usable(file, _STATE, _SETTING):
        try:
            text = file.read_bytes()
        except FileNotFoundError:
            return None
    try:
        return FleetState(**json.loads(text))
    except (ValueError, TypeError):
        # Half written or of another version: nothing that could be up can be found by it.
        file.unlink(missing_ok=True)
        return None


def _write(file: Path, state: FleetState) -> None:
    part = file.with_suffix(".part")
    with places.usable(file, _STATE, _SETTING):
        with open(part, "w", opener=_for_owner_alone) as text:
            text.write(json.dumps(asdict(state), indent=1))
        part.replace(file)


@contextlib.contextmanager
def _locked(file: Path) -> Iterator[None]:
    with places.usable(file.parent, _STATE, _SETTING):
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        file.parent.chmod(0o700)  # an earlier version made it readable for all
        lock = open(file.with_suffix(".lock"), "w", opener=_for_owner_alone)  # noqa: SIM115
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ProvisioningError(
                f"Another `prefect-tpu fleet up` starts the fleet {file.stem!r} right now. Wait for it."
            ) from None
        yield


def _for_owner_alone(path: str, flags: int) -> int:
    """Opens a file of mode 0600, also one that is there already."""
    descriptor = os.open(path, flags, 0o600)
    os.fchmod(descriptor, 0o600)
    return descriptor


def _stale_text(state: FleetState) -> str:
    return (
        f"The fleet {state.name!r} that was at {state.address} is not up any more (its supervisor, process "
        f"{state.pid}, is gone); its state file is removed."
    )


def _name_option(name: str) -> str:
    return "" if name == DEFAULT_NAME else f" --name {name}"
