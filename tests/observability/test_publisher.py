"""Artifacts are written in the background: the newest version of each, sooner or later, and nobody waits for it."""

from __future__ import annotations

import logging
import subprocess
import sys
import time
from uuid import UUID, uuid4

import pytest
from prefect import flow, task
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey
from prefect.client.schemas.objects import Artifact
from prefect.runtime import task_run

from prefect_tpu.observability import publisher
from prefect_tpu.observability.publisher import Publisher, Slot, Version


def make_slot() -> Slot:
    """Of a task run that there is."""

    @task
    def own_id() -> str:
        return str(task_run.id)

    @flow
    def whole() -> UUID:
        return UUID(own_id())

    return Slot(f"publisher-{uuid4()}", "markdown", whole(), None)


def found(client: SyncPrefectClient, slot: Slot) -> list[Artifact]:
    """What Prefect has."""
    return client.read_artifacts(artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=[slot.key])))


def test_a_newer_version_takes_the_place_of_the_older(client: SyncPrefectClient) -> None:
    """One artifact; many versions in a short time cost few calls, and the last one is there."""
    slot, one = make_slot(), Publisher()
    rendered: list[int] = []

    def version(number: int) -> Version:
        rendered.append(number)
        return Version(f"version {number}", f"description {number}")

    one.publish(slot, lambda: version(0))
    assert one.flush(20)
    for number in range(1, 200):
        one.publish(slot, lambda number=number: version(number))  # type: ignore[misc]
        time.sleep(0.001)
    assert one.flush(20)
    (artifact,) = found(client, slot)
    assert (artifact.data, artifact.description) == ("version 199", "description 199")
    assert artifact.task_run_id == slot.task_run_id
    assert rendered[-1] == 199
    assert len(rendered) < 10, "it writes every version"
    assert one.dropped == 0


def test_a_version_waits_its_turn_without_a_flush(client: SyncPrefectClient) -> None:
    """The newest comes by itself, a second later."""
    slot, one = make_slot(), Publisher()
    for number in range(3):
        one.publish(slot, lambda number=number: Version(f"version {number}", ""))  # type: ignore[misc]
        time.sleep(0.3)
    deadline = time.monotonic() + 20
    while [artifact.data for artifact in found(client, slot)] != ["version 2"]:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_an_artifact_that_somebody_deleted_is_made_anew(client: SyncPrefectClient) -> None:
    """With the newest version."""
    slot, one = make_slot(), Publisher()
    one.publish(slot, lambda: Version("first", ""))
    assert one.flush(20)
    (artifact,) = found(client, slot)
    client.delete_artifact(artifact.id)
    one.publish(slot, lambda: Version("second", ""))
    assert one.flush(20)
    assert [artifact.data for artifact in found(client, slot)] == ["second"]


def test_what_cannot_be_written_is_dropped_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    """A version that cannot be made, and one that the API refuses: said once, and the next one is written."""
    slot, one = make_slot(), Publisher()

    def broken() -> Version:
        raise ValueError("cannot be drawn")

    with caplog.at_level(logging.WARNING, "prefect_tpu.artifacts"):
        one.publish(slot, broken)
        assert one.flush(20)
        one.publish(Slot("No Such Key", "markdown", uuid4(), None), lambda: Version("", ""))
        assert one.flush(20)
        one.publish(slot, lambda: Version("good", ""))
        assert one.flush(20)
    assert one.dropped == 2
    said = [record.getMessage() for record in caplog.records if record.name == "prefect_tpu.artifacts"]
    assert len(said) == 1
    assert "cannot be drawn" in said[0]


def test_only_so_many_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """More than that are dropped and counted; memory stays bounded."""
    monkeypatch.setattr(publisher, "MAX_WAITING", 5)
    one = Publisher()

    def slow() -> Version:
        time.sleep(0.3)
        raise ValueError("never mind")

    task_run_id = uuid4()
    for number in range(20):
        one.publish(Slot(f"many-{number}", "markdown", task_run_id, None), slow)
    assert one.dropped >= 14
    assert one.flush(20)


def test_the_end_of_a_process_waits_as_long_as_something_is_written(
    client: SyncPrefectClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slow machine loses nothing: what is bounded is the wait for the next one."""
    monkeypatch.setattr(publisher, "EXIT_FLUSH_SECONDS", 1.5)
    slots, one = [make_slot() for _ in range(6)], Publisher()

    def version() -> Version:
        time.sleep(0.5)
        return Version("late", "")

    for slot in slots:
        one.publish(slot, version)
    one.close()
    assert one.dropped == 0
    assert [artifact.data for slot in slots for artifact in found(client, slot)] == ["late"] * 6


SCRIPT = """
import logging, sys, time
from uuid import uuid4
logging.basicConfig(level=logging.WARNING)
from prefect_tpu.observability.publisher import Publisher, Slot, Version
one = Publisher()
began = time.monotonic()
for number in range(3):
    one.publish(Slot(f"away-{number}", "markdown", uuid4(), None), lambda: Version("", ""))
print("published after", time.monotonic() - began)
"""


def test_a_process_ends_while_the_api_is_away() -> None:
    """After a few seconds, with the number of what is lost."""
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        capture_output=True, text=True, timeout=60, check=True, env={"PREFECT_API_URL": "http://127.0.0.1:9/api"},
    )  # fmt: skip
    assert "3 artifacts could not be written to Prefect" in done.stderr
    assert float(done.stdout.split()[-1]) < 5
    assert time.monotonic() - began < 50
