"""What a function can ask on a host: who it is, its mesh, how far it got. Runs: host process.

```python
from prefect_tpu import runtime

ctx = runtime.current()
mesh = runtime.mesh(("data", "model"), (2, 4))
runtime.report(step=100, loss=0.25)
```
Neither Prefect nor Ray is imported here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

from prefect_tpu.core.errors import ConfigurationError
from prefect_tpu.runtime.mesh import mesh
from prefect_tpu.runtime.process import Cancelled, Context, Left, Resizing, call_on_drain, current, here
from prefect_tpu.runtime.reporter import LAST_VALUES_SECONDS, MAX_METRIC_NAME_CHARS, MAX_METRICS, whole_number

__all__ = ["Cancelled", "Context", "Left", "Resizing", "current", "leave", "mesh", "on_drain", "report", "resize_point"]


def report(step: int | None = None, *, total_steps: int | None = None, **metrics: Any) -> None:
    """Tell the driver how far the function got. Cheap enough for every training step.

    Report the step that was restored from a checkpoint as well, before the first new one: Prefect's summary then
    tells exactly how many steps were done twice.

    Every call is a sign of life (`hang_timeout_seconds`), also with the same step or a lower one, as in an evaluation
    or a new epoch. Progress is a step above all before, or a checkpoint that the next attempt finds.

    A metric is turned into a float only when it is sent (at most every `REPORT_INTERVAL_SECONDS`), on a thread of its
    own: a JAX scalar makes no step wait for the device. One that has no value by then, as its array was donated, is
    left out, with a warning. `step` and `total_steps` are taken at once: give plain numbers.

    Args:
        step: how many steps are done.
        total_steps: how many there will be; the progress that Prefect shows needs it.
        metrics: named numbers (or scalars of numpy or JAX), 1,000 at most, with names of up to 200 characters.

    Raises:
        NotInGangError: outside a gang.
        ConfigurationError: a step or a metric is not a number, there are too many, or a name is too long. It is an
            exception of the function's own, as every one that is raised in it.
    """
    reporter = here().reporter
    if len(metrics) > MAX_METRICS:
        raise ConfigurationError(
            f"runtime.report got {len(metrics):,} metrics, and takes {MAX_METRICS:,} at most: report sums or means, "
            "and write the rest where you keep your data"
        )
    for name, value in metrics.items():
        if len(name) > MAX_METRIC_NAME_CHARS:
            raise ConfigurationError(
                f"the name of a metric has {len(name):,} characters, and may have {MAX_METRIC_NAME_CHARS}: "
                f"{name[:40]!r}..."
            )
        if not hasattr(value, "__float__"):
            raise ConfigurationError(f"metric {name!r} must be a number, got {type(value).__name__}")
    reporter.report(whole_number("step", step), metrics, whole_number("total_steps", total_steps))


def on_drain(callback: Callable[[], object]) -> None:
    """Have `callback()` called once, on a thread of its own, when a host of the gang is about to be taken away.

    At once if that is known already. What it raises is logged. JAX must not be called in it while the function
    uses JAX: set something that the training loop looks at.

    Raises:
        NotInGangError: outside a gang.
    """
    call_on_drain(callback)


def leave() -> NoReturn:
    """End this attempt because a host is about to be taken away, once everything is saved.

    The attempt counts as preempted, which is not charged to the task's `retries`; the next one goes on from the
    checkpoint. All hosts should leave at the same step: `jax.experimental.multihost_utils.
    reached_preemption_sync_point(step)` says on all of them at which one. A thread that still saves may finish, see
    docs/retries.md. Without a notice it is an error.

    Raises:
        NotInGangError: outside a gang.
        Left: always; do not catch it.
    """
    here().reporter.flush(LAST_VALUES_SECONDS)
    raise Left("left, as a host of the gang is about to be taken away")


def resize_point(save: Callable[[], object] | None = None) -> None:
    """Say that the run may go on with more slices from here. Call it on all hosts, after the same step.

    With a fixed `num_slices`, or while the gang has as many as it may have, it does nothing. Else all hosts agree (by
    a small JAX collective) on whether more slices are free; if so, the attempt ends here, and the next one begins with
    more slices and goes on from the checkpoint. That is charged to no budget.

    Args:
        save: called on every host before the attempt ends here; not needed where everything has just been saved.

    Raises:
        NotInGangError: outside a gang.
        ConfigurationError: several host processes, and JAX's distributed runtime is not up: they cannot agree.
        Resizing: the attempt ends here; do not catch it.
    """
    process = here()
    context = process.context
    if not context.can_grow:
        return
    wanted = process.more_slices.is_set()
    if context.num_processes > 1:
        import jax

        if not jax.distributed.is_initialized():
            raise ConfigurationError(
                "runtime.resize_point() needs JAX's distributed runtime, by which the hosts agree: leave "
                'jax_distributed="auto", or give num_slices as one number'
            )
        import numpy
        from jax.experimental import multihost_utils

        wanted = bool(multihost_utils.broadcast_one_to_all(numpy.asarray(wanted, dtype=numpy.int32)))
    if not wanted:
        return
    if save is not None:
        save()
    process.reporter.flush(LAST_VALUES_SECONDS)
    raise Resizing("left at a resize point, as more slices are free")
