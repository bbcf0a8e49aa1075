"""Functions, arguments, results and exceptions on their way between driver and hosts.

Big arrays travel beside the pickle stream (protocol 5), uncopied. What belongs to the user's project
travels by value, so hosts need not have it; JAX arrays travel as numpy, so that no JAX backend starts where
they arrive.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from prefect_tpu.wire import cloudpickle_api, host_modules, reducers, unpicklable
from prefect_tpu.wire.by_value import Pickler, Sent
from prefect_tpu.wire.project import ProjectModules, project_root_of
from prefect_tpu.wire.reducers import Fetch

__all__ = ["ClassesOfDriver", "ProjectModules", "dumps", "dumps_inline", "loads", "project_root_of"]

OUT_OF_BAND_BYTES = 64 * 1024
"""Buffers from this size on travel beside the stream; smaller ones are not worth a page of their own."""


def dumps(
    obj: Any,
    project_root: Path | None = None,
    *,
    by_name: Sequence[str] = (),
    known: ClassesOfDriver | None = None,
    fetch: Fetch | None = None,
) -> list[Any]:
    """Pickle `obj` into a list of buffers: the stream, then the arrays.

    The arrays are not copied: they must not change before the buffers have been written.

    Args:
        obj: what to send. A tuple (function, args, kwargs) gets better error messages.
        project_root: modules below it travel by value, except installed ones and prefect_tpu.
        by_name: modules that the hosts have, with all below them: they travel by name.
        known: classes that the receiver, which is the driver then, has; they are found there instead of being built
            anew. None on the way to a host.
        fetch: brings the value of one of Ray's ObjectRefs, which travels in its place; None: they are refused.

    Raises:
        ConfigurationError: `obj` cannot be pickled; the text names the object inside it that cannot.
        Exception: whatever the computation of a JAX array raises that was not finished yet, or `fetch`.
    """
    buffers: list[Any] = []

    def beside(buffer: pickle.PickleBuffer) -> bool:
        raw = buffer.raw()
        if raw.nbytes < OUT_OF_BAND_BYTES:
            return True
        buffers.append(raw)
        return False

    modules = ProjectModules(project_root, by_name, host_modules.names())
    stream = io.BytesIO()
    pickler = _pickler(stream, beside, modules, known, fetch)
    try:
        pickler.dump(Sent(obj) if known is None else obj)
    except reducers.NoValueError as error:
        raise error.cause from None
    except Exception as error:
        culprit = obj if pickler.whole is None else pickler.whole
        raise unpicklable.explain(culprit, error, lambda part: _try(part, modules, known, fetch)) from error
    return [stream.getbuffer(), *buffers]


def dumps_inline(obj: Any, *, known: ClassesOfDriver | None = None) -> bytes:
    """Pickle `obj` into one string that `pickle.loads` reads. Raises what pickling raises."""
    stream = io.BytesIO()
    _pickler(stream, None, ProjectModules(None, also=host_modules.names()), known).dump(obj)
    return stream.getvalue()


def loads(buffers: Sequence[Any], *, copy: bool = True) -> Any:
    """Rebuild what `dumps` has pickled. Starts no JAX backend.

    Args:
        buffers: as `dumps` returned them, or as any other objects that export the same bytes.
        copy: put the arrays into memory of their own, which can be written to and outlives `buffers`.
            False: they stay in `buffers`.
    """
    stream, *beside = buffers
    return pickle.loads(stream, buffers=[bytearray(one) if copy else one for one in beside])  # noqa: S301


class ClassesOfDriver:
    """The classes that arrived on a host by value, so that the driver gets its own ones back.

    cloudpickle would rebuild them there and overwrite the methods of the driver's classes with copies.
    """

    def __init__(self) -> None:
        self._ids = cloudpickle_api.class_ids()

    def tracker_id(self, cls: type) -> str | None:
        """cloudpickle's id of the class, the same in the driver; None if it was made here."""
        return self._ids.get(cls)


class _Nowhere(io.RawIOBase):
    def write(self, data: Any) -> int:
        return len(data)


def _pickler(
    file: Any,
    beside: Callable[[pickle.PickleBuffer], bool] | None,
    modules: ProjectModules,
    known: ClassesOfDriver | None,
    fetch: Fetch | None = None,
) -> Pickler:
    return Pickler(file, beside, modules, None if known is None else known.tracker_id, fetch)


def _try(part: Any, modules: ProjectModules, known: ClassesOfDriver | None, fetch: Fetch | None) -> Exception | None:
    """What pickling `part` raises."""
    try:
        _pickler(_Nowhere(), lambda _: False, modules, known, fetch).dump(part)
    except Exception as error:  # noqa: BLE001 - it is the answer
        return error
    return None
