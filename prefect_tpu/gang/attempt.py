"""One attempt of a gang: start every host process, watch them, and see all of them dead in the end."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayError

from prefect_tpu.cluster import gcs, session
from prefect_tpu.core.attempt import Attempt
from prefect_tpu.core.errors import TransferError
from prefect_tpu.core.gang import Gang, Member
from prefect_tpu.core.messages import Exited, LogLine, LogRecord, Notice, Phase, Poll, Progress, Raised, Returned
from prefect_tpu.core.topology import SliceShape
from prefect_tpu.core.verdict import Kind
from prefect_tpu.gang import results
from prefect_tpu.gang.agent_calls import check_version, note_failure, request, ship
from prefect_tpu.gang.health import Outside
from prefect_tpu.gang.host_state import AttemptEnd, AttemptOptions, HostState
from prefect_tpu.gang.observer import Observer
from prefect_tpu.gang.resizing import Growth

log = logging.getLogger("prefect_tpu.gang")

WAIT_SECONDS = 0.1
"""How often the attempt looks at cancel, deadlines and heartbeats while no host says anything."""
BARRIER_MARGIN_SECONDS = 8.0
"""Beyond the grace period: how long a host may take to report its process dead before its agent is ended."""
DISCONNECT_SECONDS = 2.0
"""How long an unexpected error may wait for the news that somebody has shut Ray down."""
FINISH_SECONDS = 15.0
"""The same after success: time for JAX's shutdown, atexit handlers and threads of the function."""


