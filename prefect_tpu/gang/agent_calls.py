"""What the driver sends to the agents, and what it makes of the errors that come back."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import ray
from ray.exceptions import (
    ObjectStoreFullError,
    OutOfDiskError,
    RayActorError,
    RayError,
    RayTaskError,
    RuntimeEnvSetupError,
)

from prefect_tpu._version import __version__
from prefect_tpu.cluster import object_store, session
from prefect_tpu.core.environment import gang_environment
from prefect_tpu.core.errors import ConfigurationError, DeviceBusyError, PreloadError, TransferError
from prefect_tpu.core.gang import Gang, Member
from prefect_tpu.core.kinds import Kind
from prefect_tpu.core.messages import GangContext, HostReport, JaxInit, LaunchRequest, Poll, Raised, Stage
from prefect_tpu.core.prefect_run import PrefectRun
from prefect_tpu.core.secrets import without_credentials
from prefect_tpu.core.topology import SliceShape
from prefect_tpu.gang.host_state import HostState
from prefect_tpu.gang.plan import GangPlan

WAIT_SECONDS = 0.1
"""How often the attempt looks at cancel, deadlines and heartbeats while no host says anything."""
DISCONNECT_SECONDS = 2.0
"""How long an unexpected error may wait for the news that somebody has shut Ray down."""


def request(
    member: Member,
    run_id: str,
    attempt_id: str,
    number: int,
    gang: Gang,
    shape: SliceShape,
    plan: GangPlan,
    ports: tuple[int, int],
    prefect: PrefectRun | None,
) -> LaunchRequest:
    """What one host needs to know to start its process.

    Args:
        member: the host.
        run_id: of the task run.
        attempt_id: of this attempt, the same on every host.
        number: of the attempt, from 1.
        gang: whom it belongs to.
        shape: of its slices.
        plan: how the attempt runs.
        ports: of JAX's coordinator and of the transport between slices, free on the coordinator's host.
        prefect: what the host is told of the task run.
    """
    jax_port, megascale_port = ports
    return LaunchRequest(
        attempt_id=attempt_id,
        context=GangContext(
            slice_index=member.slice_index,
            num_slices=gang.num_slices,
            host_index=member.host_index,
            hosts_per_slice=gang.hosts_per_slice,
            process_id=member.process_id,
            num_processes=gang.num_processes,
            attempt=number,
            run_id=run_id,
            slice_name=member.slice_name,
            checkpoint_dir=plan.checkpoint_dir,
            jax_distributed=plan.initializes_jax(gang.num_processes),
            can_grow=gang.num_slices < plan.most_slices,
        ),
        gang_env=gang_environment(gang, member, shape, megascale_port=megascale_port, user_env=plan.options.env),
        user_env=plan.options.env,
        preload=plan.preload,
        jax=JaxInit(
            coordinator_address=f"{gang.coordinator.address}:{jax_port}",
            num_processes=gang.num_processes,
            process_id=member.process_id,
            initialization_timeout_seconds=plan.tuning.jax_initialization_timeout_seconds,
        )
        if plan.initializes_jax(gang.num_processes)
        else None,
        devices=plan.devices,
        chips=member.host.chips,
        log_level=plan.log_level,
        log_lines_per_second=plan.tuning.host_log_lines_per_second,
        log_burst_lines=plan.log_burst_lines,
        checkpoints=plan.checkpoints if member.process_id == 0 else None,
        prefect=prefect,
    )


def ship(payload: list[Any], big_bytes: int) -> Any:
    """Small payloads go with the call, big ones once through the object store, out of band.

    Raises:
        TransferError: there is no room for them.
    """
    if not big_bytes:
        return [bytes(one) for one in payload]
    object_store.require_room(big_bytes, "arguments")
    try:
        return ray.put([np.frombuffer(one, dtype=np.uint8) for one in payload])
    except (ObjectStoreFullError, OutOfDiskError) as error:
        raise TransferError(f"Ray's object store takes no arguments of {big_bytes / 1e9:.2f} GB: {error}") from error


def check_version(host: HostState, report: HostReport) -> None:
    """Put it into the host's state if prefect_tpu there is another one than here."""
    if report.version != __version__:
        host.raised = Raised(
            stage="environment",
            type_name="ConfigurationError",
            message=f"prefect_tpu {report.version} on the host, {__version__} in the driver; install the same",
            traceback="",
        )


def note_failure(host: HostState, error: RayError) -> None:
    """Put what a call to a host's agent raised into the host's state."""
    if isinstance(error, RayTaskError):
        cause = error.cause if isinstance(error.cause, BaseException) else error
        stage = _stage(cause)
        if stage is None:
            host.lose(f"its agent failed: {type(cause).__name__}: {cause}")
        else:
            host.raised = host.raised or Raised(stage, type(cause).__name__, str(cause), str(error))
    elif isinstance(error, RuntimeEnvSetupError):
        text = without_credentials(str(error).strip())
        host.raised = host.raised or Raised("runtime_env", "RuntimeEnvSetupError", text.splitlines()[-1], text)
    elif isinstance(error, RayActorError) and error.actor_init_failed:
        host.raised = host.raised or Raised(
            stage="environment",
            type_name="ActorInitError",
            message=f"the agent could not start: {str(error).strip().splitlines()[-1]}",
            traceback=str(error),
        )
    elif isinstance(error, RayActorError):
        host.lose("its agent is gone", preempted=error.preempted)
    else:
        host.lose(f"its agent does not answer ({type(error).__name__})")


