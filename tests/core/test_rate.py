"""So many at once, so many per second, and never more in the long run."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from prefect_tpu.core.rate import RateLimit


def test_a_burst_then_the_rate() -> None:
    limit = RateLimit(per_second=2, burst=3)
    assert [limit.take(10.0) for _ in range(5)] == [True, True, True, False, False]
    assert [limit.take(10.5) for _ in range(2)] == [True, False]
    assert [limit.take(100.0) for _ in range(4)] == [True, True, True, False]


@given(st.lists(st.floats(0, 5), max_size=200), st.floats(0.1, 50), st.floats(1, 50))
def test_never_more_than_burst_and_rate_allow(pauses: list[float], per_second: float, burst: float) -> None:
    limit, now, taken = RateLimit(per_second, burst), 0.0, 0
    for pause in pauses:
        now += pause
        taken += limit.take(now)
        assert taken <= burst + now * per_second + 1e-6
