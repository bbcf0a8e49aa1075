"""What a gang is made of, as the driver has resolved it from runner, pool and settings."""

from __future__ import annotations

from dataclasses import dataclass

from prefect_tpu.cluster import runtime_env, tpu
from prefect_tpu.core.checkpoints import Checkpoints
from prefect_tpu.core.gang import sizes_of
from prefect_tpu.core.messages import DeviceCheck
from prefect_tpu.core.topology import SliceShape
from prefect_tpu.fleets.fleet import Fleet
from prefect_tpu.options.gang import GangOptions
from prefect_tpu.options.tuning import Tuning


@dataclass(frozen=True, slots=True)
class GangPlan:
    """The options that a gang runs with, whole, and the facts of this run.

    Attributes:
        fleet: where the slices come from.
        options: with nothing left open.
        tuning: the site's waits and limits.
        process0_only: only process 0's result is wanted.
        timeout_seconds: the task's own, from the launch.
        checkpoint_dir: the same for every attempt.
        metadata_url: of the cloud's metadata server; None for the usual one, "" for none.
        log_level: of the driver's logger; hosts send nothing below it.
        host_resources: reserved on each host beside its chips, sorted by name.
        checkpoints: what is known of `checkpoint_dir`; None if nobody else can ever have the same one.
    """

    fleet: Fleet
    options: GangOptions
    tuning: Tuning
    process0_only: bool
    timeout_seconds: float | None
    checkpoint_dir: str | None
    metadata_url: str | None
    log_level: int
    host_resources: tuple[tuple[str, float], ...] = ()
    checkpoints: Checkpoints | None = None

    @property
    def most_slices(self) -> int:
        """What it may grow to at its resize points; 0 if never."""
        return sizes_of(self.options.num_slices)[-1] if self.options.resumable else 0

    @property
    def secret_env(self) -> dict[str, str]:
        """Names and values of the secret variables, for agents alone."""
        return {name: value.get_secret_value() for name, value in self.options.secret_env.items()}

    @property
    def preload(self) -> tuple[str, ...]:
        """As agents take it: the same for every size that the gang may have. JAX is in it if it may be started."""
        named = tuple(self.options.preload)
        most = sizes_of(self.options.num_slices)[-1] * self.resolve().hosts
        return named if "jax" in named or not self.initializes_jax(most) else ("jax", *named)

    @property
    def agent_start_timeout_seconds(self) -> float:
        """For its agents to get ready."""
        return self.tuning.agent_start_timeout_seconds + runtime_env.setup_seconds(self.options.runtime_env)

    @property
    def devices(self) -> DeviceCheck:
        """How a host's accelerator is looked at before a launch."""
        tuning = self.tuning
        return DeviceCheck(tuple(tuning.device_globs), tuning.libtpu_lock_file, tuning.device_wait_seconds)

    @property
    def log_burst_lines(self) -> float:
        """That a host may log at once."""
        return self.tuning.host_log_lines_per_second * self.tuning.log_burst_seconds

    def initializes_jax(self, num_processes: int) -> bool:
        """Whether hosts call `jax.distributed.initialize` in a gang of so many."""
        wanted = self.options.jax_distributed
        return num_processes > 1 if wanted == "auto" else wanted

    def resolve(self) -> SliceShape:
        """The slices' shape; raises TopologyError for what does not exist."""
        options = self.options
        return tpu.resolve_shape(options.accelerator_type, options.topology, options.chips_per_host)
