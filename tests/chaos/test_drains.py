"""A slice gets notice before it goes."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from prefect_tpu.cluster import gcs, inventory
from tests.chaos.conftest import Chaos
from tests.chaos.test_losses import went_on
from tests.host.metadata_server import MetadataServer
from tests.prefect_runs import log_messages
from tests.waiting import eventually


def test_a_slice_is_drained_and_killed_at_its_deadline(chaos: Chaos) -> None:
    """The function takes no notice: the attempt is ended at the deadline, and the replacement is there already."""
    told: list[float] = []

    def drain(one: Chaos) -> None:
        name = one.ready()[1]
        told.append(time.time())
        one.fleet.drain(name, 4)

    story = chaos.play(drain)
    went_on(story, "PREEMPTED", "Preempted", "preemptions")
    message = dict(story.history)["Preempted"]
    assert "Ray drains it, notice" in message
    lines = [text for _, text in log_messages(chaos.client, story.run.id, "is reserved ahead")]
    assert any("will be taken away in" in text for text in lines)


def test_slices_that_stay_may_finish_their_save(chaos: Chaos) -> None:
    """In the function, and in a thread that it has left; the function knows which slices go."""

    def drain(one: Chaos) -> None:
        one.fleet.drain(one.ready()[1], 3)

    story = chaos.play(drain, then="leave a save behind")
    went_on(story, "PREEMPTED", "Preempted", "preemptions")
    parts = [(chaos.folder / f"saved-{number}").read_text().count("part\n") for number in range(4)]
    assert parts == [70, 70, 1, 1], "who goes has been ended, who stays has finished"
    lines = log_messages(chaos.client, story.run.id, "may finish for 60 s (leave_timeout_seconds)")
    assert not any("its end was cut" in text for _, text in lines)


def test_a_drain_without_a_deadline(chaos: Chaos, monkeypatch: pytest.MonkeyPatch) -> None:
    """It gets one by drain_timeout_seconds: the function is told, and the attempt ends then."""
    monkeypatch.setenv("PREFECT_INTEGRATIONS_TPU_LEAVE_TIMEOUT_SECONDS", "1")
    began: list[float] = []

    def drain(one: Chaos) -> None:
        name = one.ready()[1]
        (node,) = [
            host.node_id for found in inventory.summary().slices if found.name == name for host in found.slice.hosts
        ][:1]
        began.append(time.monotonic())
        gcs.drain(node, None, "by a test")
        while time.monotonic() < began[0] + 30 and not (one.folder / "2-0").exists():
            time.sleep(0.1)
        began.append(time.monotonic())
        one.fleet.preempt(name)

    story = chaos.play(drain, then="sleep", drain_timeout_seconds=3)
    went_on(story, "PREEMPTED", "Preempted", "preemptions")
    assert "without a deadline (drain_timeout_seconds=3), notice 3 s" in dict(story.history)["Preempted"]
    assert began[1] - began[0] < 20


def test_the_function_leaves_before_the_deadline(chaos: Chaos) -> None:
    """runtime.leave() once `draining` is seen: the next attempt need not wait for the deadline."""
    began: list[float] = []

    def drain(one: Chaos) -> None:
        name = one.ready()[0]
        began.append(time.monotonic())
        one.fleet.drain(name, 60)

    story = chaos.play(drain, then="leave")
    went_on(story, "PREEMPTED", "Preempted", "preemptions")
    assert time.monotonic() - began[0] < 50, "it has waited for the deadline"


def test_jax_agrees_on_the_step_to_leave_at(chaos: Chaos) -> None:
    """reached_preemption_sync_point is true on all hosts at the same step."""
    story = chaos.play(lambda one: one.fleet.drain(one.ready()[1], 60), then="sync point")
    went_on(story, "PREEMPTED", "Preempted", "preemptions")
    steps = {(chaos.folder / f"sync-{number}").read_text() for number in range(4)}
    assert len(steps) == 1


def test_a_run_that_ends_before_the_deadline_has_succeeded(chaos: Chaos) -> None:
    """Success beats a notice; what was reserved ahead is given back."""
    story = chaos.play(lambda one: one.fleet.drain(one.ready()[1], 60), then="until draining")
    assert story.state.is_completed()
    assert story.run.run_count == 1
    assert story.states == ["Pending", "Running", "Completed"]
    assert story.outcomes(1) == {"SUCCEEDED"}


def test_the_clouds_notice_drains_the_whole_slice(chaos: Chaos, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the metadata server: every host of the slices that hear it is drained in Ray, and the function is told."""
    server = MetadataServer()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("PREFECT_INTEGRATIONS_TPU_METADATA_URL", server.url)
    seen: list[int] = []

    def preempt(one: Chaos) -> None:
        leased = one.nodes(one.ready())
        server.set("instance/preempted", "TRUE")  # to all hosts: they share this machine
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline and not leased <= set(gcs.draining()):
            time.sleep(0.05)
        seen.append(len(leased & set(gcs.draining())))
        eventually(lambda: not any(one.is_child(pid) for pid in one.pids()), "all have left")
        server.set("instance/preempted", "FALSE")
        for name in one.drained():  # also the one reserved ahead, if it has heard; Ray cannot take a drain back
            one.fleet.preempt(name)
            one.fleet.restore(name)

    try:
        story = chaos.play(preempt, then="leave")
    finally:
        server.end()
    assert seen == [4]
    went_on(story, "PREEMPTED", "Preempted", "preemptions")
    assert "GCE preempts this host" in dict(story.history)["Preempted"]


