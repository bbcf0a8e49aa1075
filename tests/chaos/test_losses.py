"""Slices and hosts go away: the run goes on, and its own retries are not charged."""

from __future__ import annotations

import json
import os
import signal
import time
from typing import Any

import pytest

from prefect_tpu import SliceUnavailableError, TpuMultisliceRunner, task
from tests.chaos.conftest import SLICES, Chaos, Story, nothing
from tests.prefect_runs import log_messages
from tests.processes import alive
from tests.waiting import eventually


def went_on(story: Story, kind: str, state_name: str, charge: str) -> None:
    """One attempt lost, the next one completed; retries=0 is what Prefect shows."""
    assert story.state.is_completed(), story.state
    assert (story.run.run_count, story.run.empirical_policy.retries) == (2, 0)
    assert kind in story.outcomes(1)
    assert story.outcomes(1) <= {kind, "COLLATERAL", "RETURNED"}
    assert story.outcomes(2) == {"SUCCEEDED"}
    assert story.charges() == [charge]
    assert story.states == ["Pending", "Running", state_name, "Retrying", "Completed"]
    message = dict(story.history)[state_name]
    assert "slice " in message
    assert "failures 0 of 0" in message


def test_a_raylet_is_killed(chaos: Chaos) -> None:
    """A host of a slice that lives on: a lost host, and the slice is replaced."""

    def kill(one: Chaos) -> None:
        first = one.ready()[0]
        os.kill(one.named(f"{first}/1", "raylet/raylet"), signal.SIGKILL)

    story = chaos.play(kill)
    went_on(story, "INFRASTRUCTURE", "HostLost", "infrastructure")


def test_a_host_is_told_to_end(chaos: Chaos) -> None:
    """SIGTERM to its Ray node, as when its machine shuts down or its Kubernetes pod is evicted: taken away."""
    story = chaos.play(lambda one: os.kill(one.named(f"{one.ready()[1]}/1", "raylet/raylet"), signal.SIGTERM))
    went_on(story, "PREEMPTED", "Preempted", "preemptions")
    assert "received SIGTERM" in dict(story.history)["Preempted"]


def test_a_slice_is_preempted_and_only_that_one_is_replaced(chaos: Chaos) -> None:
    """The other slice keeps its place and its index; checkpoint_dir is the same."""
    before: list[str] = []

    def preempt(one: Chaos) -> None:
        before.extend(one.ready())
        one.fleet.preempt(before[1])

    story = chaos.play(preempt)
    went_on(story, "PREEMPTED", "Preempted", "preemptions")
    results = story.state.result()
    assert [one["slice"] for one in results][:2] == [before[0]] * 2
    assert results[2]["slice"] not in before
    assert "preemptions 1" in dict(story.history)["Preempted"]
    directories = {mark.read_text().split()[2] for mark in chaos.folder.glob("[0-9]*-[0-9]")}
    assert len(directories) == 1
    rows = {(row["attempt"], row["name"]): row["outcome"] for row in story.rows}
    assert rows[1, before[0]] == "COLLATERAL"
    assert rows[1, before[1]] == "PREEMPTED"


def test_what_is_shown_while_the_run_goes_on(chaos: Chaos) -> None:
    """Table and summary have the attempt that has ended, the progress is that of the one that runs."""
    shown: dict[str, Any] = {}

    def preempt_and_look(one: Chaos) -> None:
        one.fleet.preempt(one.ready()[1])
        one.ready(attempt=2)

        def look() -> Any:
            runs = one.client.request(
                "POST", "/task_runs/filter", json={"sort": "EXPECTED_START_TIME_DESC", "limit": 1}
            ).json()
            found = one.client.request(
                "POST", "/artifacts/filter", json={"artifacts": {"task_run_id": {"any_": [runs[0]["id"]]}}}
            ).json()
            by_type = {artifact["type"]: artifact for artifact in found}
            return (
                by_type if "attempt 2: all 4 hosts run" in by_type.get("progress", {}).get("description", "") else None
            )

        try:
            shown.update(eventually(look, "the progress of the second attempt"))
        finally:
            (one.folder / "go").touch()

    story = chaos.play(preempt_and_look, then="every after return")
    went_on(story, "PREEMPTED", "Preempted", "preemptions")
    assert shown["progress"]["description"] == "gang: attempt 2: all 4 hosts run"
    assert {row["attempt"] for row in json.loads(shown["table"]["data"])} == {1}
    assert "## gang: 1 attempt ended, the next one follows" in shown["markdown"]["data"]


