"""Times from outside: what no calendar has is none."""

from __future__ import annotations

import math
from datetime import UTC, datetime

import pytest

from prefect_tpu.core import clock

NOW = 1_800_000_000.0


@pytest.mark.parametrize("unix_seconds", [None, -1.0, 1e12, 1e18, 1e300, math.inf, -math.inf, math.nan])
def test_a_time_that_no_calendar_has_is_none(unix_seconds: float | None) -> None:
    """Beyond year 9999, or no number."""
    assert clock.moment(unix_seconds) is None
    assert clock.seconds_until(unix_seconds, NOW) is None


def test_the_last_moment() -> None:
    """A date all the same."""
    assert clock.moment(clock.LAST_UNIX_SECONDS) == datetime(9999, 12, 31, tzinfo=UTC)
    assert clock.seconds_until(NOW + 5, NOW) == 5
    assert clock.seconds_until(NOW - 5, NOW) == 0


@pytest.mark.parametrize(
    ("seconds", "known"), [(None, None), (30.0, 30.0), (-1.0, 0.0), (1e12, None), (math.inf, None), (math.nan, None)]
)
def test_seconds_from_now(seconds: float | None, known: float | None) -> None:
    """The same for those."""
    assert clock.known_seconds(seconds, NOW) == known


@pytest.mark.parametrize("seconds", [0, -1, math.inf, math.nan, 1e12, 31_622_401, True, "5", None])
def test_no_notice(seconds: object) -> None:
    """More than a year is a mistake."""
    assert not clock.is_notice(seconds)


@pytest.mark.parametrize("seconds", [0.1, 1, 31_622_400])
def test_a_notice(seconds: float) -> None:
    """Anything else above 0."""
    assert clock.is_notice(seconds)
