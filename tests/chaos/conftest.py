"""Three real slices, one gang on two of them, and a fault in its first attempt."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prefect import flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.states import State
from ray.util import placement_group_table

from prefect_tpu import LocalFleet, TpuMultisliceRunner, task
from prefect_tpu.cluster import gcs, inventory, tpu
from prefect_tpu.sidecars.simulated_identity import MARK_VARIABLE
from tests.prefect_runs import artifact_rows, task_runs
from tests.processes import with_environment
from tests.waiting import eventually

SLICES = ("slice-0", "slice-1", "slice-2")
NUM_PROCESSES = 4
READY_SECONDS = 60.0
GONE_SECONDS = 20.0
RESTORE_SECONDS = 60.0


@pytest.fixture(scope="package", autouse=True)
def server(prefect_server: None) -> None:
    """Prefect's own, real."""


@pytest.fixture(scope="package")
def fleet() -> Iterator[LocalFleet]:
    """Three slices of two hosts; a gang of the suite takes two."""
    with LocalFleet(slices=3, accelerator_type="v4", topology="2x2x2") as running:
        yield running


@pytest.fixture
def client() -> Iterator[SyncPrefectClient]:
    """Prefect's API."""
    with get_client(sync_client=True) as api:
        yield api


def body(folder: str, first: dict[int, str], then: str) -> dict[str, Any]:
    """Runs on every host. In the first attempt each process does what `first` says, or `then`."""
    import pathlib
    import signal as signals
    import time as clock

    from prefect_tpu import runtime as here

    ctx = here.current()
    how = first.get(ctx.process_id, then) if ctx.attempt == 1 or then.startswith("every ") else "return"
    how = how.removeprefix("every ")
    mark = pathlib.Path(folder, f"{ctx.attempt}-{ctx.process_id}")
    mark.with_suffix(".tmp").write_text(f"{os.getpid()} {ctx.slice_name} {ctx.checkpoint_dir}")
    mark.with_suffix(".tmp").rename(mark)
    give_up = clock.monotonic() + 120
    while how.startswith("after ") and clock.monotonic() < give_up:
        if pathlib.Path(folder, "go").exists():
            how = how.removeprefix("after ")
        clock.sleep(0.02)
    match how:
        case "collective":
            import jax.numpy as jnp
            from jax.experimental import multihost_utils

            while clock.monotonic() < give_up:
                multihost_utils.process_allgather(jnp.ones(1))
                clock.sleep(0.02)
        case "sleep":
            clock.sleep(120)
        case "leave":
            while not ctx.draining and clock.monotonic() < give_up:
                clock.sleep(0.05)
            here.leave()
        case "leave a save behind":
            import threading

            while not ctx.draining and clock.monotonic() < give_up:
                clock.sleep(0.05)
            mine = ctx.slice_index in ctx.draining_slices

            def save() -> None:
                with pathlib.Path(folder, f"saved-{ctx.process_id}").open("w") as file:
                    for _ in range(70):
                        file.write("part\n")
                        file.flush()
                        clock.sleep(600 if mine else 0.1)

            if mine or ctx.host_index:
                save()
            else:
                threading.Thread(target=save, name="saver").start()
                here.leave()
        case "until draining":
            while not ctx.draining and clock.monotonic() < give_up:
                clock.sleep(0.05)
        case "until taken back" | "leave all the same":
            while not ctx.draining and clock.monotonic() < give_up:
                clock.sleep(0.02)
            pathlib.Path(folder, f"draining-{ctx.process_id}").write_text(str(ctx.deadline))
            while (ctx.draining or ctx.deadline is not None) and clock.monotonic() < give_up:
                clock.sleep(0.02)
            pathlib.Path(folder, f"stays-{ctx.process_id}").write_text("")
            if how == "leave all the same":
                here.leave()
        case "sync point":
            from jax.experimental import multihost_utils

            step = 0
            while not multihost_utils.reached_preemption_sync_point(step) and clock.monotonic() < give_up:
                step += 1
                clock.sleep(0.02)
            clock.sleep(0.8 * ctx.process_id)  # some save longer than others
            pathlib.Path(folder, f"sync-{ctx.process_id}").write_text(str(step))
            here.leave()
        case "report and stop":
            for step in range(3 + ctx.process_id):
                here.report(step=step)
                clock.sleep(0.6)
            clock.sleep(120)
        case "report and compile":
            here.report(step=1)

            def backend_compile() -> None:
                """Called as JAX's own is; tests/host/test_stacks.py has the real one."""
                clock.sleep(8)

            backend_compile()
        case "SIGKILL" | "SIGSEGV" | "SIGABRT":
            os.kill(os.getpid(), getattr(signals, how))
        case "exit 3":
            os._exit(3)
        case "out of memory":
            import resource

            resource.setrlimit(resource.RLIMIT_AS, (2**32, 2**32))
            return {"bytes": len(bytes(2**33))}
        case "raise":
            raise ValueError("as asked")
        case "raise preempted":
            raise ValueError("slice preempted: Socket closed")
        case "raise unpicklable":
            import threading

            class LocalError(Exception):
                held = threading.Lock()

            raise LocalError("as asked")
        case "big":
            return {"slice": ctx.slice_name, "attempt": ctx.attempt, "data": bytes(300_000_000)}
    return {"slice": ctx.slice_name, "attempt": ctx.attempt, "checkpoint_dir": ctx.checkpoint_dir}