def fresh_agents(server: MetadataServer) -> dict[str, Any]:
    """A runtime_env for agents that have not begun to watch another server."""
    return {"env_vars": {"WATCHES": server.url}}


def test_a_notice_that_is_taken_back(chaos: Chaos, monkeypatch: pytest.MonkeyPatch) -> None:
    """The function is told that it stays, and goes on beyond the deadline; of two notices the last one counts."""
    server = MetadataServer()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("PREFECT_INTEGRATIONS_TPU_METADATA_URL", server.url)

    def told(one: Chaos, what: str) -> int:
        return len(list(one.folder.glob(f"{what}-*")))

    def take_back(one: Chaos) -> None:
        one.ready()
        server.set("instance/maintenance-event", "TERMINATE_ON_HOST_MAINTENANCE")
        server.set("instance/preempted", "TRUE")
        try:
            eventually(lambda: told(one, "draining") == 4, "all are told of the notice")
            server.set("instance/preempted", "FALSE")
            time.sleep(2)
            assert told(one, "stays") == 0, "one of the two notices stands"
        finally:
            server.set("instance/preempted", "FALSE")
            server.set("instance/maintenance-event", "NONE")
        eventually(lambda: told(one, "stays") == 4, "all are told that they stay")

    try:
        story = chaos.play(take_back, then="until taken back", runtime_env=fresh_agents(server))
    finally:
        server.end()
    assert story.state.is_completed()
    assert story.states == ["Pending", "Running", "Completed"]
    assert story.outcomes(1) == {"SUCCEEDED"}
    lines = [text for _, text in log_messages(chaos.client, story.run.id, "the next attempt gets another slice")]
    stay = [text for text in lines if "stays after all: no longer: GCE" in text]
    assert len(stay) == 2, "once for each slice"


def test_who_leaves_for_a_notice_that_is_taken_back_has_left_rightly(
    chaos: Chaos, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may have begun to save before it was told; the attempt counts as preempted, and the next gets other slices."""
    server = MetadataServer()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("PREFECT_INTEGRATIONS_TPU_METADATA_URL", server.url)
    nodes: list[set[str]] = []

    def take_back(one: Chaos) -> None:
        leased = one.nodes(one.ready())
        server.set("instance/preempted", "TRUE")
        try:
            eventually(lambda: len(list(one.folder.glob("draining-*"))) == 4, "all are told of the notice")
        finally:
            server.set("instance/preempted", "FALSE")
        nodes.append(set(gcs.draining()) & leased)
        eventually(lambda: not any(one.is_child(pid) for pid in one.pids()), "all have left")
        for name in one.drained():  # Ray cannot take a drain back: these machines go, and others come
            one.fleet.preempt(name)
            one.fleet.restore(name)

    try:
        story = chaos.play(take_back, then="leave all the same", runtime_env=fresh_agents(server))
    finally:
        server.end()
    assert nodes[0], "nothing was drained"
    went_on(story, "PREEMPTED", "Preempted", "preemptions")
    assert "GCE preempts this host" in dict(story.history)["Preempted"]
