"""Who this host process is, and what its agent tells it while the function runs."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from datetime import datetime
from typing import Any, TypeVar, overload

from prefect_tpu.core import clock
from prefect_tpu.core.errors import NotInGangError
from prefect_tpu.core.messages import GangContext
from prefect_tpu.runtime.reporter import Reporter, Send

Default = TypeVar("Default")
_PUBLIC = __name__.rpartition(".")[0]
"""Where users find what they see the name of."""


class Cancelled(BaseException):
    """Raised inside the function when its gang is cancelled. `finally:` blocks run within the grace period."""

    __module__ = _PUBLIC


class Left(BaseException):
    """What `leave` raises."""

    __module__ = _PUBLIC


class Resizing(Left):
    """What `resize_point` raises where the attempt ends."""

    __module__ = _PUBLIC


@dataclass(slots=True, eq=False)
class Drain:
    """Which slices of the gang are about to be taken away, and who wants to know."""

    deadline: datetime | None = None
    slices: tuple[int, ...] = ()
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
        jax_distributed: JAX's distributed runtime is up, and JAX sees the devices of all hosts. False in a gang of
            several hosts (`jax_distributed=False`): to JAX each of them is alone, with the same `checkpoint_dir`.
        can_grow: the task may have more slices than this attempt has; `resize_point` asks whether they are there.
    """

    _drain: Drain = field(default_factory=Drain, repr=False, compare=False)

    @property
    def draining(self) -> bool:
        """Whether a host of the gang is about to be taken away. Changes while the function runs, back as well."""
        return bool(self._drain.slices)

    @property
    def draining_slices(self) -> tuple[int, ...]:
        """Indices (as `slice_index`) of the slices that are about to be taken away, ascending; the others stay.

        Empty without a notice, and when all are taken back. Changes while the function runs.
        """
        return self._drain.slices

    @property
    def deadline(self) -> datetime | None:
        """When the first of them will be taken away (UTC, by this host's clock), if it is known."""
        return self._drain.deadline


@dataclass(slots=True)
class HostProcess:
    """What a host process of a gang has."""

    context: Context
    drain: Drain
    reporter: Reporter
    more_slices: threading.Event = field(default_factory=threading.Event)


this: HostProcess | None = None
"""None outside a gang."""


def enter(context: GangContext, send: Send) -> HostProcess:
    """Make this process a host process of a gang. For the child that runs the function."""
    global this
    known = {one.name: getattr(context, one.name) for one in fields(context)}
    drain = Drain()
    this = HostProcess(Context(**known, _drain=drain), drain, Reporter(send))
    return this


def here() -> HostProcess:
    """This process.

    Raises:
        NotInGangError: outside a gang.
    """
    if this is None:
        raise NotInGangError(
            "there is no gang here: prefect_tpu.runtime works inside a task with a TpuMultisliceRunner, while it runs "
            "on a host. Use runtime.current(default=None) in code that also runs elsewhere."
        )
    return this


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
    if this is None and default is not _Missing:
        return default
    return here().context


def offer_more_slices(there: bool) -> None:
    """More slices are free, or not any more."""
    if this is not None and there:
        this.more_slices.set()
    elif this is not None:
        this.more_slices.clear()


def tell_drain(slices: Sequence[int], seconds_left: float | None) -> None:
    """Which slices of the gang are about to be taken away, and when the first goes: what the driver knows now."""
    if this is None:
        return
    drain = this.drain
    with drain.lock:
        drain.deadline = None if seconds_left is None else clock.moment(time.time() + seconds_left)
        drain.slices = tuple(sorted(slices))
        if not slices:
            return
        callbacks, drain.callbacks = drain.callbacks, []
    call_back(callbacks)


def call_on_drain(callback: Callable[[], object]) -> None:
    """As `runtime.on_drain`."""
    drain = here().drain
    with drain.lock:
        if not drain.slices:
            drain.callbacks.append(callback)
            return
    call_back([callback])


def call_back(callbacks: Sequence[Callable[[], object]]) -> None:
    """Call them on a thread of their own, one after the other."""

    def work() -> None:
        for callback in callbacks:
            try:
                callback()
            except Exception:
                logging.getLogger("prefect_tpu").exception("a callback of runtime.on_drain failed")

    if callbacks:
        threading.Thread(target=work, name="prefect-tpu-drain", daemon=True).start()
