"""Blocks: where slices come from, saved once in Prefect by a platform team and named in one string by everybody else.

Register them with `prefect block register -m prefect_tpu`; the forms are then in Prefect's UI under Blocks.
"""

from __future__ import annotations

import logging
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any, get_args

import anyio.to_thread
from prefect._internal.compatibility.async_dispatch import async_dispatch
from prefect.blocks.core import Block
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import BlockDocumentFilter, BlockDocumentFilterBlockTypeId
from pydantic import Field, ValidationError, field_validator, model_validator

from prefect_tpu.blocks.base import TpuBlock
from prefect_tpu.blocks.fleets import LocalFleetBlock, RayFleetBlock
from prefect_tpu.blocks.queued import QueuedResourceFleetBlock
from prefect_tpu.core.errors import ConfigurationError, ProvisioningError, TopologyError, TpuError
from prefect_tpu.core.gang import sizes_of
from prefect_tpu.fleets.fleet import Fleet, RayFleet
from prefect_tpu.fleets.queued_fleet import QueuedResourceFleet
from prefect_tpu.settings import SliceCount

if TYPE_CHECKING:
    from typing import Self

    from prefect_tpu.cluster.inventory import FleetSummary
    from prefect_tpu.task_runners import TpuMultisliceRunner

log = logging.getLogger("prefect_tpu.pools")

MAX_SHOWN = 20
"""Names of saved pools in an error."""


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
        from prefect_tpu.cluster import tpu

        try:
            tpu.resolve_shape(self.accelerator_type, self.topology, self.chips_per_host)
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

    def runner(self, **overrides: Any) -> TpuMultisliceRunner[Any]:
        """A task runner on this pool.

        Args:
            **overrides: arguments of TpuMultisliceRunner, which come before the pool's own fields.

        Raises:
            ConfigurationError: one of them cannot be right.
        """
        from prefect_tpu.task_runners import TpuMultisliceRunner

        runner: TpuMultisliceRunner[Any] = TpuMultisliceRunner(pool=self, **overrides)
        return runner

    async def astatus(self) -> dict[str, Any]:
        """As `status`, without blocking the event loop."""
        return await anyio.to_thread.run_sync(partial(_status, self))

    @async_dispatch(astatus)
    def status(self) -> dict[str, Any]:
        """Every slice of the fleet as it is now; awaitable in async code. Reserves and starts nothing.

        Returns:
            "fleet": how it is called; "up": whether its cluster answers; "problem": why not; "fitting": how many slices
            are of the pool's kind and whole, "free": how many of those are free; "slices": one dict each.
        """
        return _status(self)

    async def avalidate_fleet(self) -> dict[str, Any]:
        """As `validate_fleet`, without blocking the event loop."""
        return await anyio.to_thread.run_sync(partial(_validate, self))

    @async_dispatch(avalidate_fleet)
    def validate_fleet(self) -> dict[str, Any]:
        """See that a gang of `num_slices` could run now or later; awaitable in async code. Reserves nothing.

        Returns:
            The status.

        Raises:
            ConfigurationError: the cluster does not answer, or has too few whole slices of this kind and makes none;
                what there is, and what to do.
        """
        return _validate(self)


def _status(pool: TpuSlicePool) -> dict[str, Any]:
    from prefect_tpu.cluster import tpu
    from prefect_tpu.cluster.inventory import fits

    fleet, found = pool.make_fleet(), None
    shape = tpu.resolve_shape(pool.accelerator_type, pool.topology, pool.chips_per_host)
    problem = ""
    try:
        found = _look_at(fleet)
        problem = "" if found is not None else "it is not up; the first run starts it"
    except (TpuError, OSError, RuntimeError) as error:
        problem = str(error).strip() or type(error).__name__
    slices = found.slices if found is not None else ()
    fitting = [one for one in slices if fits(one, shape)]
    return {
        "fleet": fleet.describe(),
        "up": found is not None,
        "problem": problem,
        "fitting": len(fitting),
        "free": sum(one.free and not one.draining for one in fitting),
        "slices": [
            {key: value for key, value in asdict(one).items() if key != "slice"} | {"says": one.describe()}
            for one in slices
        ],
    }


