"""What a gang is made of, as the driver has resolved it from runner, pool and settings."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from prefect_tpu.cluster import runtime_env, tpu
from prefect_tpu.core.messages import DeviceCheck
from prefect_tpu.core.topology import SliceShape
from prefect_tpu.fleets.fleet import Fleet
from prefect_tpu.gang.host_state import AttemptOptions


@dataclass(frozen=True, slots=True)
class GangPlan:
    """What a gang is made of, and every limit that it runs under. Times in seconds, sizes in bytes.

    `sizes` are the numbers of slices that will do, ascending; `can_grow` is whether the gang may have more slices
    later than it began with. `host_resources` are reserved on each host beside its chips, sorted by name.
    """

    fleet: Fleet
    sizes: tuple[int, ...]
    accelerator_type: str
    topology: str
    chips_per_host: int | None
    preload: tuple[str, ...]
    env: dict[str, str]
    jax_distributed: Literal["auto"] | bool
    process0_only: bool
    lease_timeout_seconds: float
    lease_linger_seconds: float
    queue_message_interval_seconds: float
    agent_start_timeout_seconds: float
    agent_idle_release_seconds: float
    agent_poll_seconds: float
    launch_timeout_seconds: float
    jax_initialization_timeout_seconds: int
    failure_window_seconds: float
    clear_failure_window_seconds: float
    leave_timeout_seconds: float
    heartbeat_timeout_seconds: float
    hang_timeout_seconds: float | None
    hang_compile_grace_seconds: float
    lease_hold_seconds: float
    metadata_url: str | None
    preemptible: bool
    warm_spares: int
    cancel_grace_seconds: float
    inline_payload_bytes: int
    result_window_bytes: int
    timeout_seconds: float | None
    checkpoint_dir: str | None
    devices: DeviceCheck
    log_lines_per_second: float
    log_burst_lines: float
    log_level: int
    resize_after_seconds: float
    resize_interval_seconds: float
    can_grow: bool
    host_resources: tuple[tuple[str, float], ...] = ()
    runtime_env: dict[str, Any] = field(default_factory=dict)
    drain_timeout_seconds: float | None = None

    @property
    def num_slices(self) -> int:
        """The most slices that it may have."""
        return self.sizes[-1]

    def resolve(self) -> SliceShape:
        """The slices' shape; raises TopologyError for what does not exist."""
        return tpu.resolve_shape(self.accelerator_type, self.topology, self.chips_per_host)

    def options(self, run_id: str, num_processes: int) -> AttemptOptions:
        """For each attempt of one task run's gang.

        Args:
            run_id: of the task run.
            num_processes: how many hosts the gang has.
        """
        jax = self.jax_distributed
        return AttemptOptions(
            run_id=run_id,
            preload=self.preload,
            user_env=self.env,
            jax_distributed=(num_processes > 1 and "jax" in self.preload) if jax == "auto" else jax,
            jax_initialization_timeout_seconds=self.jax_initialization_timeout_seconds,
            clear_failure_window_seconds=self.clear_failure_window_seconds,
            leave_timeout_seconds=self.leave_timeout_seconds,
            heartbeat_timeout_seconds=self.heartbeat_timeout_seconds,
            hang_timeout_seconds=self.hang_timeout_seconds,
            hang_compile_grace_seconds=self.hang_compile_grace_seconds,
            metadata_url=self.metadata_url,
            most_slices=self.num_slices if self.can_grow else 0,
            resize_interval_seconds=self.resize_interval_seconds,
            agent_start_timeout_seconds=self.agent_start_timeout_seconds + runtime_env.setup_seconds(self.runtime_env),
            drain_timeout_seconds=self.drain_timeout_seconds,
            launch_timeout_seconds=self.launch_timeout_seconds,
            agent_poll_seconds=self.agent_poll_seconds,
            failure_window_seconds=self.failure_window_seconds,
            cancel_grace_seconds=self.cancel_grace_seconds,
            timeout_seconds=self.timeout_seconds,
            process0_only=self.process0_only,
            inline_payload_bytes=self.inline_payload_bytes,
            result_window_bytes=self.result_window_bytes,
            checkpoint_dir=self.checkpoint_dir,
            devices=self.devices,
            log_lines_per_second=self.log_lines_per_second,
            log_burst_lines=self.log_burst_lines,
            log_level=self.log_level,
        )
