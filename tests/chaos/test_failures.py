"""What the function itself does wrong: charged to the task's own retries, once, as in Prefect."""

from __future__ import annotations

import os
import random
import signal
import threading
import time

import pytest

from prefect_tpu import HangError, HostProcessError, RetriesExhaustedError
from tests.chaos.conftest import Chaos, Story
from tests.prefect_runs import log_messages


def retried(story: Story, kind: str) -> None:
    """One of the task's own retries was spent."""
    assert story.state.is_completed(), story.state
    assert (story.run.run_count, story.run.empirical_policy.retries) == (2, 1)
    assert kind in story.outcomes(1)
    assert story.outcomes(1) <= {kind, "COLLATERAL", "RETURNED"}
    assert story.charges() == ["failures"]
    assert story.states == ["Pending", "Running", "Retrying", "Completed"]


@pytest.mark.parametrize("how", ["SIGKILL", "SIGSEGV", "SIGABRT", "exit 3"])
def test_a_host_process_crashes(chaos: Chaos, how: str) -> None:
    """Survivors' errors are collateral."""
    story = chaos.play(lambda one: (one.folder / "go").touch(), first={2: f"after {how}"}, retries=1)
    retried(story, "CRASHED_PROCESS")
    (cause,) = {row["cause"] for row in story.rows if row["cause"]}
    assert cause.startswith("slice 1 host 0 ")
    assert ("code 3" if how == "exit 3" else how) in cause


def test_a_crash_without_retries_ends_the_run(chaos: Chaos) -> None:
    """HostProcessError that names host and signal; Failed."""
    story = chaos.play(lambda one: os.kill(one.pids()[1], signal.SIGKILL))
    assert story.state.is_failed()
    error = story.state.result(raise_on_failure=False)
    assert isinstance(error, HostProcessError)
    assert "slice 0 host 1 was ended by SIGKILL" in str(error)
    assert story.run.run_count == 1


def test_a_host_process_has_no_memory_left(chaos: Chaos) -> None:
    """Under a limit of its own: a MemoryError of the function."""
    story = chaos.play(first={1: "out of memory"}, retries=1)
    retried(story, "USER_ERROR")


@pytest.mark.parametrize("first", [{3: "raise"}, dict.fromkeys(range(4), "raise"), {3: "raise preempted"}])
def test_the_function_raises(chaos: Chaos, first: dict[int, str]) -> None:
    """On one host while the others wait for it, on all of them, and with words that decide nothing."""
    retried(chaos.play(first=first, retries=1), "USER_ERROR")


def test_one_host_raises_when_the_others_have_returned(chaos: Chaos) -> None:
    """Their results are not kept: a gang is all or nothing."""

    def later(one: Chaos) -> None:
        time.sleep(0.5)
        (one.folder / "go").touch()

    story = chaos.play(later, first={0: "after raise"}, then="return", retries=1)
    retried(story, "USER_ERROR")
    assert [one["attempt"] for one in story.state.result()] == [2] * 4
    assert "RETURNED" in story.outcomes(1)


def test_an_exception_that_does_not_pickle(chaos: Chaos) -> None:
    """Its name and traceback arrive in a HostProcessError."""
    story = chaos.play(first={0: "raise unpicklable"})
    assert story.state.is_failed()
    error = story.state.result(raise_on_failure=False)
    assert isinstance(error, HostProcessError)
    assert "could not be sent to the driver" in str(error)
    assert story.charges() == ["failures"]


def test_a_hang_is_found_and_explained(chaos: Chaos) -> None:
    """No new step: the stacks of all hosts in the logs, the host that is furthest behind as the culprit."""
    story = chaos.play(then="report and stop", hang_timeout_seconds=3)
    assert story.state.is_completed()
    assert story.states == ["Pending", "Running", "HostLost", "Retrying", "Completed"]
    assert story.charges() == ["infrastructure"]
    message = dict(story.history)["HostLost"]
    assert "slice 0 host 0 reported nothing for hang_timeout_seconds after step 2" in message
    lines = [text for _, text in log_messages(chaos.client, story.run.id, "[slice 1 host 1] hangs; its stacks:")]
    stacks = [text for text in lines if "hangs; its stacks:" in text]
    assert len(stacks) == 4
    assert all(" in body" in text for text in stacks)


def test_a_hang_with_no_budget_left(chaos: Chaos) -> None:
    """RetriesExhaustedError from the HangError, with the ledger."""
    story = chaos.play(then="report and stop", hang_timeout_seconds=3, max_infrastructure_failures=0)
    error = story.state.result(raise_on_failure=False)
    assert isinstance(error, RetriesExhaustedError)
    assert isinstance(error.__cause__, HangError)
    assert len(error.reports) == 1


def test_a_compilation_is_no_hang(chaos: Chaos) -> None:
    """Longer than hang_timeout_seconds without a step: the run goes on, and says why."""
    story = chaos.play(then="report and compile", hang_timeout_seconds=2)
    assert story.state.is_completed()
    assert story.run.run_count == 1
    lines = [text for _, text in log_messages(chaos.client, story.run.id, "compiles: ")]
    assert any("hang_timeout_seconds" in text and "1800 s more" in text for text in lines)


def test_faults_at_random(chaos: Chaos) -> None:
    """A minute of losses, crashes and errors at random; the seed is printed. The run ends, and every attempt is
    charged once.
    """
    seed = int(os.environ.get("CHAOS_SEED", random.SystemRandom().randrange(10**6)))
    print(f"CHAOS_SEED={seed}")
    dice, over = random.Random(seed), threading.Event()

    def faults(one: Chaos) -> None:
        end = time.monotonic() + 40
        while time.monotonic() < end and not over.is_set():
            time.sleep(dice.uniform(0.5, 4))
            name = f"slice-{dice.randrange(3)}"
            match dice.randrange(4):
                case 0:
                    one.fleet.preempt(name)
                    one.fleet.restore(name)
                case 1:
                    one.fleet.preempt(f"{name}/{dice.randrange(2)}")
                    one.fleet.restore(name)
                case _:
                    marks = sorted(one.folder.glob("[0-9]*-[0-9]"), key=lambda mark: mark.stat().st_mtime)[-4:]
                    victim = dice.choice(marks)
                    pid = int(victim.read_text().split()[0])
                    if one.is_child(pid):
                        os.kill(pid, dice.choice([signal.SIGKILL, signal.SIGSEGV]))
        (one.folder / "go").touch()

    try:
        story = chaos.play(faults, then="every after return", retries=200, max_infrastructure_failures=200)
    finally:
        over.set()
    assert story.state.is_completed(), f"CHAOS_SEED={seed}: {story.state}"
    assert len(story.charges()) == story.run.run_count - 1, f"CHAOS_SEED={seed}"
