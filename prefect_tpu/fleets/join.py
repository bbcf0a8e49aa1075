"""Makes the driver's machine part of a Ray cluster, for as long as the driver lives: `RayFleet(join=True)`."""

from __future__ import annotations

import contextlib
import json
import select
import subprocess
import tempfile
import threading
import time
from dataclasses import dataclass
from typing import IO

from prefect_tpu.cluster import addresses, auth, exit_hooks, session
from prefect_tpu.core.errors import ConfigurationError
from prefect_tpu.fleets.fleet import Say
from prefect_tpu.fleets.local_environment import supervisor_environment
from prefect_tpu.fleets.tokens import token_of
from prefect_tpu.linux.places import new_short_directory
from prefect_tpu.linux.programs import start_program

START_SECONDS = 120.0
END_SECONDS = 10.0
OBJECT_STORE_BYTES = 2 * 1024**3
"""Of the node: arguments and results pass through it."""
MAX_SHOWN_CHARS = 2_000


@dataclass(slots=True)
class _Joined:
    address: str
    process: subprocess.Popen[bytes]


_lock = threading.Lock()
_joined: _Joined | None = None


def connect(address: str, *, namespace: str, joining: bool, say: Say | None) -> str:
    """Connect this process to a Ray cluster, of which its machine is a part or becomes one.

    Args:
        address: "auto" or "host:port".
        namespace: Ray's, for named actors.
        joining: have this machine join it first.
        say: told when something has to be done.

    Returns:
        The cluster's "host:port".

    Raises:
        ConfigurationError: not reachable, connected elsewhere, or this machine cannot join it.
    """
    if say is not None and session.address() is None:
        say(f"connecting to Ray at {address}" + (", joining it first" if joining else ""))
    if joining and session.address() != address:
        join(addresses.resolve(address))
    return session.connect(address, namespace=namespace, token_of=token_of)


def join(address: str) -> None:
    """Have a node without resources on this machine join the cluster at "host:port". Idempotent; waits until it is up.

    Raises:
        ConfigurationError: it does not start; with the end of what it said.
    """
    global _joined
    with _lock:
        if _joined is not None and _joined.address == address and _joined.process.poll() is None:
            return
        _leave_locked()
        access = auth.access_to(address, token_of)
        auth.check(address, access)
        directory = new_short_directory("ptpu-")
        with tempfile.TemporaryFile() as log:
            process = start_program(
                "prefect_tpu.sidecars.joined_node",
                [address, directory, str(OBJECT_STORE_BYTES)],
                environment=supervisor_environment() | access.environment(),
                stdout=subprocess.PIPE,
                stderr=log,
            )
            assert process.stdout is not None
            if not _is_up(process):
                _end(process)
                raise ConfigurationError(
                    f"no node of this machine could join Ray at {address} within {START_SECONDS:g} s. It must reach "
                    "the head and be reached by the hosts, with the cluster's Ray and Python versions. It said: "
                    + _tail(log)
                )
        exit_hooks.at_exit("joined node", leave)
        _joined = _Joined(address, process)


def leave() -> None:
    """End the node, if there is one."""
    with _lock:
        _leave_locked()


def _leave_locked() -> None:
    global _joined
    joined, _joined = _joined, None
    if joined is not None:
        _end(joined.process)


def _is_up(process: subprocess.Popen[bytes]) -> bool:
    assert process.stdout is not None
    give_up = time.monotonic() + START_SECONDS
    while (left := give_up - time.monotonic()) > 0:
        if select.select([process.stdout], [], [], min(left, 1.0))[0]:
            line = process.stdout.readline()
            with contextlib.suppress(ValueError):
                return "node_id" in json.loads(line)
            if not line:
                return False
        elif process.poll() is not None:
            return False
    return False


def _end(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    with contextlib.suppress(OSError):
        process.stdin.close()
    try:
        process.wait(END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdout is not None:
        process.stdout.close()


def _tail(log: IO[bytes]) -> str:
    log.seek(0)
    return log.read().decode(errors="replace").strip()[-MAX_SHOWN_CHARS:] or "nothing"
