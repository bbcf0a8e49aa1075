"""One attempt of a gang: start every host process, watch them, and see all of them dead in the end."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from prefect_tpu.cluster import gcs
from prefect_tpu.core.attempt import OutsideFacts, Watch
from prefect_tpu.core.errors import TransferError
from prefect_tpu.core.gang import Gang, Member
from prefect_tpu.core.kinds import Kind
from prefect_tpu.core.messages import (
    Carried,
    CheckpointsFound,
    Exited,
    LogLine,
    LogRecord,
    Notice,
    Phase,
    Poll,
    Progress,
    Raised,
    Returned,
)
from prefect_tpu.core.prefect_run import PrefectRun
from prefect_tpu.core.stages import STAGES
from prefect_tpu.core.topology import SliceShape
from prefect_tpu.gang import results
from prefect_tpu.gang.agent_calls import WAIT_SECONDS, AgentCalls, check_version, request, ship
from prefect_tpu.gang.endings import Endings
from prefect_tpu.gang.health import HealthMonitor
from prefect_tpu.gang.host_state import AttemptEnd, HostState
from prefect_tpu.gang.observer import Observer
from prefect_tpu.gang.plan import GangPlan
from prefect_tpu.gang.resizing import ResizeOffers

log = logging.getLogger("prefect_tpu.gang")

GONE_SECONDS = 1.0
"""After its agent's end: how long a machine may still answer that is about to be gone as a whole."""


