"""What a TpuMultisliceRunner was given, checked."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, Self

from prefect.tasks import TaskOptions

from prefect_tpu.core.gang import sizes_of
from prefect_tpu.fleets.fleet import Fleet
from prefect_tpu.options.check import check_given, refused
from prefect_tpu.options.given import GivenOptions
from prefect_tpu.options.variables import withhold
from prefect_tpu.task_run.checkpoint_dirs import CheckpointKey, check_checkpoint_key

if TYPE_CHECKING:
    from prefect_tpu.blocks.pool import TpuSlicePool

_SLUG = re.compile(r"tpu-slice-pool/[a-z0-9-]+")


class RunnerOptions(GivenOptions, total=False):
    """Arguments of TpuMultisliceRunner that do not change the type of its results."""

    pool: Fleet | TpuSlicePool | str | None
    max_workers: int | None
    checkpoint_key: CheckpointKey | None


@dataclass(frozen=True, slots=True)
class Given:
    """A runner's arguments; what was not given is not in `options`, and None elsewhere.

    Attributes:
        options: of the gang, by name, as they are kept: sequences as lists, paths as texts.
    """

    flatten: bool
    returns: Literal["all", "process0"]
    pool: Fleet | TpuSlicePool | str | None
    max_workers: int | None
    options: dict[str, Any] = field(repr=False)
    checkpoint_key: CheckpointKey | None = None

    @classmethod
    def of(cls, flatten: Any, returns: Any, options: Mapping[str, Any]) -> Self:
        """Of the arguments as they were passed.

        Raises:
            TypeError: there is no such argument.
            ConfigurationError: one cannot be right; by name, with the allowed values.
        """
        unknown = sorted(set(options) - set(RunnerOptions.__annotations__))
        if unknown:
            known = ["flatten", "returns", *RunnerOptions.__annotations__]
            near = difflib.get_close_matches(unknown[0], known, 1)
            meant = f" (is {near[0]!r} meant?)" if near else ""
            if unknown[0] in TaskOptions.__annotations__:
                meant = f" (it belongs to the task: @task(task_runner=..., {unknown[0]}=...))"
            raise TypeError(f"TpuMultisliceRunner() has no argument {unknown[0]!r}{meant}; it has {', '.join(known)}")
        rest = dict(options)
        pool = rest.pop("pool", None)
        max_workers = rest.pop("max_workers", None)
        checkpoint_key = rest.pop("checkpoint_key", None)
        _check_pool(pool)
        if checkpoint_key is not None:
            try:
                check_checkpoint_key(checkpoint_key)
            except ValueError as error:
                raise refused("checkpoint_key", checkpoint_key, str(error)) from None
        if not isinstance(flatten, bool):
            raise refused("flatten", flatten, "must be True or False")
        if returns not in ("all", "process0"):
            raise refused("returns", returns, 'must be "all" or "process0"')
        whole = isinstance(max_workers, int) and not isinstance(max_workers, bool)
        if max_workers is not None and not (whole and max_workers >= 1):
            raise refused("max_workers", max_workers, "must be a whole number of at least 1")
        kept = check_given(rest)
        if "num_slices" in kept:
            sizes = sizes_of(kept["num_slices"])
            kept["num_slices"] = sizes[0] if len(sizes) == 1 else list(sizes)
        return cls(flatten, returns, pool, max_workers, kept, checkpoint_key)

    def without_secrets(self) -> Self:
        """For a pickle: names of Secret blocks stay."""
        if "secret_env" not in self.options:
            return self
        return replace(self, options=self.options | {"secret_env": withhold(self.options["secret_env"])})

    def arguments(self) -> dict[str, Any]:
        """With these the runner is made again: those that say something."""
        own = {
            "pool": self.pool,
            "max_workers": self.max_workers,
            "checkpoint_key": self.checkpoint_key,
            "flatten": None if self.flatten else False,
            "returns": None if self.returns == "all" else self.returns,
        }
        return {name: value for name, value in own.items() if value is not None} | self.options


def by_name(values: tuple[Any, ...]) -> TypeError:
    """For arguments of a runner that were given without their names."""
    first = values[0]
    number = isinstance(first, int | list | tuple) and not isinstance(first, bool)
    text = f"{first!r:.80}"
    return TypeError(
        f"TpuMultisliceRunner({text}): its arguments have names; write "
        f"TpuMultisliceRunner({'num_slices' if number else 'pool'}={text})"
    )


def _check_pool(pool: Any) -> None:
    known = isinstance(pool, str | Fleet) or hasattr(pool, "validate_fleet")
    if pool is not None and (isinstance(pool, type) or not known):
        kinds = 'a saved pool ("tpu-slice-pool/NAME"), a TpuSlicePool, a fleet (LocalFleet, RayFleet) or None'
        raise refused("pool", pool, f"must be {kinds}")
    if isinstance(pool, str) and not _SLUG.fullmatch(pool):
        name = 'a saved pool as "tpu-slice-pool/NAME", with lower case letters, digits and dashes'
        raise refused("pool", pool, f"must be {name}")
