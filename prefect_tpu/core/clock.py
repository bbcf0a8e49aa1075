"""Times that come from outside, so may be absurd, and what can be said of them."""

from __future__ import annotations

import math
from datetime import UTC, datetime

LAST_UNIX_SECONDS = datetime(9999, 12, 31, tzinfo=UTC).timestamp()
"""No date is later than year 9999; what is to happen after it counts as never."""
LONGEST_NOTICE_SECONDS = 366 * 24 * 3_600.0
"""From a notice that is asked for to the loss: a year."""
NOTICE_WORDS = "a number of seconds above 0, at most a year (31622400)"


def moment(unix_seconds: float | None) -> datetime | None:
    """The date (UTC), None for a time that is none: beyond year 9999, before 1970, infinite, not a number."""
    if unix_seconds is None or not 0 <= unix_seconds <= LAST_UNIX_SECONDS:
        return None
    return datetime.fromtimestamp(unix_seconds, UTC)


def seconds_until(unix_seconds: float | None, unix_now: float) -> float | None:
    """How long until then, 0 for what has been; None for a time that is none."""
    if moment(unix_seconds) is None or unix_seconds is None:
        return None
    return max(0.0, unix_seconds - unix_now)


def known_seconds(seconds: float | None, unix_now: float) -> float | None:
    """The same of a number of seconds from now."""
    if seconds is None or not math.isfinite(seconds):
        return None
    return seconds_until(max(0.0, unix_now + seconds), unix_now)


def is_notice(seconds: object) -> bool:
    """Whether a slice can be given notice of so many seconds."""
    number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
    return number and 0 < seconds <= LONGEST_NOTICE_SECONDS  # type: ignore[operator]
