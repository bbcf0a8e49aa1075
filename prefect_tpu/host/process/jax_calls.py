"""What becomes of `jax.distributed.initialize()` and `shutdown()` in the function.

Multi-host scripts have them, and a gang has done it already.

Both are wrapped when JAX's module is imported, by whomever and whenever; JAX is not imported for it.
"""

from __future__ import annotations

import functools
import importlib.abc
import importlib.machinery
import inspect
import logging
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

from prefect_tpu.core.errors import AlreadyInitializedError
from prefect_tpu.host.process import jax_api
from prefect_tpu.runtime import process

MODULE = "jax._src.distributed"
PATIENCE = frozenset({"initialization_timeout", "heartbeat_timeout_seconds", "shutdown_timeout_seconds"})
"""Arguments that do not say which runtime is meant."""

log = logging.getLogger("prefect_tpu")


def watch() -> None:
    """From now on. For the zygote, before it imports anything."""
    known = sys.modules.get(MODULE)
    if known is not None:
        _wrap(known)
    elif not any(isinstance(one, _Finder) for one in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


class _Finder(importlib.abc.MetaPathFinder):
    """Finds nothing itself; has the one module wrapped that it waits for."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != MODULE:
            return None
        for finder in sys.meta_path:
            find = getattr(finder, "find_spec", None)
            spec = find(fullname, path, target) if find is not None and finder is not self else None
            if spec is not None:
                loader: Any = spec.loader
                if loader is not None:
                    loader.exec_module = functools.partial(_execute, loader.exec_module)
                return spec  # type: ignore[no-any-return]
        return None


def _execute(execute: Callable[[ModuleType], None], module: ModuleType) -> None:
    execute(module)
    _wrap(module)


def _wrap(module: Any) -> None:
    initialize, shutdown = module.initialize, module.shutdown
    signature = inspect.signature(initialize)

    @functools.wraps(initialize)
    def initialize_in_a_gang(*args: Any, **kwargs: Any) -> None:
        arguments = signature.bind(*args, **kwargs).arguments
        default = {name: one.default for name, one in signature.parameters.items()}
        given = {name for name, value in arguments.items() if value is not None and value != default[name]}
        if not _is_done(given):
            initialize(*args, **kwargs)

    @functools.wraps(shutdown)
    def shutdown_in_a_gang() -> None:
        if not jax_api.is_ours():  # else it is done when all hosts are, for which some may need it longer
            shutdown()

    module.initialize, module.shutdown = initialize_in_a_gang, shutdown_in_a_gang


def _is_done(given: set[str]) -> bool:
    """Whether there is nothing left to do for a function that initializes JAX's runtime with these arguments.

    Raises:
        AlreadyInitializedError: it wants another one.
    """
    gang = process.this
    if gang is None:
        return False
    means_one = sorted(given - PATIENCE)
    if not jax_api.is_ours():
        if gang.context.num_processes > 1 or means_one:
            return False  # jax_distributed=False: it is the function's own affair
        jax_api.start_alone()
    elif means_one:
        call = f"jax.distributed.initialize({', '.join(f'{name}=...' for name in means_one)})"
        raise AlreadyInitializedError(
            f"{call}: prefect_tpu has started JAX's distributed runtime already, with all {gang.context.num_processes} "
            "hosts of the gang. Take the call out, or call it without arguments; to start it yourself, give the runner "
            "jax_distributed=False"
        )
    if given:
        log.warning(
            "%s of jax.distributed.initialize() have no effect: prefect_tpu has started JAX's runtime",
            ", ".join(sorted(given)),
        )
    return True
