"""Settings of prefect_tpu: `PREFECT_INTEGRATIONS_TPU_*`, from the environment or Prefect's own files."""

from __future__ import annotations

import functools
import json
import os
from typing import Annotated, Any

from prefect.settings.base import PrefectBaseSettings, build_settings_config
from pydantic import Field, ValidationError

from prefect_tpu.core.errors import ConfigurationError

SliceCount = Annotated[int, Field(ge=1)] | Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=1)]
"""A number of slices, or the numbers that are acceptable."""


class TpuSettings(PrefectBaseSettings):
    """Defaults for every gang. A TpuMultisliceRunner's own arguments come first, then its pool's."""

    model_config = build_settings_config(("integrations", "tpu"))

    pool: str | None = Field(
        default=None, description='Saved pool for runners without one, such as "tpu-slice-pool/v6e-spot".'
    )
    ray_address: str | None = Field(
        default=None,
        description='Ray cluster for runners without a pool: "auto" or host:port; unset: simulated slices.',
    )
    num_slices: SliceCount = Field(
        default=1, description="Slices of a gang: a number, or a JSON list of those that do."
    )
    resize_after_seconds: float = Field(
        default=60.0,
        ge=0,
        description="A gang of several sizes waits so long for a replacement, then it goes on with fewer, in seconds.",
    )
    resize_interval_seconds: float = Field(
        default=300.0, ge=0, description="A gang grows no sooner than so long after its last start, in seconds."
    )
    chips_per_host: int | None = Field(
        default=None, ge=1, description="Chips of a host, if not the default of its accelerator type."
    )
    preemptible: bool = Field(
        default=False, description="Slices can be taken away host by host, so a host that vanishes was preempted."
    )
    env: dict[str, str] = Field(default={}, description="Variables of the host processes, as JSON.")
    runtime_env: dict[str, Any] = Field(
        default={}, description="Ray's runtime_env of the host processes (pip, py_modules, ...), as JSON."
    )
    preload: list[str] = Field(
        default=["jax", "numpy", "cloudpickle"], description="Modules imported ahead on every host, as JSON list."
    )
    resumable: bool = Field(default=True, description="Unset it for one attempt only, whatever it ends with.")
    max_preemptions: int | None = Field(
        default=None, ge=0, description="Attempts that may be lost to preemption; unset: unlimited."
    )
    max_infrastructure_failures: int = Field(
        default=10, ge=0, description="Attempts that may be lost to hosts that vanish."
    )
    max_preemptions_without_progress: int = Field(
        default=20, ge=1, description="Preemptions in a row in which runtime.report saw no new step."
    )
    warm_spares: int | None = Field(
        default=None, ge=0, description="Free slices with agents started ahead; unset: 1 for simulated slices, else 0."
    )
    accelerator_type: str = Field(default="v4", description="Accelerator type where neither runner nor pool has one.")
    topology: str = Field(default="2x2x2", description="Topology of a slice where neither runner nor pool has one.")
    checkpoint_root: str | None = Field(
        default=None,
        description="Directory or fsspec URL that every host sees; unset: tpu/checkpoints in Prefect's home.",
    )
    lease_timeout_seconds: float = Field(
        default=600.0, ge=0, description="How long a gang waits for free slices, in seconds."
    )
    lease_hold_seconds: float = Field(
        default=60.0, ge=0, description="Longest retry delay over which slices are kept, in seconds."
    )
    lease_linger_seconds: float = Field(
        default=0.5,
        ge=0,
        description="How long the slices of a gang that has ended wait for the next gang of the process, in seconds.",
    )
    queue_message_interval_seconds: float = Field(
        default=15.0, gt=0, description="How often a waiting gang says so in its logs, in seconds."
    )
    agent_start_timeout_seconds: float = Field(
        default=120.0,
        gt=0,
        description="For the agents of a gang to get ready, in seconds; the limit of their runtime_env comes on top.",
    )
    agent_idle_release_seconds: float = Field(
        default=300.0, ge=0, description="Idle agents are ended after this time, in seconds."
    )
    agent_poll_seconds: float = Field(
        default=1.0, gt=0, description="How long an agent holds a question before it answers 'nothing new', in seconds."
    )
    launch_timeout_seconds: float = Field(
        default=300.0, gt=0, description="From forked host processes to the function entered everywhere, in seconds."
    )
    jax_initialization_timeout_seconds: int = Field(
        default=120, gt=0, description="How long jax.distributed.initialize waits for all hosts, in seconds."
    )
    failure_window_seconds: float = Field(
        default=1.0,
        ge=0,
        description="How long other hosts are heard after a failure that may come of another host's, in seconds.",
    )
    clear_failure_window_seconds: float = Field(
        default=0.2,
        ge=0,
        description="The same after a lost host or an exception of the function's own, in seconds.",
    )
    drain_timeout_seconds: float | None = Field(
        default=None,
        gt=0,
        description="How long an attempt goes on after a notice without a deadline, in seconds; unset: for ever.",
    )
    leave_timeout_seconds: float = Field(
        default=60.0,
        ge=0,
        description="After the first host has called runtime.leave(): how long the others may still save, in seconds.",
    )
    heartbeat_timeout_seconds: float = Field(
        default=10.0, gt=1, description="Silence of a host's agent after which the host counts as lost, in seconds."
    )
    hang_timeout_seconds: float | None = Field(
        default=None,
        gt=0,
        description="Time without a new runtime.report() after which a gang hangs, in seconds; unset: for ever.",
    )
    hang_compile_grace_seconds: float = Field(
        default=1_800.0, ge=0, description="More time, once in an attempt, if a host compiles then, in seconds."
    )
    metadata_url: str | None = Field(
        default=None,
        description="Cloud metadata server, up to computeMetadata/v1; unset: the usual one, none for simulated slices.",
    )
    preemption_progress_seconds: float = Field(
        default=600.0,
        ge=0,
        description="An attempt that reports no steps has made progress if it ran for so long, in seconds.",
    )
    preemption_backoff_seconds: float = Field(
        default=1.0,
        ge=0,
        description="Wait after the second preemption in a row without progress; doubled after each, in seconds.",
    )
    preemption_backoff_longest_seconds: float = Field(
        default=60.0, ge=0, description="Longest wait after a preemption, in seconds."
    )
    cancel_grace_seconds: float = Field(
        default=5.0, ge=0, description="Between SIGTERM and SIGKILL when a gang is cancelled, in seconds."
    )
    device_wait_seconds: float = Field(
        default=30.0,
        ge=0,
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
    host_log_lines_per_second: float = Field(
        default=200.0, gt=0, description="Lines that each host may log for long; the others are counted, per second."
    )
    gang_log_lines_per_second: float = Field(
        default=1_000.0, gt=0, description="Lines that all hosts of a gang together may log for long, per second."
    )
    log_burst_seconds: float = Field(
        default=10.0, gt=0, description="So many seconds' worth of lines may come at once, after a pause, in seconds."
    )
    infrastructure_backoff_seconds: float = Field(
        default=1.0,
        ge=0,
        description="Wait after the second lost host in a row without progress; doubled after each, in seconds.",
    )
    infrastructure_backoff_longest_seconds: float = Field(
        default=60.0, ge=0, description="Longest wait after a lost host, in seconds."
    )
    slice_bars: bool = Field(
        default=False,
        description="A task run inside the gang's for each slice of each attempt; it gets its hosts' logs.",
    )
    inline_payload_bytes: int = Field(
        default=100_000,
        ge=0,
        description="Arguments up to this size go with the call, bigger ones by the object store.",
    )
    result_window_bytes: int = Field(
        default=256 * 1024**2,
        gt=0,
        description="Pieces of results that are on their way to the driver at the same time, in bytes.",
    )


def describe_settings() -> list[dict[str, str]]:
    """Every setting: "name" of its variable, "value", "source" ("environment", "file" or "default"), "meaning"."""
    settings, found = current_settings(), []
    prefix = str(settings.model_config.get("env_prefix", "")).upper()
    for name, field in TpuSettings.model_fields.items():
        variable = f"{prefix}{name.upper()}"
        source = "default"
        if name in settings.model_fields_set:
            source = "environment" if variable in os.environ else "file"
        value = getattr(settings, name)
        shown = "" if value is None else json.dumps(value) if isinstance(value, list | dict | bool) else str(value)
        found.append({"name": variable, "value": shown, "source": source, "meaning": field.description or ""})
    return found


def current_settings() -> TpuSettings:
    """The settings as they are now; never read at import, and again whenever a variable of Prefect has changed.

    Raises:
        ConfigurationError: one of them cannot be; by the name of its variable, with what is allowed.
    """
    variables = tuple(sorted(item for item in os.environ.items() if item[0].startswith("PREFECT_")))
    return _read(variables, os.getcwd())


@functools.lru_cache(maxsize=8)
def _read(variables: tuple[tuple[str, str], ...], directory: str) -> TpuSettings:  # noqa: ARG001 - what they depend on
    try:
        return TpuSettings()
    except ValidationError as error:
        prefix = str(TpuSettings.model_config.get("env_prefix", "")).upper()
        wrong: dict[str, list[str]] = {}
        for one in error.errors():
            name = f"{prefix}{str(one['loc'][0]).upper()}"
            given = os.environ.get(name)
            wrong.setdefault(name if given is None else f"{name}={given!r}", []).append(one["msg"])
        raise ConfigurationError("; ".join(f"{one}: {', or '.join(says)}" for one, says in wrong.items())) from error
    except ValueError as error:  # JSON that is none
        raise ConfigurationError(f"settings of prefect_tpu: {error}; {error.__cause__}") from error
