"""What only settings have: the same for every gang of a site."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from prefect_tpu.options.types import (
    Bytes,
    BytesAbove0,
    Flag,
    PerSecond,
    Seconds,
    SecondsAbove0,
    SecondsAbove1,
    WholeSecondsAbove0,
)


class Tuning(BaseModel):
    """Waits, limits and paths that runners and pools do not have."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    lease_linger_seconds: Seconds = Field(
        default=0.5,
        description="How long the slices of a gang that has ended wait for the next gang of the process, in seconds.",
    )
    queue_message_interval_seconds: SecondsAbove0 = Field(
        default=15.0, description="How often a waiting gang says so in its logs, in seconds."
    )
    agent_start_timeout_seconds: SecondsAbove0 = Field(
        default=120.0,
        description="For the agents of a gang to get ready, in seconds; the limit of their runtime_env comes on top.",
    )
    agent_poll_seconds: SecondsAbove0 = Field(
        default=1.0, description="How long an agent holds a question before it answers 'nothing new', in seconds."
    )
    jax_initialization_timeout_seconds: WholeSecondsAbove0 = Field(
        default=120, description="How long jax.distributed.initialize waits for all hosts, in seconds."
    )
    failure_window_seconds: Seconds = Field(
        default=1.0,
        description="How long other hosts are heard after a failure that may come of another host's, in seconds.",
    )
    clear_failure_window_seconds: Seconds = Field(
        default=0.2,
        description="The same after a lost host or an exception of the function's own, in seconds.",
    )
    leave_timeout_seconds: Seconds = Field(
        default=60.0,
        description="After the first host has left, or a slice has gone after a notice: how long the others may still "
        "save, in seconds.",
    )
    exit_timeout_seconds: Seconds = Field(
        default=600.0,
        description="How long threads and exit hooks of a function that has ended may take before they are cut, in "
        "seconds.",
    )
    heartbeat_timeout_seconds: SecondsAbove1 = Field(
        default=10.0, description="Silence of a host's agent after which the host counts as lost, in seconds."
    )
    hang_compile_grace_seconds: Seconds = Field(
        default=1_800.0, description="More time, once in an attempt, if a host compiles then, in seconds."
    )
    metadata_url: str | None = Field(
        default=None,
        description="Cloud metadata server, up to computeMetadata/v1; unset: the usual one, none for simulated slices.",
    )
    preemption_progress_seconds: Seconds = Field(
        default=600.0,
        description="An attempt that reports no steps has made progress if it ran for so long, in seconds.",
    )
    preemption_backoff_seconds: Seconds = Field(
        default=1.0,
        description="Wait after the second preemption in a row without progress; doubled after each, in seconds.",
    )
    preemption_backoff_longest_seconds: Seconds = Field(
        default=60.0, description="Longest wait after a preemption, in seconds."
    )
    checkpoint_look_timeout_seconds: SecondsAbove0 = Field(
        default=30.0,
        description="How long a function waits until it is known whose checkpoints are in its directory, in seconds.",
    )
    device_wait_seconds: Seconds = Field(
        default=30.0,
        description="How long whoever holds a host's accelerator has to let go before a launch fails, in seconds.",
    )
    device_globs: list[str] = Field(
        default=["/dev/accel[0-9]*", "/dev/vfio/[0-9]*"],
        description="Device files of the accelerator, as JSON list of patterns; an empty list: they are not looked at.",
    )
    libtpu_lock_file: str = Field(
        default="/tmp/libtpu_lockfile",  # noqa: S108 - where libtpu puts it
        description="The file by which libtpu keeps others from the chips.",
    )
    host_log_lines_per_second: PerSecond = Field(
        default=200.0, description="Lines that each host may log for long; the others are counted, per second."
    )
    gang_log_lines_per_second: PerSecond = Field(
        default=1_000.0, description="Lines that all hosts of a gang together may log for long, per second."
    )
    log_burst_seconds: SecondsAbove0 = Field(
        default=10.0, description="So many seconds' worth of lines may come at once, after a pause, in seconds."
    )
    host_prefect_items_per_second: PerSecond = Field(
        default=10.0,
        description="Prefect events and artifacts that each host may hand over for long; more are dropped, per second.",
    )
    host_prefect_item_bytes: BytesAbove0 = Field(
        default=1_500_000, description="The biggest event or artifact that a host may hand over, in bytes."
    )
    flow_parameters_bytes: Bytes = Field(
        default=100_000,
        description="Up to this size hosts know the flow's parameters (prefect.runtime.flow_run.parameters), in bytes.",
    )
    infrastructure_backoff_seconds: Seconds = Field(
        default=1.0,
        description="Wait after the second lost host in a row without progress; doubled after each, in seconds.",
    )
    infrastructure_backoff_longest_seconds: Seconds = Field(
        default=60.0, description="Longest wait after a lost host, in seconds."
    )
    slice_bars: Flag = Field(
        default=False,
        description="A task run inside the gang's for each slice of each attempt; it gets its hosts' logs.",
    )
    inline_payload_bytes: Bytes = Field(
        default=100_000,
        description="Arguments up to this size go with the call, bigger ones by the object store.",
    )
    result_window_bytes: BytesAbove0 = Field(
        default=256 * 1024**2,
        description="Pieces of results that are on their way to the driver at the same time, in bytes.",
    )
