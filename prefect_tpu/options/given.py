"""Generated from gang.py by generate.py, do not edit. What runners and pools may be given; None: not given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

from pydantic import Field, SecretStr

from prefect_tpu.options.declare import Options
from prefect_tpu.options.types import (
    AcceleratorType,
    Count,
    CountFrom1,
    Directory,
    Flag,
    JaxDistributed,
    Modules,
    RuntimeEnv,
    Seconds,
    SecondsAbove0,
    SecretVariables,
    Sizes,
    Topology,
    Variables,
)


class GivenOptions(TypedDict, total=False):
    """Arguments of a runner, and of `pool.runner()`."""

    accelerator_type: AcceleratorType | None
    topology: Topology | None
    chips_per_host: CountFrom1 | None
    num_slices: int | Sequence[int] | None
    size_wait_seconds: Seconds | None
    resize_after_seconds: Seconds | None
    resize_interval_seconds: Seconds | None
    preemptible: Flag | None
    env: Mapping[str, str] | None
    secret_env: Mapping[str, str | SecretStr] | None
    runtime_env: Mapping[str, Any] | None
    preload: Sequence[str] | None
    by_name: Sequence[str] | None
    jax_distributed: JaxDistributed | None
    checkpoint_root: str | Path | None
    resumable: Flag | None
    max_preemptions: Count | None
    max_infrastructure_failures: Count | None
    max_preemptions_without_progress: CountFrom1 | None
    lease_timeout_seconds: Seconds | None
    lease_hold_seconds: Seconds | None
    launch_timeout_seconds: SecondsAbove0 | None
    cancel_grace_seconds: Seconds | None
    hang_timeout_seconds: SecondsAbove0 | None
    drain_timeout_seconds: SecondsAbove0 | None
    warm_spares: Count | None
    agent_idle_release_seconds: Seconds | None


class PoolOptions(Options):
    """Fields of a pool's block; an empty one is not said there."""

    accelerator_type: AcceleratorType = Field(
        default="v4", title="Accelerator type", description="Type of the slices, such as v4, v5e, v5p or v6e."
    )
    topology: Topology = Field(default="2x2x2", description="Chips of one slice, such as 4x4 or 2x2x2.")
    chips_per_host: CountFrom1 | None = Field(
        default=None, title="Chips per host", description="Only if it is not the default of the type."
    )
    num_slices: Sizes = Field(
        default=1, title="Number of slices", description="Slices of one gang: a number, or those that are acceptable."
    )
    size_wait_seconds: Seconds | None = Field(
        default=None,
        title="Size wait (seconds)",
        description="A gang of several sizes waits so long for the largest that there can be; empty: 60 seconds.",
    )
    resize_after_seconds: Seconds | None = Field(
        default=None,
        title="Resize after (seconds)",
        description="Without a replacement for so long a gang of several sizes goes on with fewer; empty: 60 seconds.",
    )
    resize_interval_seconds: Seconds | None = Field(
        default=None,
        title="Resize interval (seconds)",
        description="A gang grows no sooner than so long after its last start; empty: 300 seconds.",
    )
    preemptible: Flag = Field(
        default=False, description="Slices can be taken away host by host; a host that vanishes was preempted then."
    )
    env: Variables = Field(default_factory=dict, title="Environment", description="Variables of the host processes.")
    secret_env: SecretVariables = Field(
        default_factory=dict,
        title="Secret environment",
        description="Secret variables of the host processes: a value, or secret/NAME for the Secret block that has it.",
    )
    runtime_env: RuntimeEnv | None = Field(
        default=None,
        title="Runtime environment",
        description="Ray's, for the host processes: pip, uv, conda, py_modules, working_dir, env_vars; no secrets.",
    )
    preload: Modules | None = Field(
        default=None, description="Modules imported ahead on every host; empty: jax, numpy and cloudpickle."
    )
    by_name: Modules | None = Field(
        default=None,
        title="By name",
        description="Modules of the project that are installed on the hosts; all others travel by value.",
    )
    jax_distributed: JaxDistributed | None = Field(
        default=None,
        title="JAX distributed",
        description="Whether hosts call jax.distributed.initialize; empty: where there is more than one.",
    )
    checkpoint_root: Directory | None = Field(
        default=None, title="Checkpoint root", description="Directory or fsspec URL that every host sees."
    )
    resumable: Flag = Field(default=True, description="Unset it for one attempt only, whatever it ends with.")
    max_preemptions: Count | None = Field(
        default=None, description="Attempts that may be lost to preemption; empty: unlimited."
    )
    max_infrastructure_failures: Count | None = Field(
        default=None, description="Attempts that may be lost to hosts that vanish; empty: 10."
    )
    max_preemptions_without_progress: CountFrom1 | None = Field(
        default=None, description="Preemptions in a row without a new step; empty: 20."
    )
    lease_timeout_seconds: Seconds | None = Field(
        default=None, title="Lease timeout (seconds)", description="Wait for free slices; empty: 600 seconds."
    )
    lease_hold_seconds: Seconds | None = Field(
        default=None, title="Lease hold (seconds)", description="Slices are kept over waits so long; empty: 60."
    )
    launch_timeout_seconds: SecondsAbove0 | None = Field(
        default=None, title="Launch timeout (seconds)", description="For all host processes; empty: 300 seconds."
    )
    cancel_grace_seconds: Seconds | None = Field(
        default=None, title="Cancel grace (seconds)", description="Between SIGTERM and SIGKILL; empty: 5 seconds."
    )
    hang_timeout_seconds: SecondsAbove0 | None = Field(
        default=None, title="Hang timeout (seconds)", description="Without a new step; empty: for ever."
    )
    drain_timeout_seconds: SecondsAbove0 | None = Field(
        default=None,
        title="Drain timeout (seconds)",
        description="After a notice without a deadline; empty: until the host goes.",
    )
    warm_spares: Count | None = Field(
        default=None, description="Free slices with agents started ahead; empty: 1 if simulated, else 0."
    )
    agent_idle_release_seconds: Seconds | None = Field(
        default=None,
        title="Idle release (seconds)",
        description="Idle agents are ended after this time, so that an autoscaler may take hosts away; empty: 300.",
    )
