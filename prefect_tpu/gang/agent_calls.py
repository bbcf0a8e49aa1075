"""What the driver sends to the agents, and what it makes of the errors that come back."""

from __future__ import annotations

import errno
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
from prefect_tpu.cluster import object_store
from prefect_tpu.core.environment import gang_environment
from prefect_tpu.core.errors import ConfigurationError, DeviceBusyError, PreloadError, TransferError
from prefect_tpu.core.gang import Gang, Member
from prefect_tpu.core.messages import GangContext, HostReport, JaxInit, LaunchRequest, Raised, Stage
from prefect_tpu.core.topology import SliceShape
from prefect_tpu.gang.host_state import AttemptOptions, HostState


def request(
    member: Member,
    attempt_id: str,
    number: int,
    gang: Gang,
    shape: SliceShape,
    options: AttemptOptions,
    ports: tuple[int, int],
) -> LaunchRequest:
    """What one host needs to know to start its process.

    Args:
        member: the host.
        attempt_id: of this attempt, the same on every host.
        number: of the attempt, from 1.
        gang: whom it belongs to.
        shape: of its slices.
        options: how the attempt runs.
        ports: of JAX's coordinator and of the transport between slices, free on the coordinator's host.
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
            run_id=options.run_id,
            slice_name=member.slice_name,
            checkpoint_dir=options.checkpoint_dir,
            can_grow=gang.num_slices < options.most_slices,
        ),
        gang_env=gang_environment(gang, member, shape, megascale_port=megascale_port, user_env=options.user_env),
        user_env=options.user_env,
        preload=options.preload,
        jax=JaxInit(
            coordinator_address=f"{gang.coordinator.address}:{jax_port}",
            num_processes=gang.num_processes,
            process_id=member.process_id,
            initialization_timeout_seconds=options.jax_initialization_timeout_seconds,
        )
        if options.jax_distributed
        else None,
        devices=options.devices,
        log_level=options.log_level,
        log_lines_per_second=options.log_lines_per_second,
        log_burst_lines=options.log_burst_lines,
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
        text = str(error).strip()
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
