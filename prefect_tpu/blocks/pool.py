"""Blocks: where slices come from, saved once in Prefect by a platform team and named in one string by everybody else.

Register them with `prefect block register -m prefect_tpu`; the forms are then in Prefect's UI under Blocks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, get_args

import anyio.to_thread
from prefect.blocks.core import Block
from pydantic import Field, field_validator, model_validator

import prefect_tpu
from prefect_tpu.blocks.base import TpuBlock
from prefect_tpu.blocks.fleets import LocalFleetBlock, RayFleetBlock
from prefect_tpu.blocks.queued import QueuedResourceFleetBlock
from prefect_tpu.blocks.status import check, status_of
from prefect_tpu.core.errors import TopologyError
from prefect_tpu.core.gang import sizes_of
from prefect_tpu.core.topology import SliceShape
from prefect_tpu.fleets.fleet import Fleet
from prefect_tpu.prefect_api import async_dispatch
from prefect_tpu.settings import SliceCount

if TYPE_CHECKING:
    from typing import Self


class TpuSlicePool(TpuBlock):
    """TPU slices of one kind: what they are, where they come from, and how runs on them are retried.

    Example:
        ```python
        from prefect_tpu import TpuMultisliceRunner, task
        from prefect_tpu.blocks import TpuSlicePool

        pool = TpuSlicePool.load("BLOCK_NAME")

        @task(task_runner=pool.runner(num_slices=2))
        def train(): ...

        @task(task_runner=TpuMultisliceRunner(pool="tpu-slice-pool/BLOCK_NAME", num_slices=2))
        def the_same(): ...
        ```
    """

    _block_type_name = "TPU Slice Pool"
    _block_type_slug = "tpu-slice-pool"

    fleet: LocalFleetBlock | RayFleetBlock | QueuedResourceFleetBlock = Field(
        default_factory=LocalFleetBlock, description="Where the slices come from."
    )
    accelerator_type: str = Field(
        default="v4", title="Accelerator type", description="Type of the slices, such as v4, v5e, v5p or v6e."
    )
    topology: str = Field(default="2x2x2", description="Chips of one slice, such as 4x4 or 2x2x2.")
    chips_per_host: int | None = Field(
        default=None, ge=1, title="Chips per host", description="Only if it is not the default of the type."
    )
    num_slices: SliceCount = Field(
        default=1, title="Number of slices", description="Slices of one gang: a number, or those that are acceptable."
    )
    resize_after_seconds: float | None = Field(
        default=None,
        ge=0,
        title="Resize after (seconds)",
        description="Without a replacement for so long a gang of several sizes goes on with fewer; empty: 60 seconds.",
    )
    resize_interval_seconds: float | None = Field(
        default=None,
        ge=0,
        title="Resize interval (seconds)",
        description="A gang grows no sooner than so long after its last start; empty: 300 seconds.",
    )
    preemptible: bool = Field(
        default=False, description="Slices can be taken away host by host; a host that vanishes was preempted then."
    )
    env: dict[str, str] = Field(
        default_factory=dict, title="Environment", description="Variables of the host processes."
    )
    runtime_env: dict[str, Any] | None = Field(
        default=None,
        title="Runtime environment",
        description="Ray's, for the host processes: pip, uv, conda, py_modules, working_dir, env_vars; no secrets.",
    )
    preload: list[str] | None = Field(
        default=None, description="Modules imported ahead on every host; empty: jax, numpy and cloudpickle."
    )
    checkpoint_root: str | None = Field(
        default=None, min_length=1, title="Checkpoint root", description="Directory or fsspec URL that every host sees."
    )
    resumable: bool = Field(default=True, description="Unset it for one attempt only, whatever it ends with.")
    max_preemptions: int | None = Field(
        default=None, ge=0, description="Attempts that may be lost to preemption; empty: unlimited."
    )
    max_infrastructure_failures: int | None = Field(
        default=None, ge=0, description="Attempts that may be lost to hosts that vanish; empty: 10."
    )
    max_preemptions_without_progress: int | None = Field(
        default=None, ge=1, description="Preemptions in a row without a new step; empty: 20."
    )
    lease_timeout_seconds: float | None = Field(
        default=None, ge=0, title="Lease timeout (seconds)", description="Wait for free slices; empty: 600 seconds."
    )
    lease_hold_seconds: float | None = Field(
        default=None, ge=0, title="Lease hold (seconds)", description="Slices are kept over waits so long; empty: 60."
    )
    launch_timeout_seconds: float | None = Field(
        default=None, gt=0, title="Launch timeout (seconds)", description="For all host processes; empty: 300 seconds."
    )
    cancel_grace_seconds: float | None = Field(
        default=None, ge=0, title="Cancel grace (seconds)", description="Between SIGTERM and SIGKILL; empty: 5 seconds."
    )
    hang_timeout_seconds: float | None = Field(
        default=None, gt=0, title="Hang timeout (seconds)", description="Without a new step; empty: for ever."
    )
    drain_timeout_seconds: float | None = Field(
        default=None,
        gt=0,
        title="Drain timeout (seconds)",
        description="After a notice without a deadline; empty: until the host goes.",
    )
    warm_spares: int | None = Field(
        default=None, ge=0, description="Free slices with agents started ahead; empty: 1 if simulated, else 0."
    )
    agent_idle_release_seconds: float | None = Field(
        default=None,
        ge=0,
        title="Idle release (seconds)",
        description="Idle agents are ended after this time, so that an autoscaler may take hosts away; empty: 300.",
    )

    @field_validator("fleet", mode="before")
    @classmethod
    def _is_a_block(cls, given: Any) -> Any:
        if isinstance(given, dict | Block):
            return given
        kinds = " or a ".join(one.__name__ for one in get_args(cls.model_fields["fleet"].annotation))
        raise ValueError(f"must be a {kinds}, not {given!r:.80}")

    @field_validator("env")
    @classmethod
    def _has_names(cls, given: dict[str, str]) -> dict[str, str]:
        wrong = [name for name in given if not name or "=" in name or "\0" in name]
        if wrong:
            raise ValueError(f"{wrong[0]!r} is no name of a variable: at least one character, no '='")
        return given

    @field_validator("preload")
    @classmethod
    def _are_modules(cls, given: list[str] | None) -> list[str] | None:
        wrong = [name for name in given or () if not all(part.isidentifier() for part in name.split("."))]
        if wrong:
            raise ValueError(f"{wrong[0]!r} is no name of a module, such as 'jax' or 'orbax.checkpoint'")
        return given

    @model_validator(mode="after")
    def _has_a_runtime_env(self) -> Self:
        from prefect_tpu.cluster import runtime_env

        if self.runtime_env is not None:
            self.runtime_env = runtime_env.check(self.runtime_env)
        return self

    @model_validator(mode="after")
    def _has_a_shape(self) -> Self:
        try:
            self._shape()
        except TopologyError as error:
            raise ValueError(str(error)) from None
        if isinstance(self.fleet, LocalFleetBlock) and self.least_slices > self.fleet.slices:
            raise ValueError(
                f"num_slices={self.num_slices} is more than the {self.fleet.slices} slices of the pool's local fleet: "
                "raise `slices` of the fleet or lower `num_slices`"
            )
        return self

    @property
    def least_slices(self) -> int:
        """The smallest acceptable number of slices."""
        return sizes_of(self.num_slices)[0]

    def make_fleet(self) -> Fleet:
        """Where the slices come from, as runs use it. Starts nothing."""
        return self.fleet.make(self.accelerator_type, self.topology, self.chips_per_host)

    def runner(self, **overrides: Any) -> prefect_tpu.TpuMultisliceRunner[Any]:
        """A task runner on this pool.

        Args:
            **overrides: arguments of TpuMultisliceRunner, which come before the pool's own fields.

        Raises:
            ConfigurationError: one of them cannot be right.
        """
        return prefect_tpu.TpuMultisliceRunner(pool=self, **overrides)

    async def astatus(self) -> dict[str, Any]:
        """As `status`, without blocking the event loop."""
        return await anyio.to_thread.run_sync(self._status)

    @async_dispatch(astatus)
    def status(self) -> dict[str, Any]:
        """Every slice of the fleet as it is now; awaitable in async code. Reserves and starts nothing.

        Returns:
            "fleet": how it is called; "up": whether its cluster answers; "problem": why not; "fitting": how many slices
            are of the pool's kind and whole, "free": how many of those are free; "slices": one dict each.
        """
        return self._status()

    async def avalidate_fleet(self) -> dict[str, Any]:
        """As `validate_fleet`, without blocking the event loop."""
        return await anyio.to_thread.run_sync(self._validate)

    @async_dispatch(avalidate_fleet)
    def validate_fleet(self) -> dict[str, Any]:
        """See that a gang of `num_slices` could run now or later; awaitable in async code. Reserves nothing.

        Returns:
            The status.

        Raises:
            ConfigurationError: the cluster does not answer, or has too few whole slices of this kind and makes none;
                what there is, and what to do.
        """
        return self._validate()

    def _status(self) -> dict[str, Any]:
        return status_of(self.make_fleet(), self._shape())

    def _validate(self) -> dict[str, Any]:
        fleet, found = self.make_fleet(), self._status()
        check(found, fleet, self._shape(), sizes_of(self.num_slices))
        return found

    def _shape(self) -> SliceShape:
        from prefect_tpu.cluster import tpu

        return tpu.resolve_shape(self.accelerator_type, self.topology, self.chips_per_host)