def _stage(cause: BaseException) -> Stage | None:
    if isinstance(cause, DeviceBusyError):
        return "device"
    if isinstance(cause, TransferError | MemoryError) or _is_full(cause):
        return "transfer"
    if isinstance(cause, PreloadError):
        return "preload"
    return "environment" if isinstance(cause, ConfigurationError) else None


def _is_full(error: BaseException) -> bool:
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.ENOMEM, errno.EFBIG, errno.EDQUOT)


@dataclass(slots=True)
class AgentCalls:
    """Calls to the agents of one attempt, and the long polls of its hosts. Used by the attempt's thread.

    Whatever fails is in the host's state afterwards. While a call is waited for, hosts are looked at from outside.

    Attributes:
        attempt_id: what runs.
        hosts: all of them.
        poll_seconds: how long a poll waits on the host for something to tell.
        cancelled: asked often; True ends every wait.
        look_outside: puts what is seen from outside into the hosts' states.
        take: given what a host has told.
    """

    attempt_id: str
    hosts: Sequence[HostState]
    poll_seconds: float
    cancelled: Callable[[], bool]
    look_outside: Callable[[], None]
    take: Callable[[HostState, Poll], None]
    _polls: dict[Any, HostState] = field(init=False, default_factory=dict)
    _generation: int = field(init=False, default_factory=session.generation)

    def look(self) -> None:
        """Look at the hosts from outside. Of one that is lost no answer is waited for."""
        self.look_outside()
        for ref, host in list(self._polls.items()):
            if host.lost is not None:
                del self._polls[ref]  # Ray would need seconds to say the same

    def poll(self, host: HostState) -> None:
        """Ask a host what is new, unless it is over or has been asked."""
        if not host.over and host not in self._polls.values():
            self._polls[host.agent.poll.remote(self.attempt_id, host.cursor, self.poll_seconds)] = host

    def step(self, timeout_seconds: float) -> None:
        """Take in the answers that are there, ask those hosts again."""
        if self.disconnected():
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
            poll = self.answer(host, ref)
            if isinstance(poll, Poll):
                self.take(host, poll)
                self.poll(host)

    def answer(self, host: HostState, ref: Any) -> Any:
        """The answer, or None with the host's state telling why not; None without a word if it is cancelled."""
        try:
            while not ray.wait([ref], timeout=WAIT_SECONDS)[0]:
                self.look()
                if self.cancelled() or host.lost is not None or self.disconnected():
                    return None
            return ray.get(ref)
        except RayError as error:
            note_failure(host, error)
        return None

    def answers(self, call: Callable[[HostState], Any], timeout_seconds: float, what: str) -> dict[HostState, Any]:
        """Call every host at the same time. A host that fails has it in its state and is not in the answer."""
        refs = {call(host): host for host in self.hosts}
        answers: dict[int, tuple[HostState, Any]] = {}
        deadline = time.monotonic() + timeout_seconds
        waiting = list(refs)
        while waiting and time.monotonic() < deadline and not self.cancelled():
            ready, waiting = ray.wait(waiting, num_returns=1, timeout=WAIT_SECONDS)
            if not ready and self._polls:
                self.step(0)
            self.look()
            waiting = [ref for ref in waiting if refs[ref].lost is None]
            for ref in ready:
                host = refs[ref]
                answer = self.answer(host, ref)
                if not host.failed:
                    answers[host.member.process_id] = (host, answer)
        if not self.cancelled():
            for ref in waiting:
                refs[ref].lose(f"{what} within {timeout_seconds:g} s")
        return dict(answers.values())

    def close(self) -> None:
        """No answer is waited for any more."""
        self._polls.clear()

    def disconnected(self) -> bool:
        """Whether somebody closed the Ray connection under this gang. Ray would start a new cluster unasked."""
        if session.generation() == self._generation:
            return False
        for host in self.hosts:
            if not host.over:
                host.lose(
                    "the Ray connection of this process was closed or replaced by somebody else; let no "
                    "RayTaskRunner() without an address end, and call no ray.shutdown(), while gangs run"
                )
        self._polls.clear()
        return True

    def unless_disconnected(self, do: Callable[[], Kind | None]) -> Kind | None:
        """Ray raises this and that, SystemExit too, when somebody shuts it down under a call; say so instead."""
        try:
            return do()
        except (Exception, SystemExit):
            give_up = time.monotonic() + DISCONNECT_SECONDS
            while not self.disconnected():
                if time.monotonic() >= give_up:
                    raise
                time.sleep(WAIT_SECONDS / 10)
            return None
