"""How what belongs to one process travels: arrays of JAX as numpy, references of Ray as their values."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from prefect_tpu.wire import unpicklable

Fetch = Callable[[Any], Any]
"""Brings the value of one of Ray's ObjectRefs."""


class NoValueError(Exception):
    """The computation of an array, or of what a reference stands for, failed: not a matter of pickling."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(str(cause))
        self.cause = cause


def reduce_jax(obj: Any) -> Any:
    """Its array of numpy; None for what is not JAX's. Raises RefusedError, NoValueError."""
    jax = sys.modules.get("jax")
    if jax is None or not hasattr(jax, "Array"):  # not imported, or still being imported by another thread
        return None
    if isinstance(obj, jax.Array):
        return _reduce_array(obj, jax)
    if isinstance(obj, jax.Device):
        raise unpicklable.RefusedError(
            obj,
            f"{obj} is a JAX device, which exists only in its own process; build meshes and shardings on the hosts, "
            "with prefect_tpu.runtime.mesh",
        )
    return None


def _reduce_array(array: Any, jax: Any) -> Any:
    import numpy

    if isinstance(array, jax.core.Tracer):
        raise unpicklable.RefusedError(
            array, f"{array} is traced by a JAX transformation and has no value; return it from the jitted function"
        )
    if jax.dtypes.issubdtype(array.dtype, jax.dtypes.extended):
        raise unpicklable.RefusedError(
            array, f"a JAX array of dtype {array.dtype} cannot leave its process; send jax.random.key_data(key) instead"
        )
    if not array.is_fully_addressable and not array.is_fully_replicated:
        raise unpicklable.RefusedError(
            array,
            f"a JAX array {array.dtype}{list(array.shape)} is spread over several hosts: no host has all of it. "
            "Return process-local data (array.addressable_shards), or gather it first with "
            "jax.experimental.multihost_utils.process_allgather",
        )
    try:
        values = numpy.asarray(array)
    except Exception as error:
        raise NoValueError(error) from error
    return _writable(values, numpy).__reduce_ex__(5)


def reduce_ray(obj: Any, fetch: Fetch | None) -> Any:
    """References and actors of Ray mean something to processes of Ray only, which hosts of a gang are not."""
    kind = type(obj).__name__
    if _is_of_ray(obj, "ray._raylet", "ObjectRef"):
        if fetch is None:
            raise unpicklable.RefusedError(obj, f"a Ray {kind} means nothing outside of its process; return the value")
        try:
            value = fetch(obj)
        except Exception as error:
            raise NoValueError(error) from error
        return _itself, (value,)
    if _is_of_ray(obj, "ray._raylet", "ObjectRefGenerator") or _is_of_ray(obj, "ray.actor", "ActorHandle"):
        raise unpicklable.RefusedError(
            obj, f"a Ray {kind} can be used in processes of Ray only; ask it in the flow, and pass its answers"
        )
    return None


def _is_of_ray(obj: Any, module: str, name: str) -> bool:
    """Ray is not imported for it: without it nobody has such an object."""
    cls = getattr(sys.modules.get(module), name, None)
    return cls is not None and isinstance(obj, cls)


def _itself(value: Any) -> Any:
    return value


class _Memory:
    """The memory of a read-only array, as one that may be written to where it arrives."""

    def __init__(self, array: Any) -> None:
        interface = dict(array.__array_interface__)
        interface["data"] = (interface["data"][0], False)
        self.__array_interface__ = interface
        self.owner = array


def _writable(array: Any, numpy: Any) -> Any:
    """A view without the read-only mark, which pickle would carry over. Nobody writes to it here."""
    if array.flags.writeable or not array.flags.c_contiguous or array.size == 0:
        return array
    return numpy.asarray(_Memory(array)).view(array.dtype).reshape(array.shape)
