"""All attempts of one task run's gang: connect, lease, launch, judge; leases outlive an attempt."""

from __future__ import annotations

import logging
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from prefect_tpu.cluster import inventory, object_refs, runtime_env, session
from prefect_tpu.core.errors import GangCancelledError
from prefect_tpu.core.evidence import HostEvidence
from prefect_tpu.core.gang import Host
from prefect_tpu.core.kinds import KINDS, Kind
from prefect_tpu.core.messages import Raised
from prefect_tpu.core.prefect_run import PrefectRun
from prefect_tpu.core.report import AttemptReport
from prefect_tpu.core.topology import SliceShape
from prefect_tpu.core.verdict import Verdict, judge
from prefect_tpu.gang.agents import AgentPool
from prefect_tpu.gang.attempt import GangAttempt
from prefect_tpu.gang.endings import BARRIER_MARGIN_SECONDS
from prefect_tpu.gang.host_state import AttemptEnd
from prefect_tpu.gang.observer import Observer
from prefect_tpu.gang.plan import GangPlan
from prefect_tpu.leases.lease import GangLease
from prefect_tpu.leases.slices import GangSlices
from prefect_tpu.wire import failures, pickling, project

log = logging.getLogger("prefect_tpu.gang")

_CONNECTING = threading.Lock()
"""Between a connection and the hold on it no other gang may switch the process to another fleet."""
AGENTS = AgentPool()


@dataclass(frozen=True, slots=True)
class Call:
    """The user's function with its arguments; `prefect` is what hosts are told of the task run."""

    fn: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    prefect: PrefectRun | None = None


@dataclass(frozen=True, slots=True)
class Ended:
    """An attempt's report, with the results (in process-id order) or the exception to show.

    Attributes:
        error: the user's own exception for USER_ERROR, as it was raised on the host; else None.
    """

    report: AttemptReport
    results: list[Any] | None
    error: BaseException | None


