"""A runner with everything filled in: from its own arguments, settings, pool and defaults, in that order."""

from __future__ import annotations

import functools
import os
import threading
from typing import TYPE_CHECKING, Any

from prefect.settings import get_current_settings

from prefect_tpu.core.checkpoints import Checkpoints
from prefect_tpu.core.errors import ConfigurationError
from prefect_tpu.core.gang import sizes_of
from prefect_tpu.core.retry import Limits
from prefect_tpu.fleets.fleet import Fleet
from prefect_tpu.fleets.local_fleet import LocalFleet
from prefect_tpu.fleets.queued_fleet import QueuedResourceFleet
from prefect_tpu.fleets.ray_fleet import RayFleet
from prefect_tpu.gang.plan import GangPlan
from prefect_tpu.options.gang import GangOptions
from prefect_tpu.options.merge import merge
from prefect_tpu.settings import current_settings, unknown_settings, where_set
from prefect_tpu.task_run import fits
from prefect_tpu.task_run.arguments import Given
from prefect_tpu.task_run.checkpoint_dirs import CheckpointKey
from prefect_tpu.task_run.remote_options import host_resources

if TYPE_CHECKING:
    from pydantic import SecretStr

    from prefect_tpu.blocks.pool import TpuSlicePool
    from prefect_tpu.observability.logs import Logger

DEFAULT_POOL_NAME = "default"
"""Of the saved pool that is used where nothing else is said."""

_warned = threading.Event()
_told: set[tuple[str, str]] = set()
"""Settings that there are not; each is told once."""