@dataclass(slots=True)
class GangAttempt:
    """Runs one attempt on slices that are already leased, with agents that are already starting.

    `run` blocks on the thread that owns the attempt; `cancel` may be called from any thread. `room` says how many
    slices the gang could have now, 0 if no more than it has.
    """

    gang: Gang
    shape: SliceShape
    agents: Sequence[Any]
    attempt: Attempt
    payload: list[Any]
    options: AttemptOptions
    observer: Observer
    cancelled: Callable[[], bool]
    on_entered: Callable[[], None] = lambda: None
    on_drain: Callable[[str], None] = lambda _: None
    room: Callable[[], int] = lambda: 0
    _hosts: list[HostState] = field(init=False, default_factory=list)
    _polls: dict[Any, HostState] = field(init=False, default_factory=dict)
    _id: str = field(init=False, default="")
    _outside: Outside = field(init=False)
    _launched_at: float = field(init=False, default=0.0)
    _entered_at: float | None = field(init=False, default=None)
    _growth: Growth = field(init=False)
    _generation: int = field(init=False, default_factory=session.generation)

    def run(self) -> AttemptEnd:
        """Launch, watch, gather, stop. Returns only when no process of this attempt is left."""
        self._hosts = [HostState(m, a) for m, a in zip(self.gang.members, self.agents, strict=True)]
        self.attempt = self.attempt.launch()
        self._id = f"{self.options.run_id}-{self.attempt.number}"
        self._outside = Outside(self._id, self._hosts, self.options, self.observer, self.on_drain)
        self._growth = Growth(self._id, self.gang.num_slices, self._hosts, self.options, self.observer, self.room)
        started = self._launched_at = time.monotonic()
        outcome: Kind | None = None
        try:
            outcome = self._unless_disconnected(self._work)
        finally:
            self._unless_disconnected(lambda: self._stop(outcome))
            self._outside.close()
        self._tell_gone_from_silent()
        ended, entered = time.monotonic(), self._entered_at
        return AttemptEnd(
            outcome=outcome,
            evidence=tuple(host.evidence() for host in self._hosts),
            buffers=tuple(host.buffers for host in self._hosts),
            summaries=tuple(host.returned.summary if host.returned else "" for host in self._hosts),
            launch_seconds=(entered or ended) - started,
            run_seconds=ended - entered if entered else 0.0,
            drain_seconds=ended - noticed if (noticed := self._outside.noticed_at) else 0.0,
        )

    def _work(self) -> Kind | None:
        """Launch, watch, gather. None: the evidence has what went wrong."""
        outcome = self._launch()
        if outcome is None and not any(host.failed for host in self._hosts):
            outcome = self._watch()
        if outcome is Kind.SUCCEEDED and not self._gather():
            outcome = Kind.CANCELLED if self.cancelled() else None
        return outcome

    def _unless_disconnected(self, do: Callable[[], Kind | None]) -> Kind | None:
        """Ray raises this and that, SystemExit too, when somebody shuts it down under a call; say so instead."""
        try:
            return do()
        except (Exception, SystemExit):
            give_up = time.monotonic() + DISCONNECT_SECONDS
            while not self._disconnected():
                if time.monotonic() >= give_up:
                    raise
                time.sleep(WAIT_SECONDS / 10)
            return None

    # -- launching

    def _launch(self) -> Kind | None:
        """Fork one child on every host. None if all of them are up; the evidence has what went wrong."""
        options, gang = self.options, self.gang
        size = sum(memoryview(one).nbytes for one in self.payload)
        big = size if size > options.inline_payload_bytes else 0
        prepared = self._call_all(
            lambda host: host.agent.prepare.remote(options.preload, options.user_env, big, options.metadata_url),
            options.agent_start_timeout_seconds,
            "did not get ready",
        )
        if self.cancelled():
            return Kind.CANCELLED
        for host, report in prepared.items():
            check_version(host, report)
            self._outside.connect(host, report)
        if any(host.failed for host in self._hosts):
            return None
        ports = self._call(self._hosts[0], self._hosts[0].agent.free_ports.remote(2))
        if ports is None:
            return Kind.CANCELLED if self.cancelled() else None
        self._launched_at = time.monotonic()
        try:
            shipped = ship(self.payload, big)
        except TransferError as error:
            self._hosts[0].raised = Raised("transfer", "TransferError", str(error), "")
            return None
        self.payload = []  # whoever calls may hold large arguments; this need not be a second copy
        for host in self._hosts:
            host.launched = True  # from here on there may be a process, whatever the call says
            self._poll(host)

        def launch(host: HostState) -> Any:
            wanted = request(host.member, self._id, self.attempt.number, gang, self.shape, options, ports)
            return host.agent.launch.remote(wanted, shipped)

        self._call_all(launch, options.agent_start_timeout_seconds, "did not start its process")
        return Kind.CANCELLED if self.cancelled() else None

    # -- watching

    def _watch(self) -> Kind | None:
        """Forward what the hosts say until all returned, somebody failed, or it is ended from outside."""
        options = self.options
        self.attempt = self.attempt.run()
        deadline = self._launched_at + options.timeout_seconds if options.timeout_seconds else None
        launch_deadline = self._launched_at + options.launch_timeout_seconds
        window_ends, clear = math.inf, False
        while True:
            if all(host.returned is not None for host in self._hosts):
                self.attempt = self.attempt.stop(Kind.SUCCEEDED)
                return Kind.SUCCEEDED
            self._look_outside()
            now = time.monotonic()
            if self.cancelled():
                return Kind.CANCELLED
            if self._outside.deadline_passed or self._outside.hung():
                return None
            if deadline is not None and now >= deadline:
                return Kind.TIMED_OUT
            if self._entered_at is None:
                if all(host.entered for host in self._hosts):
                    self._entered_at = now
                    self.on_entered()
                elif now >= launch_deadline:
                    for host in self._hosts:
                        if not host.entered:
                            host.lose(f"not up within launch_timeout_seconds={options.launch_timeout_seconds:g}")
            failed = [host for host in self._hosts if host.failed]
            if not failed:
                self._growth.look(self._entered_at, now)
            if failed:
                leaves = all(host.left for host in failed) and (
                    bool(self._outside.draining) or any(host.left_to_resize for host in failed)
                )
                window = options.leave_timeout_seconds if leaves else options.failure_window_seconds
                window_ends = min(window_ends, now + window)
                if not leaves and not clear and any(host.failed_clearly for host in failed):
                    clear = True
                    window_ends = min(window_ends, now + options.clear_failure_window_seconds)
                if now >= window_ends or all(host.failed or host.returned for host in self._hosts):
                    return None
            self._step(WAIT_SECONDS)

    def _look_outside(self) -> None:
        self._outside.look()
        if self._outside.draining:
            self.attempt = self.attempt.notice(self._outside.deadline_unix_seconds or math.inf)
        for ref, host in list(self._polls.items()):
            if host.lost is not None:
                del self._polls[ref]  # Ray would need seconds to say the same

    def _poll(self, host: HostState) -> None:
        if host.over:
            return
        ref = host.agent.poll.remote(self._id, host.cursor, self.options.agent_poll_seconds)
        self._polls[ref] = host

    def _step(self, timeout_seconds: float) -> None:
        """Take in the answers that are there, ask those hosts again."""
        if self._disconnected():
            return
        if not self._polls:
            time.sleep(min(timeout_seconds, 0.05))
            return
        ready, _ = ray.wait(list(self._polls), num_returns=1, timeout=timeout_seconds)
        if ready:
            more, _ = ray.wait(list(self._polls), num_returns=len(self._polls), timeout=0)
            ready = list(dict.fromkeys([*ready, *more]))
        for ref in ready:
            host = self._polls.pop(ref)
            poll = self._call(host, ref)
            if isinstance(poll, Poll):
                self._take(host, poll)
                self._poll(host)

    def _disconnected(self) -> bool:
        """Whether somebody closed the Ray connection under this gang. Ray would start a new cluster unasked."""
        if session.generation() == self._generation:
            return False
        for host in self._hosts:
            if not host.over:
                host.lose(
                    "the Ray connection of this process was closed or replaced by somebody else; let no "
                    "RayTaskRunner() without an address end, and call no ray.shutdown(), while gangs run"
                )
        self._polls.clear()
        return True

    def _take(self, host: HostState, poll: Poll) -> None:
        host.cursor = poll.cursor
        if poll.dropped_lines > host.dropped_lines:
            self.observer.dropped(host.member, poll.dropped_lines - host.dropped_lines)
            host.dropped_lines = poll.dropped_lines
        somebody_failed = any(other.failed for other in self._hosts if other is not host)
        for event in poll.events:
            match event:
                case LogLine() | LogRecord():
                    self.observer.log(host.member, event, collateral=somebody_failed or host.stopping)
                case Phase(name="entered"):
                    host.entered = True
                    self.observer.entered(host.member)
                case Progress() as report:
                    host.progress(report, time.monotonic())
                    self.observer.progress(host.member, report)
                case Returned():
                    host.returned = event
                case Raised():
                    host.raised = host.raised or event
                    if event.left == "drain":
                        self._outside.left()
                case Notice():
                    self._outside.heard(host, event)
                case Exited():
                    host.exited = event

    # -- ending

    def _gather(self) -> bool:
        """Fetch the results; False if a host was lost on the way, or there is no room for its result here."""
        wanted = self._hosts[:1] if self.options.process0_only else self._hosts
        results.fetch(
            wanted,
            self._id,
            self._call,
            self._go_on,
            window_bytes=self.options.result_window_bytes,
            wait_seconds=WAIT_SECONDS,
        )
        return all(host.buffers is not None for host in wanted)

    def _go_on(self) -> bool:
        self._look_outside()
        return not self.cancelled() and not self._disconnected()

    def _stop(self, outcome: Kind | None) -> None:
        """The barrier: nothing of this attempt lives when it returns."""
        if outcome is not None and outcome is not Kind.SUCCEEDED:
            self.attempt = self.attempt.stop(outcome)
        graceful = outcome in (Kind.CANCELLED, Kind.TIMED_OUT)
        grace = self.options.cancel_grace_seconds if graceful else 0.0
        margin = FINISH_SECONDS if outcome is Kind.SUCCEEDED else BARRIER_MARGIN_SECONDS
        for host in self._hosts:
            if self._disconnected() or host.over:
                continue
            if outcome is Kind.SUCCEEDED:
                host.agent.finish.remote(self._id)
            else:
                host.stopping = not host.failed and host.returned is None
                host.agent.stop.remote(self._id, grace)
            if host not in self._polls.values():
                self._poll(host)
        give_up = time.monotonic() + grace + margin
        while not all(host.over for host in self._hosts) and time.monotonic() < give_up:
            self._step(WAIT_SECONDS)
            self._look_outside()
        for host in self._hosts:
            if not host.over:
                log.warning("%s does not report its process dead; its agent is ended", host.member.label)
                host.lose("did not stop its process in time")
            if host.lost is None and host.launched and not self._disconnected():
                host.agent.forget.remote(self._id)
        self._polls.clear()

    def _tell_gone_from_silent(self) -> None:
        """A machine that has gone can be a preemption; an agent that does not answer on one that lives cannot."""
        lost = {host.member.host.node_id: host for host in self._hosts if host.lost is not None}
        if not lost or self._disconnected():
            return
        for node_id in gcs.vanished(lost):
            lost[node_id].gone = True
        for node_id, why in gcs.told_to_end(lost).items():
            host = lost[node_id]
            host.preempted = True
            host.lost = f"its Ray node ended as it was told to ({why})"

    @property
    def busy(self) -> list[Member]:
        """Hosts whose accelerator somebody else has."""
        return [host.member for host in self._hosts if host.raised is not None and host.raised.stage == "device"]

    @property
    def unresponsive(self) -> list[Member]:
        """Hosts whose agent must not be used again."""
        return [host.member for host in self._hosts if host.lost is not None]

    @property
    def without_agent(self) -> list[Member]:
        """Hosts on which the agent could not be started."""
        return [host.member for host in self._hosts if host.raised is not None and host.raised.stage == "runtime_env"]

    @property
    def draining(self) -> list[Member]:
        """Hosts that are about to be taken away, and those that Ray takes for it since a notice was taken back."""
        drained = self._outside.drained
        return [host.member for host in self._hosts if host.notice or host.member.slice_name in drained]

    # -- calls to agents

    def _call_all(self, call: Callable[[HostState], Any], timeout_seconds: float, what: str) -> dict[HostState, Any]:
        """Call every host at the same time. A host that fails has it in its state and is not in the answer."""
        refs = {call(host): host for host in self._hosts}
        answers: dict[int, tuple[HostState, Any]] = {}
        deadline = time.monotonic() + timeout_seconds
        waiting = list(refs)
        while waiting and time.monotonic() < deadline and not self.cancelled():
            ready, waiting = ray.wait(waiting, num_returns=1, timeout=WAIT_SECONDS)
            if not ready and self._polls:
                self._step(0)
            self._look_outside()
            waiting = [ref for ref in waiting if refs[ref].lost is None]
            for ref in ready:
                host = refs[ref]
                answer = self._call(host, ref)
                if not host.failed:
                    answers[host.member.process_id] = (host, answer)
        if not self.cancelled():
            for ref in waiting:
                refs[ref].lose(f"{what} within {timeout_seconds:g} s")
        return dict(answers.values())

    def _call(self, host: HostState, ref: Any) -> Any:
        """The answer, or None with the host's state telling why not; None without a word if it is cancelled."""
        try:
            while not ray.wait([ref], timeout=WAIT_SECONDS)[0]:
                self._look_outside()
                if self.cancelled() or host.lost is not None or self._disconnected():
                    return None
            return ray.get(ref)
        except RayError as error:
            note_failure(host, error)
        return None
