"""The state machine of one attempt."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_tpu.core.attempt import Attempt, Phase
from prefect_tpu.core.kinds import Kind


def running() -> Attempt:
    return Attempt(1).lease().launch().run()


def test_the_usual_way() -> None:
    """PENDING to ENDED, by success."""
    ended = running().stop(Kind.SUCCEEDED).end()
    assert (ended.phase, ended.outcome) == (Phase.ENDED, Kind.SUCCEEDED)


def test_success_beats_a_notice() -> None:
    """All returned during a drain is success, and a late notice changes nothing."""
    stopped = running().notice(30).stop(Kind.SUCCEEDED)
    assert stopped.notice(1) == stopped
    assert stopped.outcome is Kind.SUCCEEDED


def test_the_earliest_deadline_wins() -> None:
    """Whichever notice came first."""
    assert running().notice(30).notice(10).notice(20).deadline_seconds == 10


def test_the_first_outcome_stands() -> None:
    """A cancel that arrives while it stops does not turn a failure into a cancel."""
    assert running().stop(Kind.USER_ERROR).stop(Kind.CANCELLED).outcome is Kind.USER_ERROR


@pytest.mark.parametrize("attempt", [Attempt(1), Attempt(1).lease().launch(), running()])
def test_only_leasing_can_end_unprovisioned(attempt: Attempt) -> None:
    """An error while launching is judged by its evidence."""
    with pytest.raises(ValueError, match="only LEASING"):
        attempt.stop(Kind.UNPROVISIONED)
    assert Attempt(1).lease().stop(Kind.UNPROVISIONED).outcome is Kind.UNPROVISIONED


def test_no_shortcut_past_the_barrier() -> None:
    """ENDED comes only after STOPPING."""
    with pytest.raises(ValueError, match="cannot go from RUNNING to ENDED"):
        running().end()


@given(st.lists(st.sampled_from(["lease", "launch", "run", "notice", "stop", "cancel", "end"]), max_size=12))
def test_no_sequence_loses_the_outcome(verbs: list[str]) -> None:
    """Whatever is tried in whatever order: an outcome once known stays, and ENDED is the end."""
    attempt = Attempt(1)
    for verb in verbs:
        before = attempt
        try:
            match verb:
                case "notice":
                    attempt = attempt.notice(5)
                case "stop":
                    attempt = attempt.stop(Kind.SUCCEEDED)
                case "cancel":
                    attempt = attempt.stop(Kind.CANCELLED)
                case _:
                    attempt = getattr(attempt, verb)()
        except ValueError:
            attempt = before
        if before.outcome is not None:
            assert attempt.outcome is before.outcome
        if before.phase is Phase.ENDED:
            assert attempt == before