class Resolved:
    """What a runner's gangs are made of. Loads a pool by its slug when that is first needed, never at import.

    Precedence for every value: the runner's argument; a setting `PREFECT_INTEGRATIONS_TPU_*` that is set; the
    pool's field; the setting's default. A fleet given as such (`pool=LocalFleet(...)`) tells the kind of its slices
    before settings do.
    """

    def __init__(self, given: Given) -> None:
        """`given`: the runner's arguments."""
        self._given = given
        self.tuning = current_settings()

    @functools.cached_property
    def pool(self) -> TpuSlicePool | Fleet | None:
        """The pool or fleet; None for the local fleet of the defaults."""
        given = self._given.pool if self._given.pool is not None else self.tuning.pool
        if isinstance(given, str):
            from prefect_tpu.blocks.saved import load_pool

            return load_pool(given)
        if given is not None or self.tuning.ray_address:
            return given or RayFleet(address=str(self.tuning.ray_address))
        from prefect_tpu.blocks.saved import find_pool

        return find_pool(DEFAULT_POOL_NAME)

    @functools.cached_property
    def options(self) -> GangOptions:
        """What the gang runs with."""
        pool = self.pool
        kind = pool.options() if isinstance(pool, Fleet) else {}
        return merge(self._given.options, kind, self.tuning, None if isinstance(pool, Fleet) else pool)

    @functools.cached_property
    def fleet(self) -> Fleet:
        """Where the slices come from."""
        pool, options = self.pool, self.options
        if isinstance(pool, Fleet):
            return pool
        if pool is None:
            return LocalFleet(
                accelerator_type=options.accelerator_type,
                topology=options.topology,
                chips_per_host=options.chips_per_host,
            )
        return pool.fleet.make(options.accelerator_type, options.topology, options.chips_per_host)

    def origin(self, name: str) -> str:
        """Who has set an option, in words: the one that counts."""
        given, pool = self._given.options.get(name), self.pool
        if given is not None:
            return f"TpuMultisliceRunner({name}={given!r})"
        if isinstance(pool, Fleet) and pool.options().get(name) is not None:
            return f"{type(pool).__name__}({name}={pool.options().get(name)!r})"
        if name in self.tuning.model_fields_set:
            return where_set(name)
        if pool is not None and not isinstance(pool, Fleet) and getattr(pool, name) is not None:
            slug = self._given.pool if isinstance(self._given.pool, str) else self.tuning.pool
            return f"the pool's {name}" + (f" ({slug})" if isinstance(slug, str) else "")
        return "its default"

    @functools.cached_property
    def limits(self) -> Limits:
        """Budgets other than the task's own `retries`."""
        return Limits(
            max_preemptions=self.options.max_preemptions,
            max_infrastructure_failures=self.options.max_infrastructure_failures,
            max_preemptions_without_progress=self.options.max_preemptions_without_progress,
            resumable=self.options.resumable,
        )

    @functools.cached_property
    def checkpoint_root(self) -> str:
        """Absolute: hosts have other working directories and other homes. URLs stay as they are.

        Raises:
            ConfigurationError: it is relative to a directory, or a home, that there is not.
        """
        root = str(self.options.checkpoint_root or get_current_settings().home / "tpu" / "checkpoints")
        if "://" not in root:
            path = os.path.expanduser(root)
            try:
                root = os.path.abspath(path)
            except OSError as error:
                raise ConfigurationError(
                    f"checkpoint_root {root!r} is relative to the working directory, which is gone: {error}"
                ) from None
            if path.startswith("~"):
                raise ConfigurationError(f"checkpoint_root {path!r}: no home directory is known for that user")
        return root.rstrip("/")

    @property
    def checkpoint_key(self) -> CheckpointKey | None:
        """The runner's own."""
        return self._given.checkpoint_key

    def result_shape(self) -> tuple[str, ...]:
        """What the shape of a result depends on; part of the cache key."""
        options = self.options
        return (
            ",".join(str(size) for size in sizes_of(options.num_slices)),
            options.accelerator_type,
            options.topology,
            str(options.chips_per_host),
            str(self._given.flatten),
            str(self._given.returns),
        )

    def shape_results(self, results: list[Any], hosts_per_slice: int) -> Any:
        """Results in process-id order, as the task returns them."""
        if self._given.returns == "process0":
            return results[0]
        if self._given.flatten:
            return results
        return [results[i : i + hosts_per_slice] for i in range(0, len(results), hosts_per_slice)]

    def _secrets(self) -> dict[str, SecretStr]:
        given = self.options.secret_env
        if not given:
            return {}
        from prefect_tpu.blocks.secrets import resolve

        return resolve(given)

    def plan(
        self,
        *,
        timeout_seconds: float | None,
        checkpoint_name: str,
        say: Logger,
        flow_run_id: str | None = None,
        checkpoints: Checkpoints | None = None,
    ) -> GangPlan:
        """Everything about the gang. Connects to nothing.

        Args:
            timeout_seconds: the task's own.
            checkpoint_name: the same for every attempt, and for the same task of a retried flow run.
            say: where a warning about simulated slices goes.
            flow_run_id: told to a fleet that labels what it creates.
            checkpoints: what is known of that directory, where another task run may have the same.

        Raises:
            ConfigurationError: no pool or Secret block of that name, or values that do not fit together.
            ProvisioningError: Prefect's API does not give them.
        """
        options, tuning, fleet = self.options, self.tuning, self.fleet
        if self.pool is None and not _warned.is_set():
            _warned.set()
            say.warning(
                "No pool given, none saved as tpu-slice-pool/default, and no PREFECT_INTEGRATIONS_TPU_RAY_ADDRESS set: "
                "simulated TPU slices on CPU (LocalFleet). Pass pool=... to run on real ones."
            )
        for written, place, to_do in unknown_settings():
            if (written, place) not in _told:
                _told.add((written, place))
                say.warning("%s %s: there is no such setting, so it changes nothing; %s", written, place, to_do)
        simulated, preemptible = isinstance(fleet, LocalFleet), options.preemptible
        if "preemptible" not in self._given.options:
            preemptible = preemptible or bool(fleet.options().get("preemptible"))
        if isinstance(fleet, QueuedResourceFleet) and flow_run_id is not None:
            fleet = fleet.for_flow_run(flow_run_id)
        spares = int(simulated) if options.warm_spares is None else options.warm_spares
        whole = {"preemptible": preemptible, "warm_spares": spares, "secret_env": self._secrets()}
        plan = GangPlan(
            fleet=fleet,
            options=options.model_copy(update=whole),
            tuning=tuning,
            process0_only=self._given.returns == "process0",
            timeout_seconds=timeout_seconds,
            checkpoint_dir=f"{self.checkpoint_root}/{checkpoint_name}",
            metadata_url=tuning.metadata_url or ("" if simulated else None),
            log_level=say.getEffectiveLevel(),
            host_resources=host_resources(),
            checkpoints=checkpoints,
        )
        shape = fits.shape_of(plan, self.origin)
        if isinstance(fleet, LocalFleet):
            in_pool = not (self.pool is None or isinstance(self.pool, Fleet))
            fits.check(plan, fleet, shape, self.origin, in_pool=in_pool)
        return plan
