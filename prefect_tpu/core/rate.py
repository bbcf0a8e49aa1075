"""A limit on how often something may happen, with room for bursts."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class RateLimit:
    """A token bucket. It has no clock: whoever asks says what time it is.

    Args:
        per_second: how often for ever.
        burst: how often at once, after a pause.
    """

    per_second: float
    burst: float
    _left: float = field(init=False)
    _at_seconds: float | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self._left = self.burst

    def take(self, now_seconds: float) -> bool:
        """Whether it may happen now; counts it if so. `now_seconds` never goes back."""
        if self._at_seconds is not None:
            self._left = min(self.burst, self._left + (now_seconds - self._at_seconds) * self.per_second)
        self._at_seconds = now_seconds
        if self._left < 1:
            return False
        self._left -= 1
        return True