def test_the_coordinators_host_is_lost(chaos: Chaos) -> None:
    """Survivors abort when JAX's coordinator has gone: collateral."""
    story = chaos.play(lambda one: one.fleet.preempt(f"{one.ready()[0]}/0"))
    went_on(story, "INFRASTRUCTURE", "HostLost", "infrastructure")


def test_a_host_of_preemptible_slices_is_lost(chaos: Chaos) -> None:
    """preemptible=True: it was preempted."""
    story = chaos.play(lambda one: one.fleet.preempt(f"{one.ready()[1]}/0"), preemptible=True)
    went_on(story, "PREEMPTED", "Preempted", "preemptions")


def test_two_slices_are_lost_at_the_same_moment(chaos: Chaos) -> None:
    """One charge. The gang waits until there are slices again: capacity gone for a while."""

    def preempt_both(one: Chaos) -> None:
        names = one.ready()
        for pid in [pid for name in names for host in (0, 1) for pid in one.on_host(f"{name}/{host}")]:
            os.kill(pid, signal.SIGKILL)
        time.sleep(2)
        one.fleet.restore(names[0])

    story = chaos.play(preempt_both)
    went_on(story, "PREEMPTED", "Preempted", "preemptions")


def test_capacity_is_gone_for_good(chaos: Chaos) -> None:
    """SliceUnavailableError after its deadline, which is a budget of its own; what Prefect shows is Failed."""

    def preempt_two(one: Chaos) -> None:
        for name in one.ready():
            one.fleet.preempt(name)

    story = chaos.play(preempt_two, lease_timeout_seconds=3)
    assert story.state.is_failed()
    error = story.state.result(raise_on_failure=False)
    assert isinstance(error, SliceUnavailableError)
    assert "within 3 s (lease_timeout_seconds)" in str(error)
    assert story.run.state_name == "Failed"


def test_an_agent_is_killed(chaos: Chaos) -> None:
    """Its processes go with it; the machine lives, so it is infrastructure."""

    def kill(one: Chaos) -> None:
        os.kill(one.named(f"{one.ready()[1]}/0", "ray::Agent"), signal.SIGKILL)

    story = chaos.play(kill)
    went_on(story, "INFRASTRUCTURE", "HostLost", "infrastructure")


