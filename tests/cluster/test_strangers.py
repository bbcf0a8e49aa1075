"""Nobody gets into a local fleet but who started it: on none of its ports, as the same user or another one."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from prefect_tpu import LocalFleet, TpuMultisliceRunner, task
from prefect_tpu.fleets import tokens
from prefect_tpu.linux import ports
from tests.processes import descendants
from tests.waiting import eventually

CALLS = (
    "NodeInfoGcsService/GetClusterId",
    "InternalKVGcsService/InternalKVPut",
    "JobInfoGcsService/AddJob",
    "NodeManagerService/RequestWorkerLease",
    "CoreWorkerService/PushTask",
    "ObjectManagerService/Push",
)
UNAUTHENTICATED = "16"
UNIMPLEMENTED = "12"
NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""Reads no certificates: they may lie where another user cannot read."""
NOBODY = 65534
ANSWER_SECONDS = 2.0
DRIVER = """
import sys, ray
from ray._private import ray_constants
ray_constants.ENABLE_RAY_CLUSTER = False
ray.init(sys.argv[1], configure_logging=False, log_to_driver=False)
print("in")
"""


@dataclass
class Port:
    """One that a process of the fleet listens on."""

    host: str
    number: int
    pid: int
    program: str

    @property
    def key(self) -> tuple[int, int]:
        return self.pid, self.number


def sockets_of(pids: list[int]) -> set[str]:
    found = set()
    for pid in pids:
        with contextlib.suppress(OSError):
            for one in os.listdir(f"/proc/{pid}/fd"):
                with contextlib.suppress(OSError):
                    found.add(os.readlink(f"/proc/{pid}/fd/{one}"))
    return found


def ports_of(pids: list[int]) -> list[Port]:
    """All that they listen on, on whatever address, as the kernel tells."""
    owners = {link: pid for pid in pids for link in sockets_of([pid])}
    found = []
    for host, number, inode in ports.listening():
        pid = owners.get(f"socket:[{inode}]")
        if pid is not None:
            found.append(Port(host, number, pid, Path(f"/proc/{pid}/cmdline").read_bytes().decode()))
    return found


@dataclass
class Busy:
    """The fleet, while a gang over all its hosts runs."""

    fleet: LocalFleet
    ports: list[Port]
    coordinator: int
    host_processes: set[int]
    directory: str


@pytest.fixture(scope="module")
def busy(fleet: LocalFleet, prefect_server: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Busy]:
    """A gang with JAX's runtime on both slices; in the end it returns what it should, whatever strangers have done."""
    folder = tmp_path_factory.mktemp("busy")
    results: list[Any] = []

    @task(task_runner=TpuMultisliceRunner(pool=fleet, num_slices=2))
    def wait(folder: str) -> tuple[bool, int]:
        import time

        import jax
        from jax._src import distributed
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices("all are here")
        coordinator = distributed.global_state.coordinator_address.rpartition(":")[2]
        (Path(folder) / f"{jax.process_index()}.{os.getpid()}.{coordinator}").touch()
        while not (Path(folder) / "end").exists():
            time.sleep(0.05)
        multihost_utils.sync_global_devices("and still")
        seen = (
            any(name.startswith("RAY_AUTH") for name in os.environ)
            or b"RAY_AUTH" in Path("/proc/self/environ").read_bytes()
        )
        return seen, jax.process_index()

    fleet.connect()
    before = {one.key for one in ports_of([os.getpid()])}
    thread = threading.Thread(target=lambda: results.append(wait(str(folder))))
    thread.start()
    try:
        there = eventually(lambda: (found := list(folder.iterdir())) and len(found) == 4 and found, "all hosts", 60)
        pid = fleet.status()["pid"]
        _, pids, coordinators = zip(*(one.name.split(".") for one in there), strict=True)
        hosts = {int(one) for one in pids}
        found = [one for one in ports_of([os.getpid(), pid, *descendants(pid), *hosts]) if one.key not in before]
        yield Busy(fleet, found, int(coordinators[0]), hosts, fleet.status()["directory"])
    finally:
        (folder / "end").touch()
        thread.join(60)
    assert results == [[(False, number) for number in range(4)]]


def call(port: int, method: str) -> str | None:
    """gRPC's status of a call without a token; None if what listens there speaks no gRPC."""
    try:
        with httpx.Client(http1=False, http2=True, trust_env=False, verify=NO_TLS, timeout=ANSWER_SECONDS) as client:
            answer = client.post(
                f"http://127.0.0.1:{port}/ray.rpc.{method}",
                headers={"content-type": "application/grpc", "te": "trailers"},
                content=bytes(5),
            )
    except httpx.HTTPError:
        return None
    return answer.headers.get("grpc-status", f"let in: {answer.content!r}")


def test_every_port_is_on_loopback(busy: Busy) -> None:
    """Those of Ray, of agents, and of JAX in the host processes."""
    assert len(busy.ports) > 15
    assert busy.coordinator in {one.number for one in busy.ports}
    assert [one for one in busy.ports if one.host not in ("127.0.0.1", "::ffff:127.0.0.1")] == []
    assert [one for one in busy.ports if "DashboardAgent" in one.program] == []