def _look_at(fleet: Fleet) -> FleetSummary | None:
    from prefect_tpu.cluster import inventory, session

    address = (
        session.resolve_address(fleet.address) if isinstance(fleet, RayFleet | QueuedResourceFleet) else fleet.address
    )
    return inventory.summary_at(address) if address else None


def _validate(pool: TpuSlicePool) -> dict[str, Any]:
    found = _status(pool)
    simulated = isinstance(pool.fleet, LocalFleetBlock)
    if not found["up"] and not simulated:
        raise ConfigurationError(f"{found['fleet']}: {found['problem']}")
    if getattr(pool.fleet, "autoscaled", False) or isinstance(pool.fleet, QueuedResourceFleetBlock):
        return found  # what is not there yet is brought up when a gang waits for it
    if found["up"] and found["fitting"] < pool.least_slices:
        there = "; ".join(one["says"] for one in found["slices"]) or "no TPU slices"
        raise ConfigurationError(
            f"{found['fleet']} has {found['fitting']} whole slices of {pool.accelerator_type} {pool.topology}, and "
            f"num_slices is {pool.num_slices}. There: {there}"
        )
    return found


def load_pool(slug: str) -> TpuSlicePool:
    """The pool that is saved under "tpu-slice-pool/NAME".

    Raises:
        ConfigurationError: there is none of that name: which there are, and the command that makes one. Or what is
            saved is not valid any more.
        ProvisioningError: Prefect's API does not say.
    """
    name = slug.rpartition("/")[2]
    try:
        return _load(name)
    except (ValidationError, RuntimeError) as error:
        raise ConfigurationError(_invalid(slug, error)) from error
    except ValueError:
        raise ConfigurationError(_missing(slug)) from None
    except Exception as error:
        raise ProvisioningError(
            f"Prefect's API did not give the pool {slug!r}: {type(error).__name__}: {error}. Is PREFECT_API_URL right, "
            "and does it answer? `prefect-tpu doctor` looks."
        ) from error


def find_pool(name: str) -> TpuSlicePool | None:
    """The pool that is saved under this name; None if there is none, or Prefect's API does not answer."""
    try:
        return _load(name)
    except (ValidationError, RuntimeError) as error:
        raise ConfigurationError(_invalid(f"tpu-slice-pool/{name}", error)) from error
    except Exception as error:  # noqa: BLE001 - there need not be one
        log.debug("no pool %r: %r", name, error)
        return None


def _load(name: str) -> TpuSlicePool:
    found: Any = TpuSlicePool.load(name, _sync=True)  # type: ignore[call-arg]
    assert isinstance(found, TpuSlicePool)
    return found


def saved_pools() -> list[str]:
    """Slugs of all saved pools, in order of their names."""
    with get_client(sync_client=True) as client:
        kind = client.request("GET", "/block_types/slug/{slug}", path_params={"slug": "tpu-slice-pool"}).json()
        only = BlockDocumentFilter(block_type_id=BlockDocumentFilterBlockTypeId(any_=[kind["id"]]))
        body = {"block_documents": only.model_dump(mode="json"), "include_secrets": False}
        found = client.request("POST", "/block_documents/filter", json=body).json()
    return sorted(f"tpu-slice-pool/{one['name']}" for one in found if one.get("name"))


def _invalid(slug: str, error: Exception) -> str:
    return f"the pool saved as {slug!r} is not valid (any more): {error.__cause__ or error}. Save it again."


def _missing(slug: str) -> str:
    try:
        names = saved_pools()
    except Exception as error:  # noqa: BLE001 - no block type yet, or an API that does not answer
        log.debug("cannot list pools: %r", error)
        names = []
    there = ", ".join(names[:MAX_SHOWN]) + (", ..." if len(names) > MAX_SHOWN else "") if names else "none"
    return (
        f"there is no pool {slug!r}. Saved pools: {there}. Make one in Prefect's UI under Blocks, after `prefect block "
        f"register -m prefect_tpu`, or in Python: TpuSlicePool(accelerator_type=..., topology=..., "
        f"fleet=RayFleetBlock(address=...)).save({slug.rpartition('/')[2]!r})"
    )


__all__ = [
    "LocalFleetBlock",
    "QueuedResourceFleetBlock",
    "RayFleetBlock",
    "TpuSlicePool",
    "find_pool",
    "load_pool",
    "saved_pools",
]
