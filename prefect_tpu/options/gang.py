"""Every option of a gang, once. After a change: `python -m prefect_tpu.options.generate`."""

from __future__ import annotations

from pydantic import ConfigDict

from prefect_tpu.core.topology import DEFAULT_ACCELERATOR_TYPE, DEFAULT_TOPOLOGY
from prefect_tpu.options.declare import Options, option
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


class GangOptions(Options):
    """What a gang runs with. Settings inherit it; given.py has what runners and pools may be given."""

    model_config = ConfigDict(frozen=True)

    accelerator_type: AcceleratorType = option(
        DEFAULT_ACCELERATOR_TYPE,
        title="Accelerator type",
        description="Accelerator type where neither runner nor pool has one.",
        form="Type of the slices, such as v4, v5e, v5p or v6e.",
        shown=True,
    )
    topology: Topology = option(
        DEFAULT_TOPOLOGY,
        description="Topology of a slice where neither runner nor pool has one.",
        form="Chips of one slice, such as 4x4 or 2x2x2.",
        shown=True,
    )
    chips_per_host: CountFrom1 | None = option(
        None,
        title="Chips per host",
        description="Chips of a host, if not the default of its accelerator type.",
        form="Only if it is not the default of the type.",
    )
    num_slices: Sizes = option(
        1,
        title="Number of slices",
        description="Slices of a gang: a number, or a JSON list of those that do.",
        form="Slices of one gang: a number, or those that are acceptable.",
        shown=True,
    )
    size_wait_seconds: Seconds = option(
        60.0,
        description="How long a gang of several sizes waits for the largest that there can be, in seconds; then any of "
        "them will do. Where slices are made on demand it is lease_timeout_seconds.",
        form="A gang of several sizes waits so long for the largest that there can be; empty: {} seconds.",
    )
    resize_after_seconds: Seconds = option(
        60.0,
        description="A gang of several sizes waits so long for a replacement, then it goes on with fewer, in seconds.",
        form="Without a replacement for so long a gang of several sizes goes on with fewer; empty: {} seconds.",
    )
    resize_interval_seconds: Seconds = option(
        300.0,
        description="A gang grows no sooner than so long after its last start, in seconds.",
        form="A gang grows no sooner than so long after its last start; empty: {} seconds.",
    )
    preemptible: Flag = option(
        False,
        description="Slices can be taken away host by host, so a host that vanishes was preempted.",
        form="Slices can be taken away host by host; a host that vanishes was preempted then.",
        shown=True,
    )
    env: Variables = option(
        {},
        title="Environment",
        description="Variables of the host processes, as JSON.",
        form="Variables of the host processes.",
        shown=True,
    )
    secret_env: SecretVariables = option(
        {},
        title="Secret environment",
        description="Secret variables of the host processes, as JSON: values, or names of Secret blocks (secret/NAME).",
        form="Secret variables of the host processes: a value, or secret/NAME for the Secret block that has it.",
        shown=True,
    )
    runtime_env: RuntimeEnv = option(
        {},
        title="Runtime environment",
        description="Ray's runtime_env of the host processes (pip, py_modules, ...), as JSON.",
        form="Ray's, for the host processes: pip, uv, conda, py_modules, working_dir, env_vars; no secrets.",
    )
    preload: Modules = option(
        ["jax", "numpy", "cloudpickle"],
        description="Modules imported ahead on every host, as JSON list; jax too, where jax_distributed is on.",
        form="Modules imported ahead on every host; empty: jax, numpy and cloudpickle.",
    )
    by_name: Modules = option(
        [],
        title="By name",
        description="Modules that the hosts have, sent as names, as JSON list; others of the project travel by value.",
        form="Modules of the project that are installed on the hosts; all others travel by value.",
    )
    jax_distributed: JaxDistributed = option(
        "auto",
        title="JAX distributed",
        description='Whether hosts call jax.distributed.initialize; "auto": where there is more than one.',
        form="Whether hosts call jax.distributed.initialize; empty: where there is more than one.",
    )
    checkpoint_root: Directory | None = option(
        None,
        title="Checkpoint root",
        description="Directory or fsspec URL that every host sees; unset: tpu/checkpoints in Prefect's home.",
        form="Directory or fsspec URL that every host sees.",
    )
    resumable: Flag = option(True, description="Unset it for one attempt only, whatever it ends with.", shown=True)
    max_preemptions: Count | None = option(
        None,
        description="Attempts that may be lost to preemption; unset: unlimited.",
        form="Attempts that may be lost to preemption; empty: unlimited.",
    )
    max_infrastructure_failures: Count = option(10, description="Attempts that may be lost to hosts that vanish.")
    max_preemptions_without_progress: CountFrom1 = option(
        20,
        description="Preemptions in a row without a new step in runtime.report, or a new checkpoint.",
        form="Preemptions in a row without a new step; empty: {}.",
    )
    lease_timeout_seconds: Seconds = option(
        600.0,
        description="How long a gang waits for free slices, not counting the time in which only gangs of the same "
        "process are ahead of it, in seconds.",
        form="Wait for free slices; empty: {} seconds.",
    )
    lease_hold_seconds: Seconds = option(
        60.0,
        description="Longest retry delay over which slices are kept, in seconds.",
        form="Slices are kept over waits so long; empty: {}.",
    )
    launch_timeout_seconds: SecondsAbove0 = option(
        300.0,
        description="From forked host processes to the function entered everywhere, in seconds.",
        form="For all host processes; empty: {} seconds.",
    )
    cancel_grace_seconds: Seconds = option(
        5.0,
        description="Between SIGTERM and SIGKILL when a gang is cancelled, in seconds.",
        form="Between SIGTERM and SIGKILL; empty: {} seconds.",
    )
    hang_timeout_seconds: SecondsAbove0 | None = option(
        None,
        description="Time without a new runtime.report() after which a gang hangs, in seconds; unset: for ever.",
        form="Without a new step; empty: for ever.",
    )
    drain_timeout_seconds: SecondsAbove0 | None = option(
        None,
        description="How long an attempt goes on after a notice without a deadline, in seconds; unset: for ever.",
        form="After a notice without a deadline; empty: until the host goes.",
    )
    warm_spares: Count | None = option(
        None,
        description="Free slices with agents started ahead; unset: 1 for simulated slices, else 0.",
        form="Free slices with agents started ahead; empty: 1 if simulated, else 0.",
    )
    agent_idle_release_seconds: Seconds = option(
        300.0,
        title="Idle release (seconds)",
        description="Idle agents are ended after this time, in seconds.",
        form="Idle agents are ended after this time, so that an autoscaler may take hosts away; empty: {}.",
    )
