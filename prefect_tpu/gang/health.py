"""What is seen of an attempt's hosts from outside: heartbeats, notices, drains, and that nothing goes on any more."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import ray
from ray.exceptions import RayError

from prefect_tpu.cluster import gcs
from prefect_tpu.core import clock, jax_names
from prefect_tpu.core.messages import HostReport, LogRecord, Notice
from prefect_tpu.core.notices import Notices, Source, Standing
from prefect_tpu.gang.host_state import HostState
from prefect_tpu.gang.lifelines import Lifelines
from prefect_tpu.gang.observer import Observer
from prefect_tpu.gang.plan import GangPlan

log = logging.getLogger("prefect_tpu.gang")

DRAIN_LOOK_SECONDS = 0.5
"""How often Ray is asked which hosts are being drained."""
STACKS_SECONDS = 15.0
"""How long the stacks of all hosts are waited for when a gang hangs."""


@dataclass(slots=True)
class HealthMonitor:
    """Turns what is seen from outside into the state of each host. Used by the attempt's thread.

    Attributes:
        on_drain: called once for each slice that is about to be taken away.
        notices: those that stand.
        drained: names of the slices that Ray was told to drain, which it cannot take back.
        noticed_at: when the first notice of those that stand came, on the monotonic clock.
    """

    attempt_id: str
    hosts: Sequence[HostState]
    plan: GangPlan
    observer: Observer
    on_drain: Callable[[str], None]
    notices: Notices = field(default_factory=Notices)
    drained: set[str] = field(default_factory=set)
    noticed_at: float | None = None
    _lifelines: Lifelines = field(init=False)
    _next_drain_look: float = field(init=False, default=0.0)
    _taken_back: Notices = field(init=False, default_factory=Notices)
    _drains: dict[str, float | None] = field(init=False, default_factory=dict)
    _gone: set[str] = field(init=False, default_factory=set)
    _told: dict[int, tuple[tuple[int, ...], float | None]] = field(init=False, default_factory=dict)
    _telling: dict[int, Any] = field(init=False, default_factory=dict)
    _jax_told: set[int] = field(init=False, default_factory=set)
    _hang_checked_at: float = field(init=False, default=0.0)
    _grace_ends: float = field(init=False, default=0.0)

    def __post_init__(self) -> None:
        self._lifelines = Lifelines(self.plan.tuning.heartbeat_timeout_seconds)

    def connect(self, host: HostState, report: HostReport) -> None:
        """Listen to the agent of a host that is ready."""
        if report.lifeline_port:
            self._lifelines.connect(host.member.process_id, host.member.host.address, report.lifeline_port)

    def close(self) -> None:
        """Hang up."""
        self._lifelines.close()

    def look(self) -> None:
        """Note what has changed since the last look. Takes no longer than a call to Ray's GCS."""
        for process_id, why in self._lifelines.look().items():
            self.hosts[process_id].lose(why)
        now = time.monotonic()
        if now >= self._next_drain_look:
            self._next_drain_look = now + DRAIN_LOOK_SECONDS
            self._look_at_drains()
        self._look_at_gone()
        self._tell()

    @property
    def draining(self) -> frozenset[str]:
        """Names of the slices that will be taken away."""
        return self.notices.draining

    def gone(self, host: HostState) -> bool:
        """Whether its slice has been taken away as a notice said, or ought to be by now; that stays so."""
        return host.member.slice_name in self._gone

    def end_gone(self) -> None:
        """End what runs on slices that ought to be gone: Ray ends nothing at its deadline. Their results are kept."""
        for host in self.hosts:
            if self.gone(host) and not (host.over or host.failed or host.returned or host.stopping):
                host.stopping = True
                host.agent.stop.remote(self.attempt_id, 0)

    def _look_at_gone(self) -> None:
        lost = {host.member.slice_name for host in self.hosts if host.lost is not None}
        new = (self.notices.due(time.monotonic()) | (self.draining & lost)) - self._gone
        self._gone |= new
        if new and any(host.entered and not (self.gone(host) or host.failed or host.returned) for host in self.hosts):
            self.observer.say(
                f"{', '.join(sorted(new))} gone after a notice; hosts of slices that stay may finish for "
                f"{self.plan.tuning.leave_timeout_seconds:g} s (leave_timeout_seconds)"
            )

    # -- notices and drains

    def notice(self, host: HostState, source: Source, text: str, seconds_left: float | None) -> None:
        """A host will be taken away, and its slice with it: a slice without a host is none.

        A notice that does not say when, or at an absurd time, gets `drain_timeout_seconds`, if that is set. From here
        on the deadline is one of the monotonic clock: no time of day that is set anew moves it.
        """
        name, number, unix_now = host.member.slice_name, host.member.process_id, time.time()
        seconds_left = clock.known_seconds(seconds_left, unix_now)
        known = self.notices.find(number, source)
        if known is not None and seconds_left is None:
            return
        limit = clock.known_seconds(self.plan.options.drain_timeout_seconds, unix_now)
        if seconds_left is None and limit is not None:
            seconds_left = limit
            text = f"{text} without a deadline (drain_timeout_seconds={limit:g})"
        when, deadline_seconds = "at a time not known", None
        if seconds_left is not None:
            when = f"in {seconds_left:.0f} s ({clock.moment(unix_now + seconds_left):%H:%M:%S} UTC)"
            text = f"{text}, notice {seconds_left:.0f} s"
            deadline_seconds = time.monotonic() + seconds_left
        first = name not in self.draining
        self._stand(self.notices.add(Standing(number, name, source, text, deadline_seconds)))
        if not first:
            return
        self.observer.say(f"{host.member.label} ({name}) will be taken away {when}: {text}")
        if name not in self.drained:
            self.drained.add(name)
            self._drain_slice(name, None if seconds_left is None else unix_now + seconds_left, text)
            self.on_drain(name)

    def heard(self, host: HostState, notice: Notice) -> None:
        """An agent has heard from the cloud."""
        if not notice.withdrawn:
            self.notice(host, notice.kind, notice.reason, notice.seconds_left)
            return
        name, number = host.member.slice_name, host.member.process_id
        known = self.notices.find(number, notice.kind)
        if known is None:
            return
        if any(one.raised is not None and one.raised.left == "drain" for one in self.hosts):
            return  # it has served
        self._taken_back = self._taken_back.add(replace(known, deadline_seconds=None))
        self._stand(self.notices.take_back(number, notice.kind))
        if name not in self.draining:
            self.observer.say(
                f"{host.member.label} ({name}) stays after all: {notice.reason}; Ray cannot take its drain of the "
                "slice back, so the next attempt gets another slice"
            )

    def left(self) -> None:
        """A function has left by `runtime.leave()`: rightly, if for a notice that was taken back meanwhile."""
        if not self.draining:
            self._stand(self._taken_back)

    def _stand(self, notices: Notices) -> None:
        """These notices stand now."""
        self.notices = notices
        self.noticed_at = (self.noticed_at or time.monotonic()) if notices.standing else None
        for host in self.hosts:
            host.notice = notices.text(host.member.slice_name)

    def _look_at_drains(self) -> None:
        try:
            draining = gcs.draining()
        except Exception as error:  # noqa: BLE001 - the cluster does not answer: the hosts' own state tells
            log.debug("cannot ask Ray for drains: %s", error)
            return
        for host in self.hosts:
            node_id = host.member.host.node_id
            if node_id not in draining:
                continue
            deadline_unix_seconds = draining[node_id]
            if node_id in self._drains and self._drains[node_id] == deadline_unix_seconds:
                continue  # our own, or heard of before
            self._drains[node_id] = deadline_unix_seconds
            # Ray has a time of day; the first look makes it seconds from now.
            self.notice(host, "drain", "Ray drains it", clock.seconds_until(deadline_unix_seconds, time.time()))

    def _drain_slice(self, name: str, deadline_unix_seconds: float | None, reason: str) -> None:
        """Nothing else is to be scheduled on any host of the slice."""
        nodes = [one.member.host.node_id for one in self.hosts if one.member.slice_name == name]
        try:
            already = gcs.draining()
            for node_id in nodes:
                if node_id not in already:
                    self._drains[node_id] = gcs.drain(node_id, deadline_unix_seconds, f"prefect_tpu: {reason}")
        except Exception as error:  # noqa: BLE001 - the run goes on without
            log.warning("could not drain all hosts of %s: %s", name, error)

    def _tell(self) -> None:
        """Tell the function on every host; JAX's preemption service is told on one, and tells the others.

        Where JAX's runtime connects no hosts, it is told on each.
        """
        apart = not self.plan.initializes_jax(len(self.hosts))
        indices = {host.member.slice_index for host in self.hosts if host.member.slice_name in self.draining}
        state = tuple(sorted(indices)), self.notices.deadline_seconds
        first = next((host.member.process_id for host in self.hosts if host.member.slice_name in self.draining), None)
        for host in self.hosts:
            number = host.member.process_id
            if not host.entered or host.over or self._told.get(number, ((), None)) == state:
                continue
            if number in self._telling and not ray.wait([self._telling[number]], timeout=0)[0]:
                continue  # an agent takes calls in any order
            tell_jax = number not in self._jax_told if apart else number == first and not self._jax_told
            if tell_jax:
                self._jax_told.add(number)
            self._told[number] = state
            left = None if state[1] is None else max(0.0, state[1] - time.monotonic())
            self._telling[number] = host.agent.notify_drain.remote(self.attempt_id, state[0], left, tell_jax)

    # -- hangs

    def hung(self) -> bool:
        """Whether hosts that did report have stopped to, whatever they reported. Their stacks are in the logs then."""
        timeout = self.plan.options.hang_timeout_seconds
        now = time.monotonic()
        if timeout is None or now < max(self._hang_checked_at + timeout / 10, self._grace_ends):
            return False
        self._hang_checked_at = now
        stuck = [
            host
            for host in self.hosts
            if host.reported_at is not None and host.returned is None and now - host.reported_at > timeout
        ]
        if not stuck:
            return False
        found = self._stacks()
        compiling = [host for host, text in found.items() if jax_names.compiles(text)]
        if compiling and not self._grace_ends:
            grace = self.plan.tuning.hang_compile_grace_seconds
            self._grace_ends = now + grace
            self.observer.say(
                f"no report for {timeout:g} s (hang_timeout_seconds), but {compiling[0].member.label} compiles: "
                f"{grace:g} s more (hang_compile_grace_seconds)"
            )
            return False
        for host, text in found.items():
            record = LogRecord(logging.WARNING, "prefect_tpu.stacks", f"hangs; its stacks:\n{text}")
            self.observer.log(host.member, record, collateral=False)
        lowest = min(host.step or 0 for host in stuck)
        for host in stuck:
            host.hung = (host.step or 0) == lowest
        return True

    def _stacks(self) -> dict[HostState, str]:
        asked: dict[Any, HostState] = {
            host.agent.stacks.remote(self.attempt_id): host for host in self.hosts if not host.over
        }
        found = dict.fromkeys(asked.values(), "no answer from its agent")
        ready, _ = ray.wait(list(asked), num_returns=len(asked), timeout=STACKS_SECONDS) if asked else ([], [])
        for ref in ready:
            try:
                found[asked[ref]] = ray.get(ref)
            except RayError as error:
                found[asked[ref]] = f"no answer from its agent: {type(error).__name__}"
        return found