def ask(port: int) -> str:
    """What who has no token is told at a port: "refused", or whatever else it does."""
    with contextlib.suppress(TimeoutError), socket.create_connection(("127.0.0.1", port), 2) as connection:
        connection.settimeout(1.5)
        if connection.recv(1) == b".":
            return "a heartbeat, which reads nothing"
    first = call(port, CALLS[0])
    said = {first} if first is None else {call(port, method) for method in CALLS}
    if UNAUTHENTICATED in said and said <= {UNAUTHENTICATED, UNIMPLEMENTED}:
        return "refused"  # the others are calls that this server does not have
    if said != {None}:
        return f"gRPC: {said}"
    for path in ("/api/job_agent/jobs/", "/api/jobs/", "/get_or_create_runtime_env"):
        try:
            job = {"entrypoint": "true"}
            answer = httpx.post(f"http://127.0.0.1:{port}{path}", json=job, verify=NO_TLS, timeout=ANSWER_SECONDS)
        except httpx.HTTPError:
            return "neither gRPC nor HTTP"
        if answer.status_code != 401:
            return f"HTTP: {answer}"
    return "refused"


def test_no_port_lets_in_who_has_no_token(busy: Busy) -> None:
    """Each of Ray's refuses gRPC calls and HTTP requests. JAX's own ask nobody, which docs/security.md says."""
    with ThreadPoolExecutor(32) as pool:
        asked = {one.number: pool.submit(ask, one.number) for one in busy.ports}
        told = {number: one.result() for number, one in asked.items()}
    assert told.pop(busy.coordinator).startswith("gRPC: {'12'")
    rays = {one.number for one in busy.ports if one.number in told and one.pid not in busy.host_processes}
    assert {told[one] for one in rays} <= {"refused", "a heartbeat, which reads nothing"}, told
    assert {told[one] for one in told if one not in rays} <= {"neither gRPC nor HTTP"}, told


def test_garbage_harms_nobody(busy: Busy) -> None:
    """Whatever comes; the gang's own result is looked at in the end."""
    for one in busy.ports:
        if one.number == busy.coordinator:
            continue
        for data in (b"\xff" * 70_000, b"GET / HTTP/1.1\r\n\r\n", b""):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", one.number), 2) as connection:
                connection.sendall(data)
    assert {host["state"] for one in busy.fleet.status()["slices"] for host in one["hosts"]} == {"up"}


def test_a_driver_without_the_token_is_refused(busy: Busy, tmp_path: Path) -> None:
    """The same user, and Ray itself."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    env |= {"HOME": str(tmp_path), "RAY_NUM_REDIS_GET_RETRIES": "1"}
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, busy.fleet.address],
        capture_output=True, text=True, timeout=100, env=env,
    )  # fmt: skip
    assert done.returncode != 0
    assert "in\n" not in done.stdout
    assert "Unauthenticated" in done.stderr or "AuthenticationError" in done.stderr, done.stderr


def as_nobody(do: Callable[[], Any]) -> Any:
    """What another user gets, in a fork of this process: that user cannot start this Python everywhere."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            signal.alarm(30)
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
            os.write(writer, json.dumps(do()).encode())
        except BaseException as error:  # noqa: BLE001 - it has nowhere else to go
            os.write(writer, json.dumps(repr(error)).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        said = pipe.read()
    os.waitpid(pid, 0)
    return json.loads(said)


def readable(paths: list[str], control: str) -> list[str]:
    """Those that can be read, and the socket if it takes a connection."""
    found = [path for path in paths if os.access(path, os.R_OK)]
    with contextlib.suppress(PermissionError), socket.socket(socket.AF_UNIX) as one:
        one.connect(control)
        found.append(control)
    return found


@pytest.mark.skipif(os.getuid() != 0, reason="becomes another user")
def test_another_user_gets_in_nowhere(busy: Busy) -> None:
    """Not by Ray's ports, not to files, not to the supervisor's socket; nor to the token in what it starts."""
    pid = busy.fleet.status()["pid"]
    files = [str(one) for one in Path(busy.directory).rglob("*") if one.is_file()]
    files += [f"/proc/{one}/environ" for one in (pid, *descendants(pid))]
    control = f"{busy.directory}/control"
    assert len(files) > 20
    assert readable(files, control)[-1] == control
    assert as_nobody(lambda: readable(files, control)) == []
    numbers = [one.number for one in busy.ports if "/raylet/raylet" in one.program or "/gcs/gcs_server" in one.program]
    assert len(numbers) > 8
    assert as_nobody(lambda: [ask(one) for one in numbers]) == ["refused"] * len(numbers)


def test_the_token_stays_where_it_belongs(busy: Busy) -> None:
    """Not in a command line, not in a file of Ray's, not in this process's environment; only in its own processes'."""
    token = tokens.token_of(busy.fleet.address)
    assert token is not None
    assert len(token) == 64
    pid = busy.fleet.status()["pid"]
    everything = [pid, os.getpid(), *descendants(os.getpid())]
    for one in everything:
        with contextlib.suppress(OSError):
            assert token.encode() not in Path(f"/proc/{one}/cmdline").read_bytes()
    assert token not in os.environ.values()
    assert not [one for one in Path(busy.directory).rglob("*") if one.is_file() and token.encode() in one.read_bytes()]
    child = subprocess.run([sys.executable, "-c", "import os; print(dict(os.environ))"], capture_output=True, text=True)
    assert token not in child.stdout
    assert token not in repr(busy.fleet)