def nothing() -> None:
    """The gang after the fault."""


@dataclass
class Story:
    """What a run left, as a person sees it through Prefect's API."""

    state: State[Any]
    run: Any
    rows: list[dict[str, Any]]
    history: list[tuple[str, str]]
    pids: dict[int, str]

    @property
    def states(self) -> list[str]:
        """Names, in order."""
        return [name for name, _ in self.history]

    def outcomes(self, attempt: int) -> set[str]:
        """Of the slices in one attempt."""
        return {row["outcome"] for row in self.rows if row["attempt"] == attempt}

    def charges(self) -> list[str]:
        """Of every attempt but the last: exactly one each."""
        return [row["charged to"] for row in self.rows if row["charged to"]]


@dataclass
class Chaos:
    """Runs gangs, and makes faults while they run."""

    fleet: LocalFleet
    client: SyncPrefectClient
    folder: Path
    errors: list[BaseException] = field(default_factory=list)

    def play(
        self,
        fault: Callable[[Chaos], None] | None = None,
        *,
        first: dict[int, str] | None = None,
        then: str = "collective",
        wait_until_ready: bool = True,
        retries: int = 0,
        **options: Any,
    ) -> Story:
        """Run a gang on two slices in a flow; `fault` is made once all of its processes are in the function."""
        runner: TpuMultisliceRunner[Any] = TpuMultisliceRunner(
            pool=self.fleet, num_slices=2, **({"lease_timeout_seconds": 90} | options)
        )
        gang = task(task_runner=runner, retries=retries, name="gang")(body)

        @flow(name="chaos")
        def story() -> Any:
            return gang(str(self.folder), first or {}, then)

        thread = threading.Thread(target=self._make, args=(fault, wait_until_ready))
        thread.start()
        try:
            state = story(return_state=True)
        finally:
            thread.join()
        if self.errors:
            raise self.errors[0]
        return self._read(state)

    def _make(self, fault: Callable[[Chaos], None] | None, wait_until_ready: bool) -> None:
        try:
            if wait_until_ready and fault is not None:
                self.ready()
            if fault is not None:
                fault(self)
        except BaseException as error:  # noqa: BLE001 - it is the test's
            self.errors.append(error)

    def ready(self, attempt: int = 1) -> list[str]:
        """Wait until every process is in the function; the names of its slices."""

        def look() -> list[Path]:
            found = [self.folder / f"{attempt}-{number}" for number in range(NUM_PROCESSES)]
            return found if all(one.exists() for one in found) else []

        marks = eventually(look, "all processes are in the function", READY_SECONDS)
        time.sleep(0.3)
        return sorted({one.read_text().split()[1] for one in marks})

    def pids(self, attempt: int = 1) -> list[int]:
        """Of the host processes, in process-id order."""
        return [int((self.folder / f"{attempt}-{n}").read_text().split()[0]) for n in range(NUM_PROCESSES)]

    def is_child(self, pid: int) -> bool:
        """Whether this is still a process of this fleet."""
        directory = os.path.basename(self.fleet.status()["directory"])
        try:
            return f"{MARK_VARIABLE}={directory}/".encode() in Path(f"/proc/{pid}/environ").read_bytes()
        except OSError:
            return False

    def on_host(self, name: str) -> dict[int, str]:
        """Every process of a simulated host, "slice-0/1"."""
        directory = self.fleet.status()["directory"]
        return with_environment(MARK_VARIABLE, f"{os.path.basename(directory)}/{name}")

    def named(self, host: str, part: str) -> int:
        """The pid of the process of a host whose command line has `part`."""
        found = [pid for pid in self.on_host(host) if part.encode() in Path(f"/proc/{pid}/cmdline").read_bytes()]
        assert found, f"{host} has no process {part!r}"
        return found[0]

    def nodes(self, names: Collection[str]) -> set[str]:
        """Ray's ids of the hosts of some slices."""
        found = [one.slice for one in inventory.summary().slices if one.name in names]
        return {host.node_id for one in found for host in one.hosts}

    def drained(self) -> list[str]:
        """The slices with a host that Ray drains: who watches one machine's notices shares them with all its hosts."""
        return [name for name in SLICES if self.nodes([name]) & set(gcs.draining())]

    def _read(self, state: State[Any]) -> Story:
        flow_run_id: UUID | None = state.state_details.flow_run_id
        assert flow_run_id is not None
        (run,) = task_runs(self.client, flow_run_id)
        records = self.client.request("GET", "/task_run_states/", params={"task_run_id": str(run.id)}).json()
        history = [(one["name"], one["message"] or "") for one in sorted(records, key=lambda one: one["timestamp"])]
        pids = {}
        for mark in self.folder.glob("[0-9]*-[0-9]"):
            pids[int(mark.read_text().split()[0])] = ""
        try:
            rows = artifact_rows(self.client, run.id)
        except AssertionError:
            rows = []  # no attempt
        return Story(state, run, rows, history, pids)