@dataclass(slots=True)
class GangAttempt:
    """Runs one attempt on slices that are already leased, with agents that are already starting.

    `run` blocks on the thread that owns the attempt; `cancelled` is asked often, and True ends it. `room` says how
    many slices the gang could have now, 0 if no more than it has. `prefect`: what hosts are told of the task run.
    """

    gang: Gang
    shape: SliceShape
    agents: Sequence[Any]
    run_id: str
    number: int
    payload: list[Any]
    plan: GangPlan
    observer: Observer
    cancelled: Callable[[], bool]
    prefect: PrefectRun | None = None
    on_entered: Callable[[], None] = lambda: None
    on_drain: Callable[[str], None] = lambda _: None
    room: Callable[[], int] = lambda: 0
    _hosts: list[HostState] = field(init=False, default_factory=list)
    _id: str = field(init=False, default="")
    _health: HealthMonitor = field(init=False)
    _calls: AgentCalls = field(init=False)
    _offers: ResizeOffers = field(init=False)
    _launched_at: float = field(init=False, default=0.0)
    _entered_at: float | None = field(init=False, default=None)
    _checkpoints: frozenset[str] | None = field(init=False, default=None)

    def run(self) -> AttemptEnd:
        """Launch, watch, gather, stop. Returns only when no process of this attempt is left."""
        self._hosts = [HostState(m, a) for m, a in zip(self.gang.members, self.agents, strict=True)]
        plan, observer = self.plan, self.observer
        self._id = f"{self.run_id}-{self.number}"
        self._health = HealthMonitor(self._id, self._hosts, plan, observer, self.on_drain)
        self._calls = AgentCalls(
            self._id, self._hosts, plan.tuning.agent_poll_seconds, self.cancelled, self._health.look, self._take
        )
        self._offers = ResizeOffers(self._id, self.gang.num_slices, self._hosts, plan, observer, self.room)
        endings = Endings(self._id, self._hosts, plan, observer, self._calls, self._health, self.cancelled)
        started = self._launched_at = time.monotonic()
        outcome: Kind | None = None
        try:
            outcome = self._calls.unless_disconnected(self._work)
        finally:
            outcome = self._calls.unless_disconnected(lambda: endings.end(outcome)) or outcome
            self._health.close()
        self._tell_gone_from_silent()
        ended, entered = time.monotonic(), self._entered_at
        return AttemptEnd(
            outcome=outcome,
            evidence=tuple(host.evidence() for host in self._hosts),
            buffers=tuple(host.buffers for host in self._hosts),
            summaries=tuple(host.returned.summary if host.returned else "" for host in self._hosts),
            checkpoints=self._checkpoints,
            launch_seconds=(entered or ended) - started,
            run_seconds=ended - entered if entered else 0.0,
            drain_seconds=ended - noticed if (noticed := self._health.noticed_at) else 0.0,
        )

    def _work(self) -> Kind | None:
        """Launch, watch, gather. None: the evidence has what went wrong."""
        outcome = self._launch()
        if outcome is None and not any(host.failed for host in self._hosts):
            outcome = self._watch()
        if outcome is Kind.SUCCEEDED and not self._gather():
            outcome = Kind.CANCELLED if self.cancelled() else None
        return outcome

    # -- launching

    def _launch(self) -> Kind | None:
        """Fork one child on every host. None if all of them are up; the evidence has what went wrong."""
        plan, gang = self.plan, self.gang
        size = sum(memoryview(one).nbytes for one in self.payload)
        big = size if size > plan.tuning.inline_payload_bytes else 0
        prepared = self._calls.answers(
            lambda host: host.agent.prepare.remote(plan.preload, plan.options.env, big, plan.metadata_url),
            plan.agent_start_timeout_seconds,
            "did not get ready",
        )
        if self.cancelled():
            return Kind.CANCELLED
        for host, report in prepared.items():
            check_version(host, report)
            self._health.connect(host, report)
        if any(host.failed for host in self._hosts):
            return None
        ports = self._calls.answer(self._hosts[0], self._hosts[0].agent.free_ports.remote(2))
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
            self._calls.poll(host)

        def launch(host: HostState) -> Any:
            member = host.member
            wanted = request(member, self.run_id, self._id, self.number, gang, self.shape, plan, ports, self.prefect)
            return host.agent.launch.remote(wanted, shipped, plan.secret_env)

        self._calls.answers(launch, plan.agent_start_timeout_seconds, "did not start its process")
        return Kind.CANCELLED if self.cancelled() else None

    # -- watching

    def _watch(self) -> Kind | None:
        """Forward what the hosts say until all returned, somebody failed, or it is ended from outside."""
        options, tuning = self.plan.options, self.plan.tuning
        watch = Watch(
            launched_at=self._launched_at,
            timeout_seconds=self.plan.timeout_seconds,
            launch_timeout_seconds=options.launch_timeout_seconds,
            leave_timeout_seconds=tuning.leave_timeout_seconds,
            failure_window_seconds=tuning.failure_window_seconds,
            clear_failure_window_seconds=tuning.clear_failure_window_seconds,
        )
        while True:
            self._calls.look()
            now = time.monotonic()
            outside = self._seen_outside()
            answer = watch.next([host.facts(gone=self._health.gone(host)) for host in self._hosts], outside, now)
            for index in watch.late:
                self._hosts[index].lose(f"not up within launch_timeout_seconds={options.launch_timeout_seconds:g}")
            if self._entered_at is None and watch.entered_at is not None:
                self._entered_at = watch.entered_at
                self.on_entered()
            if answer is not None:
                return None if answer == "judge" else answer
            self._health.end_gone()
            if not any(host.failed for host in self._hosts):
                self._offers.look(self._entered_at, now)
            self._calls.step(WAIT_SECONDS)

    def _seen_outside(self) -> OutsideFacts:
        cancelled, some_gone = self.cancelled(), any(self._health.gone(host) for host in self._hosts)
        return OutsideFacts(
            cancelled=cancelled,
            draining=bool(self._health.draining),
            hung=not cancelled and not some_gone and self._health.hung(),  # asks all hosts for their stacks
        )

    def _take(self, host: HostState, poll: Poll) -> None:
        host.cursor = poll.cursor
        if poll.dropped_lines > host.dropped_lines:
            self.observer.dropped(host.member, poll.dropped_lines - host.dropped_lines)
            host.dropped_lines = poll.dropped_lines
        # Of slices that stay, hosts may still save.
        somebody_fell = any(o.fell and not self._health.gone(o) for o in self._hosts if o is not host)
        for event in poll.events:
            match event:
                case LogLine() | LogRecord():
                    self.observer.log(host.member, event, collateral=somebody_fell or host.killed)
                case Phase(name="entered"):
                    host.entered = True
                    self.observer.entered(host.member)
                case Phase(name="ended"):
                    host.ended = True
                case Progress() as report:
                    host.progress(report, time.monotonic())
                    self.observer.progress(host.member, report)
                case CheckpointsFound(names):
                    self._checkpoints = frozenset(names)
                case Carried():
                    self.observer.carried(host.member, event)
                case Returned():
                    host.returned = event
                case Raised():
                    host.raised = host.raised or event
                    if event.left == "drain":
                        self._health.left()
                case Notice():
                    self._health.heard(host, event)
                case Exited():
                    host.exited = event

    # -- ending

    def _gather(self) -> bool:
        """Fetch the results; False if a host was lost on the way, or there is no room for its result here."""
        wanted = self._hosts[:1] if self.plan.process0_only else self._hosts
        results.fetch(
            wanted,
            self._id,
            self._calls.answer,
            self._go_on,
            window_bytes=self.plan.tuning.result_window_bytes,
            wait_seconds=WAIT_SECONDS,
        )
        return all(host.buffers is not None for host in wanted)

    def _go_on(self) -> bool:
        self._calls.look()
        return not self.cancelled() and not self._calls.disconnected()

    def _tell_gone_from_silent(self) -> None:
        """A machine that has gone can be a preemption; an agent that does not answer on one that lives cannot."""
        lost = {host.member.host.node_id: host for host in self._hosts if host.lost is not None}
        if not lost or self._calls.disconnected():
            return
        vanished, give_up = gcs.vanished(lost), time.monotonic() + GONE_SECONDS
        while len(vanished) < len(lost) and time.monotonic() < give_up:
            time.sleep(WAIT_SECONDS)
            vanished = gcs.vanished(lost)
        for node_id in vanished:
            lost[node_id].gone = True
        for node_id, why in gcs.told_to_end(lost).items():
            host = lost[node_id]
            host.preempted = True
            host.lost = f"its Ray node ended as it was told to ({why})"

    @property
    def busy(self) -> list[Member]:
        """Hosts whose accelerator somebody else has."""
        return [host.member for host in self._hosts if host.raised and STAGES[host.raised.stage].drops == "slice"]

    @property
    def unresponsive(self) -> list[Member]:
        """Hosts whose agent must not be used again."""
        return [host.member for host in self._hosts if host.lost is not None]

    @property
    def without_agent(self) -> list[Member]:
        """Hosts on which the agent could not be started."""
        return [host.member for host in self._hosts if host.raised and STAGES[host.raised.stage].drops == "agent"]

    @property
    def draining(self) -> list[Member]:
        """Hosts that are about to be taken away, and those that Ray takes for it since a notice was taken back."""
        drained = self._health.drained
        return [host.member for host in self._hosts if host.notice or host.member.slice_name in drained]
