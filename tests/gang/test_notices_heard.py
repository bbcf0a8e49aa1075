"""What comes of a notice: seconds on the monotonic clock, whatever times of day say."""

from __future__ import annotations

import math
import time
from typing import Any

import pytest

from prefect_tpu import LocalFleet
from prefect_tpu.core.gang import Host, Member
from prefect_tpu.core.messages import LogLine, LogRecord, Notice
from prefect_tpu.gang.health import HealthMonitor
from prefect_tpu.gang.host_state import HostState
from prefect_tpu.options.gang import GangOptions
from prefect_tpu.options.tuning import Tuning


class Plan:
    """What the monitor reads of one."""

    def __init__(self, **options: Any) -> None:
        self.options, self.tuning = GangOptions(**options), Tuning()


class Heard:
    """An observer that keeps what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)

    def log(self, member: Member, entry: LogLine | LogRecord, *, collateral: bool) -> None: ...


@pytest.fixture
def heard() -> Heard:
    return Heard()


def monitor(heard: Heard, monkeypatch: pytest.MonkeyPatch, **options: Any) -> HealthMonitor:
    """Of a gang of two slices of one host, without a cluster to drain them in."""
    hosts = [
        HostState(Member(n, n, 0, f"slice-{n}", Host(f"node-{n}", 0, "127.0.0.1", 4)), None, entered=True)
        for n in range(2)
    ]
    monkeypatch.setattr(HealthMonitor, "_drain_slice", lambda *_: None)
    return HealthMonitor("one", hosts, Plan(**options), heard, lambda _: None)  # type: ignore[arg-type]


@pytest.mark.parametrize("seconds_left", [1e12, 1e18, 1e300, math.inf, math.nan])
def test_an_absurd_deadline_counts_as_none(heard: Heard, monkeypatch: pytest.MonkeyPatch, seconds_left: float) -> None:
    """The slice drains, nothing ends."""
    health = monitor(heard, monkeypatch)
    health.heard(health.hosts[1], Notice("preemption", "a test", seconds_left))
    assert health.draining == {"slice-1"}
    assert health.notices.deadline_seconds is None
    assert "at a time not known" in heard.said[0]


def test_an_endless_drain_timeout(heard: Heard, monkeypatch: pytest.MonkeyPatch) -> None:
    """Is none."""
    health = monitor(heard, monkeypatch, drain_timeout_seconds=math.inf)
    health.notice(health.hosts[1], "drain", "Ray drains it", None)
    assert health.notices.deadline_seconds is None


def test_a_clock_that_is_set_anew_moves_no_deadline(heard: Heard, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the driver: an hour on, and the slice still has its seconds."""
    health = monitor(heard, monkeypatch)
    health.heard(health.hosts[1], Notice("preemption", "a test", 30.0))
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 3_600)
    health._look_at_gone()
    assert not health.gone(health.hosts[1])
    deadline = health.notices.deadline_seconds
    assert deadline is not None
    assert 25 < deadline - time.monotonic() <= 30


def test_a_slice_is_gone_when_it_is_lost_under_a_notice(heard: Heard, monkeypatch: pytest.MonkeyPatch) -> None:
    """A moment before its deadline, too; and only that one."""
    health = monitor(heard, monkeypatch)
    health.heard(health.hosts[1], Notice("preemption", "a test", 30.0))
    health.hosts[1].lose("its agent has ended")
    health._look_at_gone()
    assert [health.gone(one) for one in health.hosts] == [False, True]
    assert "hosts of slices that stay may finish for 60 s (leave_timeout_seconds)" in heard.said[-1]


@pytest.mark.parametrize("seconds", [0, -1, math.inf, -math.inf, math.nan, 1e12, 1e18, 1e300, True, "5"])
def test_a_drain_of_more_than_a_year_is_refused(seconds: Any) -> None:
    """Before anything is asked of the fleet, which is not up."""
    from prefect_tpu import ConfigurationError

    with pytest.raises(ConfigurationError, match=r"drain\('slice-0', .*\): seconds must be .* at most a year"):
        LocalFleet().drain("slice-0", seconds)


@pytest.mark.parametrize(("connected", "told"), [(True, {0: False, 1: True}), (False, {0: True, 1: True})])
def test_jax_hears_of_a_notice_once_for_each_runtime(
    heard: Heard, monkeypatch: pytest.MonkeyPatch, connected: bool, told: dict[int, bool]
) -> None:
    """Where JAX connects the hosts, one of the slice that goes tells the others; else each is told."""
    asked: dict[int, bool] = {}

    class Agent:
        def __init__(self, number: int) -> None:
            self.number = number
            self.notify_drain = self

        def remote(self, attempt_id: str, slices: tuple[int, ...], seconds: float | None, tell_jax: bool) -> object:
            asked[self.number] = asked.get(self.number, False) or tell_jax
            return object()

    health = monitor(heard, monkeypatch)
    health.plan.initializes_jax = lambda _: connected  # type: ignore[method-assign,assignment,misc]
    for number, one in enumerate(health.hosts):
        one.agent, one.launched = Agent(number), True
    health.heard(health.hosts[1], Notice("preemption", "a test", 30.0))
    health._tell()
    assert asked == told
