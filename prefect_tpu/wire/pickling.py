"""Functions, arguments, results and exceptions on their way between driver and hosts.

Big arrays travel beside the pickle stream (protocol 5), uncopied. What belongs to the user's project
travels by value, so hosts need not have it; JAX arrays travel as numpy, so that no JAX backend starts where
they arrive.
"""

from __future__ import annotations

import inspect
import io
import pickle
import sys
import sysconfig
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cloudpickle

from prefect_tpu.wire import cloudpickle_api, ray_objects, unpicklable
from prefect_tpu.wire.ray_objects import Fetch, NoValueError

OUT_OF_BAND_BYTES = 64 * 1024
"""Buffers from this size on travel beside the stream; smaller ones are not worth a page of their own."""

PROJECT_MARKERS = ("pyproject.toml", "prefect.yaml", "setup.py", ".git")
_INSTALLED_PARTS = frozenset({"site-packages", "dist-packages"})
_STANDARD_LIBRARY = tuple(
    Path(path).resolve() for path in {sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")} if path
)
_OWN_PACKAGE = __name__.partition(".")[0]


def project_root_of(fn: Callable[..., Any]) -> Path | None:
    """The directory whose modules travel by value together with `fn`.

    It is the nearest directory above the function's file that holds one of `PROJECT_MARKERS`, else the
    file's own; None for a function without a file (it travels by value anyway) and for an installed one.
    """
    code = getattr(inspect.unwrap(fn), "__code__", None)
    if code is None:
        return None
    if code.co_filename.startswith("<"):
        return None  # typed in, or made by exec
    file = Path(code.co_filename).resolve()
    if _is_installed(file):
        return None
    for parent in file.parents:
        if any((parent / marker).exists() for marker in PROJECT_MARKERS):
            return parent
    return file.parent


def dumps(
    obj: Any,
    project_root: Path | None = None,
    *,
    known: ClassesOfDriver | None = None,
    fetch: Fetch | None = None,
) -> list[Any]:
    """Pickle `obj` into a list of buffers: the stream, then the arrays.

    The arrays are not copied: they must not change before the buffers have been written.

    Args:
        obj: what to send. A tuple (function, args, kwargs) gets better error messages.
        project_root: modules below it travel by value, except installed ones and prefect_tpu.
        known: classes that the receiver has, to be found there instead of being built anew.
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

    modules = ProjectModules(project_root)
    stream = io.BytesIO()
    try:
        _Pickler(stream, beside, modules, known, fetch).dump(obj)
    except NoValueError as error:
        raise error.cause from None
    except Exception as error:
        raise unpicklable.explain(obj, error, lambda part: _try(part, modules, known, fetch)) from error
    return [stream.getbuffer(), *buffers]


def dumps_inline(obj: Any, *, known: ClassesOfDriver | None = None) -> bytes:
    """Pickle `obj` into one string that `pickle.loads` reads. Raises what pickling raises."""
    stream = io.BytesIO()
    _Pickler(stream, None, ProjectModules(None), known).dump(obj)
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


class ProjectModules:
    """Tells which modules are the user's own: below the project root and not installed."""

    def __init__(self, root: Path | None) -> None:
        self._root = root.resolve() if root is not None else None
        self._answers: dict[str, bool] = {}

    def __contains__(self, name: object) -> bool:
        if self._root is None or not isinstance(name, str):
            return False
        if name not in self._answers:
            self._answers[name] = self._look(name)
        return self._answers[name]

    def _look(self, name: str) -> bool:
        if name.partition(".")[0] in (_OWN_PACKAGE, "__main__"):
            return False  # the hosts have the first; cloudpickle sends what is in the second by value
        file = getattr(sys.modules.get(name), "__file__", None)
        if not file or not file.endswith(".py"):
            return False
        path = Path(file).resolve()
        return self._root in path.parents and not _is_installed(path)


def _is_installed(file: Path) -> bool:
    return not _INSTALLED_PARTS.isdisjoint(file.parts) or any(
        directory in file.parents for directory in _STANDARD_LIBRARY
    )


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    """Decides by value or by reference itself: cloudpickle's registry is global and shared by all threads."""

    def __init__(
        self,
        file: Any,
        beside: Callable[[pickle.PickleBuffer], bool] | None,
        modules: ProjectModules,
        known: ClassesOfDriver | None,
        fetch: Fetch | None = None,
    ) -> None:
        super().__init__(file, protocol=5, buffer_callback=beside)
        self._modules = modules
        self._known = known
        self._fetch = fetch

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, type):
            tracked = self._known.tracker_id(obj) if self._known is not None else None
            if tracked is not None:
                return _class_of_driver, (tracked, obj.__qualname__)
            if obj.__module__ in self._modules:
                return cloudpickle_api.reduce_class(obj)
        elif isinstance(obj, types.FunctionType):
            if obj.__module__ in self._modules:
                return cloudpickle_api.reduce_function(self, obj)
        elif isinstance(obj, types.CodeType):
            return cloudpickle_api.reduce_code(obj)
        elif isinstance(obj, types.ModuleType):
            if obj.__name__ in self._modules:
                return _make_module, (obj.__name__,), _module_state(obj), None, None, _set_module_state
        else:
            reduced = _reduce_jax(obj) or ray_objects.reduce(obj, self._fetch)
            if reduced is not None:
                return reduced
        return super().reducer_override(obj)


def _class_of_driver(tracker_id: str, name: str) -> type:
    found = cloudpickle_api.class_of_id(tracker_id)
    if found is None:
        raise pickle.UnpicklingError(f"class {name} came from a process that is not this one, or is gone from it")
    return found


def _make_module(name: str) -> types.ModuleType:
    return types.ModuleType(name)


def _module_state(module: types.ModuleType) -> dict[str, Any]:
    left_out = ("__builtins__", "__loader__", "__spec__", "__cached__")
    return {name: value for name, value in vars(module).items() if name not in left_out}


def _set_module_state(module: types.ModuleType, state: dict[str, Any]) -> None:
    vars(module).update(state)


def _reduce_jax(obj: Any) -> Any:
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


class _Nowhere(io.RawIOBase):
    def write(self, data: Any) -> int:
        return len(data)


def _try(part: Any, modules: ProjectModules, known: ClassesOfDriver | None, fetch: Fetch | None) -> Exception | None:
    """What pickling `part` raises."""
    try:
        _Pickler(_Nowhere(), lambda _: False, modules, known, fetch).dump(part)
    except Exception as error:  # noqa: BLE001 - it is the answer
        return error
    return None
