"""Blocks: where slices come from, saved once in Prefect by a platform team and named in one string by everybody else.

Register them with `prefect block register -m prefect_tpu`; the forms are then in Prefect's UI under Blocks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, get_args

import anyio.to_thread
from prefect.blocks.core import Block
from pydantic import BaseModel, Field, field_validator, model_validator
from typing_extensions import Unpack

import prefect_tpu
from prefect_tpu.blocks.base import TpuBlock
from prefect_tpu.blocks.fleets import LocalFleetBlock, RayFleetBlock
from prefect_tpu.blocks.queued import QueuedResourceFleetBlock
from prefect_tpu.blocks.status import check, status_of
from prefect_tpu.core.errors import TopologyError
from prefect_tpu.core.gang import sizes_of
from prefect_tpu.core.topology import SliceShape
from prefect_tpu.fleets.fleet import Fleet
from prefect_tpu.options.gang import GangOptions
from prefect_tpu.options.given import GivenOptions, PoolOptions
from prefect_tpu.options.merge import merge
from prefect_tpu.options.variables import withhold
from prefect_tpu.prefect_api import async_dispatch
from prefect_tpu.settings import current_settings

if TYPE_CHECKING:
    from typing import Self


class WithFleet(BaseModel):
    """The first field of the form. A class of its own, as inherited fields come before a class's own."""

    fleet: LocalFleetBlock | RayFleetBlock | QueuedResourceFleetBlock = Field(
        default_factory=LocalFleetBlock, description="Where the slices come from."
    )

    @field_validator("fleet", mode="before")
    @classmethod
    def _is_a_block(cls, given: Any) -> Any:
        if isinstance(given, dict | Block):
            return given
        kinds = " or a ".join(one.__name__ for one in get_args(cls.model_fields["fleet"].annotation))
        raise ValueError(f"must be a {kinds}, not {given!r:.80}")


class TpuSlicePool(PoolOptions, WithFleet, TpuBlock):
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

    @model_validator(mode="after")
    def _has_a_shape(self) -> Self:
        try:
            _shape(self)
        except TopologyError as error:
            raise ValueError(str(error)) from None
        if isinstance(self.fleet, LocalFleetBlock) and sizes_of(self.num_slices)[0] > self.fleet.slices:
            raise ValueError(
                f"num_slices={self.num_slices} is more than the {self.fleet.slices} slices of the pool's local fleet: "
                "raise `slices` of the fleet or lower `num_slices`"
            )
        return self

    def __getstate__(self) -> dict[Any, Any]:
        """For a pickle, which may be stored: names of Secret blocks stay, values do not."""
        state = super().__getstate__()
        return state | {"__dict__": state["__dict__"] | {"secret_env": withhold(self.secret_env)}}

    def resolve(self) -> GangOptions:
        """What gangs on it run with where a runner says nothing: settings that are set, its fields, defaults."""
        return merge({}, {}, current_settings(), self)

    def make_fleet(self) -> Fleet:
        """Where the slices come from, as runs use it. Starts nothing."""
        options = self.resolve()
        return self.fleet.make(options.accelerator_type, options.topology, options.chips_per_host)

    def runner(self, **overrides: Unpack[GivenOptions]) -> prefect_tpu.TpuMultisliceRunner[Any]:
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
        return status_of(self.make_fleet(), _shape(self.resolve()))

    def _validate(self) -> dict[str, Any]:
        fleet, found = self.make_fleet(), self._status()
        options = self.resolve()
        check(found, fleet, _shape(options), sizes_of(options.num_slices))
        return found


def _shape(options: GangOptions | PoolOptions) -> SliceShape:
    from prefect_tpu.cluster import tpu

    return tpu.resolve_shape(options.accelerator_type, options.topology, options.chips_per_host)
