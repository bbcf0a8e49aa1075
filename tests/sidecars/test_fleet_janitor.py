"""What the janitor of a local fleet may end: what it can prove to be the fleet's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from prefect_tpu.linux import processes
from prefect_tpu.sidecars.simulated_identity import MARK_VARIABLE
from tests.waiting import eventually

SUPERVISOR = textwrap.dedent(
    """
    import json, os, sys
    from prefect_tpu.linux.processes import Process
    from prefect_tpu.sidecars.fleet_janitor import Janitor

    janitor = Janitor(sys.argv[1])
    for word, pid, start in json.loads(sys.argv[2]):
        leader = Process(pid, os.getpid(), pid, start, True)
        janitor.forget(leader) if word == "forget" else janitor.remember(leader)
    os.kill(os.getpid(), 9)
    """
)


@pytest.fixture
def start() -> Iterator[Callable[..., processes.Process]]:
    """Starts a process in a session of its own, with these variables."""
    started: list[subprocess.Popen[bytes]] = []

    def run(script: str = "sleep 600", **variables: str) -> processes.Process:
        process = subprocess.Popen(["sh", "-c", script], start_new_session=True, env=dict(os.environ) | variables)
        started.append(process)
        found = processes.read_process(process.pid)
        assert found is not None
        return found

    yield run
    for process in started:
        process.kill()
        process.wait()


@pytest.fixture
def killed(tmp_path: Path) -> Callable[..., None]:
    """A supervisor that has told its janitor some words and is killed; returns when the janitor is done."""
    directory = tmp_path / "ptpu-test"

    def run(*words: tuple[str, processes.Process]) -> None:
        directory.mkdir()
        told = json.dumps([(word, one.pid, one.start) for word, one in words])
        done = subprocess.run([sys.executable, "-c", SUPERVISOR, str(directory), told], check=False)
        assert done.returncode == -9
        eventually(lambda: not directory.exists(), "the janitor is done")

    return run


def alive(one: processes.Process) -> bool:
    return processes.is_alive(one.pid, one.start)


def older(one: processes.Process) -> processes.Process:
    """The host that had this number before."""
    return processes.Process(one.pid, one.parent, one.session, one.start - 1, True)


def test_a_bystander_with_a_remembered_number_lives(
    start: Callable[..., processes.Process], killed: Callable[..., None]
) -> None:
    """A login shell or a daemon that got the number of a host that died long ago; so does what it has started."""
    host, bystander = start(), start("sleep 601 & sleep 602")
    killed(("remember", host), ("remember", older(bystander)))
    assert not alive(host)
    assert alive(bystander)
    assert [one for one in processes.all_processes() if one.session == bystander.pid and one.pid != bystander.pid]


def test_a_host_that_has_ended_is_forgotten(
    start: Callable[..., processes.Process], killed: Callable[..., None]
) -> None:
    """The supervisor says so: its number means nothing any more."""
    host, ended = start(), start()
    killed(("remember", host), ("remember", ended), ("forget", ended))
    assert not alive(host)
    assert alive(ended)


def test_a_session_without_its_leader_is_proven_by_a_mark(
    start: Callable[..., processes.Process], killed: Callable[..., None]
) -> None:
    """One process that carries the fleet's mark proves its whole session; no mark, no proof."""

    def orphans(leader: processes.Process) -> list[processes.Process]:
        return [one for one in processes.all_processes() if one.session == leader.pid and one.alive]

    marked = start("sleep 603 & env -i sleep 604 & ", **{MARK_VARIABLE: "ptpu-test/slice-0/0"})
    strange = start("sleep 605 & ")
    for leader in (marked, strange):
        os.waitpid(leader.pid, 0)
    assert (len(orphans(marked)), len(orphans(strange))) == (2, 1)
    try:
        killed(("remember", marked), ("remember", strange))
        assert orphans(marked) == []
        assert len(orphans(strange)) == 1
    finally:
        for one in orphans(strange):
            processes.signal_process(one, 9)