@dataclass(slots=True)
class Attempts:
    """All attempts of one task run, one after the other. `attempt` blocks its thread.

    Attributes:
        plan: what the gang is made of.
        run_id: of the task run.
        cancelled: set from any thread, it ends the attempt that runs or the wait for slices; every later attempt
            ends at once.
        run_name: of the task run, for others that wait for its slices.
    """

    plan: GangPlan
    run_id: str
    cancelled: threading.Event
    run_name: str = ""
    _slices: GangSlices = field(init=False)
    _spares: list[Host] = field(init=False, default_factory=list)
    _packages: dict[str, Any] = field(init=False, default_factory=dict)
    _checkpoints: frozenset[str] | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        plan = self.plan
        self._slices = GangSlices(
            plan.fleet,
            plan.options,
            plan.tuning,
            plan.host_resources,
            self.run_id,
            self.cancelled.is_set,
            self.run_name,
        )

    @property
    def barrier_seconds(self) -> float:
        """How long an attempt that is cancelled takes until all its processes are dead, at most."""
        return self.plan.options.cancel_grace_seconds + BARRIER_MARGIN_SECONDS

    def release(self) -> None:
        """Give the slices back. The next attempt, if there is one, leases anew."""
        self._slices.release()

    def attempt(self, number: int, call: Call, observer: Observer, *, backoff_seconds: float = 0) -> Ended:
        """Run attempt `number` of this task run on every host, to its end.

        Args:
            number: counted from 1; used once.
            call: what to run.
            observer: told what the hosts say.
            backoff_seconds: waited first, unless it is cancelled.

        Raises:
            ConfigurationError, TopologyError: before anything is reserved.
            ProvisioningError: the fleet cannot bring them up.
            SliceUnavailableError: no slices before the deadline.
            GangCancelledError: cancelled before its processes were launched.
        """
        plan = self.plan
        shape = plan.resolve()
        project.check_by_name(plan.options.by_name)
        payload = pickling.dumps(
            (call.fn, call.args, call.kwargs),
            project_root=pickling.project_root_of(call.fn),
            by_name=plan.options.by_name,
            fetch=object_refs.fetcher(self.cancelled.is_set),
        )
        if backoff_seconds:
            observer.say(f"attempt {number} waits {backoff_seconds:g} s before it looks for slices")
            if self.cancelled.wait(backoff_seconds):
                raise GangCancelledError("cancelled before it looked for slices")
        began, began_unix = time.monotonic(), time.time()
        with _CONNECTING:
            plan.fleet.connect(say=observer.say)
            session.hold()
        try:
            self._packages = runtime_env.upload(plan.options.runtime_env)
            lease = self._slices.complete(shape, lambda text: observer.waiting(number, text))
            return self._run(number, lease, (began, began_unix), shape, payload, observer, call.prefect)
        except BaseException:
            self.release()
            raise
        finally:
            session.release()

    def _warm(self, shape: SliceShape) -> None:
        """Start agents on free slices, without reserving them, so that a replacement is warm."""
        plan, wanted = self.plan, self.plan.options.warm_spares or 0
        if wanted < 1 or self._spares:
            return
        try:
            spares = inventory.free_slices(shape)[:wanted]
            hosts = [host for one in spares for host in one.hosts]
            for agent in self._take_agents(hosts):
                agent.prepare.remote(plan.preload, plan.options.env, 0, plan.metadata_url)
            self._spares = hosts
        except Exception as error:  # noqa: BLE001 - it only saves time later
            log.debug("no spare slices are kept warm: %s", error)

    def _take_agents(self, hosts: list[Host]) -> list[Any]:
        idle = self.plan.options.agent_idle_release_seconds
        return AGENTS.take(hosts, idle_release_seconds=idle, runtime_env=self._packages)

    def _run(
        self,
        number: int,
        lease: GangLease,
        began: tuple[float, float],
        shape: SliceShape,
        payload: list[Any],
        observer: Observer,
        prefect: PrefectRun | None,
    ) -> Ended:
        plan, gang = self.plan, lease.gang
        began_seconds, began_unix_seconds = began
        lease_seconds = time.monotonic() - began_seconds
        hosts = [member.host for member in gang.members]
        names = ", ".join(one.name for one in gang.slices)
        observer.say(f"attempt {number} on {names}: {gang.num_processes} hosts")
        observer.started(number, gang)
        agents = self._take_agents(hosts)
        one = GangAttempt(
            gang=gang,
            shape=shape,
            agents=agents,
            run_id=self.run_id,
            number=number,
            payload=payload,
            plan=plan,
            observer=observer,
            cancelled=self.cancelled.is_set,
            prefect=prefect,
            on_entered=lambda: self._warm(shape),
            on_drain=lambda name: self._slices.reserve_ahead(shape, observer.say, name),
            room=lambda: self._slices.room(shape),
        )
        try:
            end = one.run()
        finally:
            spares, self._spares = self._spares, []
            AGENTS.give_back([*hosts, *spares], self._packages)
            for member in [*one.unresponsive, *one.without_agent]:
                AGENTS.drop(member.host, self._packages)
            self._slices.drop({member.slice_name for member in [*one.unresponsive, *one.busy, *one.draining]})
        outcome, results, evidence = _results(end)
        verdict = judge(outcome, evidence, preemptible=plan.options.preemptible)
        error = _user_error(evidence, verdict)
        report = AttemptReport(
            number=number,
            gang=gang,
            evidence=tuple(host.slim(culprit=host.process_id in verdict.culprits) for host in evidence),
            verdict=verdict,
            lease_seconds=lease_seconds,
            launch_seconds=end.launch_seconds,
            run_seconds=end.run_seconds,
            drain_seconds=end.drain_seconds,
            began_seconds=began_seconds,
            began_unix_seconds=began_unix_seconds,
            summaries=end.summaries,
            found_checkpoint=self._found_checkpoint(end.checkpoints),
        )
        match KINDS[verdict.kind].slices:
            case "handed over":
                self._slices.hand_over()
                self.release()
            case "grown":
                self._slices.grow()
            case "released":
                self.release()
        return Ended(report, results, error)

    def _found_checkpoint(self, there: frozenset[str] | None) -> bool | None:
        """Whether checkpoints are there that no attempt before has found. Those that the first one finds are older."""
        if there is None:
            return None
        before, self._checkpoints = self._checkpoints, there | (self._checkpoints or frozenset())
        return before is not None and not there <= before


def _results(end: AttemptEnd) -> tuple[Kind | None, list[Any] | None, tuple[HostEvidence, ...]]:
    """Outcome, results in process-id order, evidence.

    A result that cannot be rebuilt here is no success: it becomes evidence against its host.
    """
    if end.outcome is not Kind.SUCCEEDED:
        return end.outcome, None, end.evidence
    results: list[Any] = []
    evidence = list(end.evidence)
    outcome: Kind | None = Kind.SUCCEEDED
    for index, buffers in enumerate(end.buffers):
        if buffers is None:
            continue
        try:
            results.append(pickling.loads(buffers, copy=False))
        except Exception as error:  # noqa: BLE001 - whatever the user's classes do when they are rebuilt here
            text = f"its result cannot be rebuilt in the driver: {error}"
            raised = Raised("result", type(error).__name__, text, traceback.format_exc())
            evidence[index] = replace(evidence[index], returned=False, raised=raised)
            outcome = None
    return outcome, results if outcome is Kind.SUCCEEDED else None, tuple(evidence)


def _user_error(evidence: tuple[HostEvidence, ...], verdict: Verdict) -> BaseException | None:
    """What the function raised on the first culprit, with the host's traceback as its cause."""
    if verdict.kind is not Kind.USER_ERROR:
        return None
    return failures.rebuild(next(one.raised for one in evidence if one.process_id == verdict.culprits[0]))