def test_a_host_freezes(chaos: Chaos, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGSTOP for all of it: found by its silence in seconds, where Ray needs a minute."""
    monkeypatch.setenv("PREFECT_INTEGRATIONS_TPU_HEARTBEAT_TIMEOUT_SECONDS", "3")
    frozen: list[int] = []
    names: list[str] = []

    def freeze(one: Chaos) -> None:
        names.append(one.ready()[1])
        frozen.extend(one.on_host(f"{names[0]}/0"))
        for pid in frozen:
            os.kill(pid, signal.SIGSTOP)

    try:
        story = chaos.play(freeze)
    finally:
        chaos.fleet.preempt(names[0])
    went_on(story, "INFRASTRUCTURE", "HostLost", "infrastructure")
    assert "silent" in dict(story.history)["HostLost"]
    assert not alive(dict.fromkeys(frozen, ""))


def test_the_replacement_is_warm(chaos: Chaos) -> None:
    """An agent was started on the free slice while the gang ran; the next attempt runs under the same one."""
    spare: dict[str, int] = {}

    def preempt(one: Chaos) -> None:
        used = one.ready()
        (free,) = set(SLICES) - set(used)
        spare[free] = eventually(lambda: agent_of(one, f"{free}/0"), "an agent on the free slice")
        one.fleet.preempt(used[1])

    story = chaos.play(preempt)
    went_on(story, "PREEMPTED", "Preempted", "preemptions")
    ((name, before),) = spare.items()
    assert {row["name"] for row in story.rows if row["attempt"] == 2} > {name}
    assert agent_of(chaos, f"{name}/0") == before


def agent_of(one: Chaos, host: str) -> int:
    """The pid of the agent on a host, 0 if there is none."""
    try:
        return one.named(host, "ray::Agent")
    except (AssertionError, OSError):
        return 0


def test_slices_are_not_held_for_ever(chaos: Chaos, monkeypatch: pytest.MonkeyPatch) -> None:
    """No replacement within lease_hold_seconds: what is left of the gang's slices is given to one that can run."""
    monkeypatch.setenv("PREFECT_INTEGRATIONS_TPU_LEASE_HOLD_SECONDS", "2")
    others: list[Any] = []

    def lose_and_let_others_run(one: Chaos) -> None:
        used = one.ready()
        (free,) = set(SLICES) - set(used)
        one.fleet.preempt(free)
        one.fleet.preempt(used[1])
        runner: Any = TpuMultisliceRunner(pool=one.fleet, num_slices=1, jax_distributed=False)
        others.append(task(task_runner=runner)(nothing)())  # on the only slice there is
        one.fleet.restore(free)

    story = chaos.play(lose_and_let_others_run)
    went_on(story, "PREEMPTED", "Preempted", "preemptions")
    assert others == [[None, None]]
    said = [text for _, text in log_messages(chaos.client, story.run.id, "are given back")]
    assert any("no replacement within 2 s" in text for text in said)


# -- at other moments than in the function


def test_a_slice_is_lost_while_the_gang_waits_for_slices(chaos: Chaos) -> None:
    """It goes on waiting, and runs when there are enough."""
    for name in ("slice-1", "slice-2"):
        chaos.fleet.preempt(name)

    def come_and_go(one: Chaos) -> None:
        time.sleep(1.5)
        one.fleet.preempt("slice-0")
        for name in ("slice-1", "slice-2"):
            one.fleet.restore(name)

    story = chaos.play(come_and_go, then="return", wait_until_ready=False)
    assert story.state.is_completed()
    assert story.run.run_count == 1


@pytest.mark.parametrize("delay_seconds", [0.1, 0.5, 1.5])
def test_a_slice_is_lost_while_the_gang_is_launched(chaos: Chaos, delay_seconds: float) -> None:
    """At a moment somewhere between the lease and the function: never charged to the task."""

    def preempt_soon(one: Chaos) -> None:
        time.sleep(delay_seconds)
        one.fleet.preempt("slice-0")

    story = chaos.play(preempt_soon, then="return", wait_until_ready=False, preload=("jax", "numpy", "sqlite3"))
    assert story.state.is_completed(), story.state
    assert set(story.charges()) <= {"preemptions", "infrastructure"}
    assert story.run.run_count == 1 + len(story.charges())


def test_a_slice_is_lost_while_results_are_gathered(chaos: Chaos) -> None:
    """Gathered or not, what the task returns is complete, and nothing is charged to the task."""

    def preempt_soon(one: Chaos) -> None:
        name = one.ready()[1]
        (one.folder / "go").touch()
        time.sleep(1.2)
        one.fleet.preempt(name)

    story = chaos.play(preempt_soon, then="after big")
    assert story.state.is_completed()
    results = story.state.result()
    assert len({one["attempt"] for one in results}) == 1
    assert "failures" not in story.charges()


def test_a_slice_is_lost_while_the_attempt_is_stopped(chaos: Chaos) -> None:
    """The function raises, and in the same moment a slice goes: one charge, and the run goes on."""

    def both(one: Chaos) -> None:
        name = one.ready()[1]
        (one.folder / "go").touch()
        one.fleet.preempt(name)

    story = chaos.play(both, first={0: "after raise"}, retries=1)
    assert story.state.is_completed()
    assert len(story.charges()) == story.run.run_count - 1 == 1
