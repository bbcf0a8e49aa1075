"""What a function can ask while it runs on a host: who it is, which mesh it has, how far it says it got.

```python
from prefect_tpu import runtime

ctx = runtime.current()
mesh = runtime.mesh(("data", "model"), (2, 4))
runtime.report(step=100, loss=0.25)
```
Neither Prefect nor Ray is imported here.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, overload

from prefect_tpu.core.errors import ConfigurationError, NotInGangError
from prefect_tpu.core.messages import GangContext

if TYPE_CHECKING:
    from jax.sharding import Mesh

__all__ = ["Cancelled", "Context", "Left", "Resizing", "current", "leave", "mesh", "on_drain", "report", "resize_point"]

REPORT_INTERVAL_SECONDS = 0.5
"""`report` sends at most this often; the newest values are never lost, they go with the next sending."""

Default = TypeVar("Default")
Send = Callable[[int | None, dict[str, float], int | None, int | None], None]
"""Step, metrics, total steps, first step of this process."""


class Cancelled(BaseException):
    """Raised inside the function when its gang is cancelled. `finally:` blocks run within the grace period."""


class Left(BaseException):
    """What `leave` raises."""


class Resizing(Left):
    """What `resize_point` raises where the attempt ends."""


@dataclass(slots=True, eq=False)
class _Drain:
    deadline_unix_seconds: float | None = None
    reason: str = ""
    noticed: bool = False
    callbacks: list[Callable[[], object]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)


@dataclass(frozen=True, slots=True)
class Context(GangContext):
    """Who this host process is in its gang.

    Attributes:
        slice_index: of the slice that this host is on, from 0.
        num_slices: of the gang.
        host_index: of this host inside its slice, from 0.
        hosts_per_slice: the same for every slice.
        process_id: `slice_index * hosts_per_slice + host_index`; also `jax.process_index()`.
        num_processes: `num_slices * hosts_per_slice`.
        attempt: number of this launch of the gang, from 1.
        run_id: the same for all attempts and hosts of one task run.
        slice_name: name of the slice in its fleet.
        checkpoint_dir: the same for all attempts and hosts of one task run; None if none is set.
        can_grow: the task may have more slices than this attempt has; `resize_point` asks whether they are there.
    """

    _drain: _Drain = field(default_factory=_Drain, repr=False, compare=False)

    @property
    def draining(self) -> bool:
        """Whether a host of the gang is about to be taken away. Changes while the function runs."""
        return self._drain.noticed

    @property
    def deadline(self) -> datetime | None:
        """When it will be taken away (UTC), if it is known."""
        seconds = self._drain.deadline_unix_seconds
        return None if seconds is None else datetime.fromtimestamp(seconds, UTC)


class _Missing:
    pass


@overload
def current() -> Context: ...
@overload
def current(default: Default) -> Context | Default: ...
def current(default: Any = _Missing) -> Any:
    """The gang that this process belongs to.

    Args:
        default: returned outside a gang, instead of an error.

    Raises:
        NotInGangError: outside a gang, with no default.
    """
    if _process is not None:
        return _process.context
    if default is _Missing:
        raise NotInGangError(
            "there is no gang here: prefect_tpu.runtime works inside a task with a TpuMultisliceRunner, while it runs "
            "on a host. Use runtime.current(default=None) in code that also runs elsewhere."
        )
    return default


def report(step: int | None = None, *, total_steps: int | None = None, **metrics: Any) -> None:
    """Tell the driver how far the function got. Cheap enough for every training step.

    Report the step that was restored from a checkpoint as well, before the first new one: Prefect's summary then
    tells exactly how many steps were done twice.

    A value is turned into a float only when it is sent (at most every `REPORT_INTERVAL_SECONDS`), so JAX
    scalars do not make every step wait for the device.

    Args:
        step: how many steps are done.
        total_steps: how many there will be; the progress that Prefect shows needs it.
        metrics: named numbers (or scalars of numpy or JAX).

    Raises:
        NotInGangError: outside a gang.
        ConfigurationError: a metric is not a number.
    """
    current()
    assert _process is not None
    for name, value in metrics.items():
        if not hasattr(value, "__float__"):
            raise ConfigurationError(f"metric {name!r} must be a number, got {type(value).__name__}")
    _process.reporter.report(step, metrics, total_steps)


def on_drain(callback: Callable[[], object]) -> None:
    """Have `callback()` called once, on a thread of its own, when a host of the gang is about to be taken away.

    At once if that is known already. What it raises is logged. JAX must not be called in it while the function
    uses JAX: set something that the training loop looks at.

    Raises:
        NotInGangError: outside a gang.
    """
    drain = current()._drain
    with drain.lock:
        if not drain.noticed:
            drain.callbacks.append(callback)
            return
    _call_back([callback])


def leave() -> NoReturn:
    """End this attempt because a host is about to be taken away, once everything is saved.

    The attempt counts as preempted, which is not charged to the task's `retries`; the next one goes on from the
    checkpoint. All hosts should leave at the same step: `jax.experimental.multihost_utils.
    reached_preemption_sync_point(step)` says on all of them at which one. Without a notice it is an error.

    Raises:
        NotInGangError: outside a gang.
        Left: always; do not catch it.
    """
    current()
    assert _process is not None
    _process.reporter.flush()
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
    context = current()
    assert _process is not None
    if not context.can_grow:
        return
    wanted = _process.more_slices.is_set()
    if context.num_processes > 1:
        import jax

        if not jax.distributed.is_initialized():
            raise ConfigurationError(
                "runtime.resize_point() needs JAX's distributed runtime, by which the hosts agree: leave "
                'jax_distributed="auto" and have "jax" in preload, or give num_slices as one number'
            )
        import numpy
        from jax.experimental import multihost_utils

        wanted = bool(multihost_utils.broadcast_one_to_all(numpy.asarray(wanted, dtype=numpy.int32)))
    if not wanted:
        return
    if save is not None:
        save()
    _process.reporter.flush()
    raise Resizing("left at a resize point, as more slices are free")


def mesh(axis_names: Sequence[str], ici_shape: Sequence[int], dcn_shape: Sequence[int] | None = None) -> Mesh:
    """A device mesh over all slices of the gang, laid out so that fast axes stay inside a slice.

    The size of an axis is its `dcn_shape` times its `ici_shape`. On TPUs the devices are ordered by
    `jax.experimental.mesh_utils`; on simulated slices by the same rule, with each gang slice as one.

    Args:
        axis_names: one name for each axis.
        ici_shape: how the devices of one slice are laid out; its product is the devices per slice.
        dcn_shape: how the slices are laid out; its product is the number of slices. Default: all slices
            along the first axis.

    Raises:
        NotInGangError: outside a gang.
        ConfigurationError: shapes that do not fit the slices; the text says what there is.
    """
    context = current()
    import jax
    import numpy

    names, ici = tuple(axis_names), tuple(ici_shape)
    dcn = (context.num_slices, *(1,) * (len(ici) - 1)) if dcn_shape is None else tuple(dcn_shape)
    slices = _devices_by_slice(jax.devices(), context)
    per_slice = len(slices[0])
    if len(names) != len(ici) or len(ici) != len(dcn) or not ici:
        raise ConfigurationError(
            f"axis_names {names}, ici_shape {ici} and dcn_shape {dcn} must be of one length, at least 1"
        )
    if math.prod(ici) != per_slice or math.prod(dcn) != len(slices):
        raise ConfigurationError(
            f"ici_shape {ici} needs {math.prod(ici)} devices per slice and dcn_shape {dcn} needs {math.prod(dcn)} "
            f"slices; there are {per_slice} devices per slice and {len(slices)} slices"
        )
    if slices[0][0].platform == "tpu":
        from jax.experimental import mesh_utils

        if len(slices) == 1:
            layout = mesh_utils.create_device_mesh(ici, slices[0])
        else:
            layout = mesh_utils.create_hybrid_device_mesh(ici, dcn, [one for devices in slices for one in devices])
    else:
        layout = _hybrid_layout(slices, ici, dcn, numpy)
    return jax.sharding.Mesh(layout, names)


def _devices_by_slice(devices: Sequence[Any], context: Context) -> list[list[Any]]:
    def slice_of(device: Any) -> int:
        if device.platform == "tpu":
            return int(getattr(device, "slice_index", 0))
        return int(device.process_index) // context.hosts_per_slice  # CPU devices all claim slice 0

    groups: dict[int, list[Any]] = {}
    for device in devices:
        groups.setdefault(slice_of(device), []).append(device)
    ordered = [groups[index] for index in sorted(groups)]
    if len(ordered) != context.num_slices or len({len(group) for group in ordered}) != 1:
        raise ConfigurationError(
            f"JAX sees {len(devices)} devices on {len(ordered)} slices, the gang has {context.num_slices} slices; "
            "a mesh over all of them needs jax_distributed to be on (the default for more than one host)"
        )
    return ordered


def _hybrid_layout(slices: Sequence[Sequence[Any]], ici: tuple[int, ...], dcn: tuple[int, ...], numpy: Any) -> Any:
    blocks = numpy.empty(dcn, dtype=object)
    for index, devices in zip(numpy.ndindex(*dcn), slices, strict=True):
        inner = numpy.empty(len(devices), dtype=object)
        inner[:] = devices
        blocks[index] = inner.reshape(ici)
    return numpy.block(blocks.tolist())


class _Reporter:
    """Sends the newest report now and then; whatever is left is sent by `flush`."""

    def __init__(self, send: Send, clock: Callable[[], float] = time.monotonic) -> None:
        self._send = send
        self._clock = clock
        self._lock = threading.Lock()
        self._sent_at = -math.inf
        self._first: int | None = None
        self._waiting: tuple[int | None, Mapping[str, Any], int | None] | None = None

    def report(self, step: int | None, metrics: Mapping[str, Any], total_steps: int | None = None) -> None:
        with self._lock:
            if self._first is None and step is not None:
                self._first = int(step)
            self._waiting = (step, metrics, total_steps)
            if self._clock() - self._sent_at < REPORT_INTERVAL_SECONDS:
                return
        self.flush()

    def flush(self) -> None:
        """Send what waits. A metric that has no value any more (a donated array) is left out."""
        with self._lock:
            waiting, self._waiting = self._waiting, None
            self._sent_at = self._clock()
        if waiting is not None:
            step, metrics, total = waiting
            self._send(
                None if step is None else int(step),
                _numbers(metrics),
                None if total is None else int(total),
                self._first,
            )


def _numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    numbers: dict[str, float] = {}
    for name, value in metrics.items():
        try:
            numbers[name] = float(value)
        except (TypeError, ValueError, RuntimeError):
            continue
    return numbers


@dataclass(slots=True)
class _Process:
    context: Context
    reporter: _Reporter
    more_slices: threading.Event = field(default_factory=threading.Event)


_process: _Process | None = None


def _enter(context: GangContext, send: Send) -> _Process:
    """Make this process a host process of a gang. For the child that runs the function."""
    global _process
    _process = _Process(Context(**{one.name: getattr(context, one.name) for one in fields(context)}), _Reporter(send))
    return _process


def _offer_more_slices(there: bool) -> None:
    """More slices are free, or not any more."""
    if _process is not None and there:
        _process.more_slices.set()
    elif _process is not None:
        _process.more_slices.clear()


def _notice(deadline_unix_seconds: float | None, reason: str) -> None:
    """A host of the gang is about to be taken away; the earliest deadline wins."""
    if _process is None:
        return
    drain = _process.context._drain
    with drain.lock:
        callbacks, drain.callbacks = drain.callbacks, []
        _take_notice(drain, deadline_unix_seconds, reason)
    _call_back(callbacks)


def _call_back(callbacks: Sequence[Callable[[], object]]) -> None:
    def work() -> None:
        for callback in callbacks:
            try:
                callback()
            except Exception:
                logging.getLogger("prefect_tpu").exception("a callback of runtime.on_drain failed")

    if callbacks:
        threading.Thread(target=work, name="prefect-tpu-drain", daemon=True).start()


def _take_notice(drain: _Drain, deadline_unix_seconds: float | None, reason: str) -> None:
    known = [one for one in (drain.deadline_unix_seconds, deadline_unix_seconds) if one is not None]
    drain.deadline_unix_seconds = min(known, default=None)
    drain.reason = drain.reason or reason
    drain.noticed = True