@pytest.fixture
def chaos(fleet: LocalFleet, client: SyncPrefectClient, tmp_path: Path) -> Iterator[Chaos]:
    """Afterwards nothing is left of the gang, nothing is reserved, and the next one runs."""
    one = Chaos(fleet, client, tmp_path)
    yield one
    pids = [int(mark.read_text().split()[0]) for mark in tmp_path.glob("[0-9]*-[0-9]")]
    deadline = time.monotonic() + GONE_SECONDS
    while left := [pid for pid in pids if _lives(pid)]:
        assert time.monotonic() < deadline, f"processes of the gang are left: {left}"
        time.sleep(0.1)
    for name in one.drained():  # Ray cannot take a drain back: these machines go, and others come
        fleet.preempt(name)
    for name in SLICES:
        fleet.restore(name)
    shape = tpu.resolve_shape("v4", "2x2x2", None)
    eventually(lambda: len(inventory.free_slices(shape)) == len(SLICES), "every slice is free again", RESTORE_SECONDS)
    groups = [group for group in placement_group_table().values() if group["state"] != "REMOVED"]
    assert not groups, "placement groups are left"
    plain: TpuMultisliceRunner[Any] = TpuMultisliceRunner(pool=fleet, num_slices=2, jax_distributed=False)
    assert task(task_runner=plain)(nothing)() == [None] * NUM_PROCESSES


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
