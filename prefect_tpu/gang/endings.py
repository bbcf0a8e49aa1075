"""How an attempt's processes end: those that are done as Python does, the others at once; all are dead then."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from prefect_tpu.core.kinds import KINDS, Ending, Kind
from prefect_tpu.core.messages import LogRecord
from prefect_tpu.core.verdict import decide
from prefect_tpu.gang.agent_calls import WAIT_SECONDS, AgentCalls
from prefect_tpu.gang.health import HealthMonitor
from prefect_tpu.gang.host_state import HostState
from prefect_tpu.gang.observer import Observer
from prefect_tpu.gang.plan import GangPlan

log = logging.getLogger("prefect_tpu.gang")

BARRIER_MARGIN_SECONDS = 8.0
"""Beyond the grace period: how long a host may take to report its process dead before its agent is ended."""
FINISH_SECONDS = 15.0
"""As the margin, for processes that are done: time for JAX's shutdown."""


@dataclass(slots=True)
class Endings:
    """The end of one attempt. Used by the attempt's thread."""

    attempt_id: str
    hosts: Sequence[HostState]
    plan: GangPlan
    observer: Observer
    calls: AgentCalls
    health: HealthMonitor
    cancelled: Callable[[], bool]

    def end(self, outcome: Kind | None) -> Kind | None:
        """The barrier: nothing of this attempt lives when it returns.

        Args:
            outcome: None: the evidence decides.

        Returns:
            The same; CANCELLED if a success was cancelled before threads and exit hooks of the function had ended.
        """
        ending: Ending = "kill" if outcome is None else KINDS[outcome].ending
        grace = self.plan.options.cancel_grace_seconds if ending == "terminate" else 0.0
        may_end, limit = self._may_end(ending)
        for host in self.hosts:
            if host not in may_end:
                self._stop(host, grace)
        if not self._let_end(may_end, *limit):
            outcome = Kind.CANCELLED if outcome is Kind.SUCCEEDED else outcome
            grace = self.plan.options.cancel_grace_seconds
            for host in may_end:
                self._stop(host, grace)
            may_end = []
        for host in may_end:
            if not host.over and not host.cut and not self.calls.disconnected():
                host.agent.finish.remote(self.attempt_id)
        self._wait_until_dead(grace + (FINISH_SECONDS if may_end else BARRIER_MARGIN_SECONDS))
        if outcome is Kind.SUCCEEDED:
            for host in self.hosts:
                self._tell_of_exit(host)
        self.calls.close()
        return outcome

    def _stop(self, host: HostState, grace_seconds: float) -> None:
        if self.calls.disconnected() or host.over:
            return
        host.stopping = not host.failed and host.returned is None
        host.killed = host.stopping and grace_seconds == 0
        host.agent.stop.remote(self.attempt_id, grace_seconds)
        self.calls.poll(host)

    def _may_end(self, ending: Ending) -> tuple[list[HostState], tuple[str, float]]:
        """Hosts whose function has ended by itself, and the setting that says how long the rest of them may take.

        Who only failed, or has to go, because of another host is not among them: its threads may wait for that one.
        """
        tuning = self.plan.tuning
        there = [host for host in self.hosts if not host.over and not self.calls.disconnected()]
        whole = "exit_timeout_seconds", tuning.exit_timeout_seconds
        if ending == "finish":
            return there, whole
        if ending == "terminate":
            return [], whole
        verdict = decide([host.evidence() for host in self.hosts], preemptible=self.plan.options.preemptible)
        if verdict.kind in (Kind.USER_ERROR, Kind.FATAL):
            guilty = set(verdict.culprits)
            return [one for one in there if one.raised is not None and one.member.process_id in guilty], whole
        noticed = bool(self.health.draining)
        done = [one for one in there if one.left or (noticed and one.returned is not None)]
        if verdict.kind is Kind.RESIZED:
            return done, whole
        return done, ("leave_timeout_seconds", tuning.leave_timeout_seconds)

    def _let_end(self, hosts: Sequence[HostState], setting: str, seconds: float) -> bool:
        """Wait until these have ended threads and exit hooks, or cut them; False if it is cancelled meanwhile."""
        for host in hosts:
            self.calls.poll(host)
        give_up = time.monotonic() + seconds
        while waiting := [one for one in hosts if not (one.over or one.ended or one.cut)]:
            if self.cancelled():
                return False
            if self.calls.disconnected():
                return True
            for host in waiting:
                if time.monotonic() >= give_up:
                    self._cut(host, f"{setting}={seconds:g} is over")
                elif self.health.gone(host):
                    self._cut(host, "its slice goes now")
            self.calls.step(WAIT_SECONDS)
            self.calls.look()
        return True

    def _cut(self, host: HostState, why: str) -> None:
        host.cut = True
        host.agent.cut.remote(self.attempt_id, why)

    def _wait_until_dead(self, seconds: float) -> None:
        give_up = time.monotonic() + seconds
        finished = False
        while (waiting := [host for host in self.hosts if not host.over]) and time.monotonic() < give_up:
            if not finished and all(host.ended for host in waiting) and not self.calls.disconnected():
                finished = True  # of those that were cancelled nobody takes JAX's coordinator from the others
                for host in waiting:
                    host.agent.finish.remote(self.attempt_id)
            self.calls.step(WAIT_SECONDS)
            self.calls.look()
        for host in self.hosts:
            if not host.over:
                log.warning("%s does not report its process dead; its agent is ended", host.member.label)
                host.lose("did not stop its process in time")
            if host.lost is None and host.launched and not self.calls.disconnected():
                host.agent.forget.remote(self.attempt_id)

    def _tell_of_exit(self, host: HostState) -> None:
        """After a result nobody else would say that the rest did not end well."""
        if host.cut or host.ended:
            return
        text = ""
        if host.lost is not None:
            text = f"lost before its threads and exit hooks had ended: {host.lost}"
        elif host.exited is not None and (host.exited.signal or host.exited.exit_code):
            how = f"signal {host.exited.signal}" if host.exited.signal else f"exit code {host.exited.exit_code}"
            text = f"ended with {how} after its function had returned, before its threads and exit hooks had ended"
        if text:
            self.observer.log(host.member, LogRecord(logging.WARNING, log.name, text), collateral=False)
