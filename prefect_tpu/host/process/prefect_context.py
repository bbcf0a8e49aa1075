"""Makes Prefect's `get_run_logger()` work on a host, where there is no Prefect engine and no API.

What needs the API (tasks, flows, artifacts, variables, blocks) is refused in clear words: see `_NoApi`.

Prefect is imported only if the function imports it; this module sees that and enters a task-run context.
Log records then go the way of all others; the API's log handler is off (see zygote_environment.py).
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import logging
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, NoReturn
from uuid import UUID, uuid4

from prefect_tpu.core.errors import ConfigurationError


def install(run_id: str) -> None:
    """Enter a context now if Prefect is imported already, else as soon as it is."""
    if "prefect" in sys.modules:
        _enter(run_id)
    else:
        sys.meta_path.insert(0, _Finder(lambda: _enter(run_id)))


def _enter(run_id: str) -> None:
    try:
        # Only here, and only if the function has Prefect imported: hosts may not even have it.
        import prefect.main  # noqa: F401 - completes the models of prefect.context
        from prefect.client.schemas.objects import TaskRun
        from prefect.context import AsyncClientContext, SyncClientContext, TaskRunContext
        from prefect.results import ResultStore
        from prefect.settings import get_current_settings
        from prefect.tasks import Task

        TaskRunContext.model_construct(  # not validated: there is no API, so no client
            task=Task(fn=_nothing, name="gang"),
            task_run=TaskRun(id=_uuid(run_id), name="gang", task_key="gang", dynamic_key="0"),
            client=None,  # type: ignore[arg-type]
            parameters={},
            result_store=ResultStore(),
        ).__enter__()
        if get_current_settings().api.url is None:  # else the user gave this host one
            for clients in (SyncClientContext, AsyncClientContext):
                clients.__var__.set(_NoApi())  # type: ignore[arg-type]
    except Exception:
        logging.getLogger("prefect_tpu").warning("get_run_logger() will not work on this host", exc_info=True)


def _uuid(text: str) -> UUID:
    try:
        return UUID(text)
    except ValueError:
        return uuid4()


def _nothing() -> None:
    return None


class _NoApi:
    """In the place where Prefect keeps its API clients: refuses to be looked at."""

    def __bool__(self) -> NoReturn:
        self._refuse()

    def __getattr__(self, name: str) -> NoReturn:
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise ConfigurationError(
            "Prefect's API was needed on a host of a gang (a Prefect task or flow was called there, or an artifact, "
            "variable or block used). Hosts have no Prefect API: do this in the flow, before or after the gang, and "
            "pass values as parameters and results. A task's plain function can be called on a host: its `.fn(...)`."
        )


class _Finder(importlib.abc.MetaPathFinder):
    """Calls back once when the package `prefect` has been imported."""

    def __init__(self, callback: Callable[[], None]) -> None:
        self._callback = callback

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,  # noqa: ARG002 - the protocol has it
        target: ModuleType | None = None,  # noqa: ARG002
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != "prefect":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec("prefect")
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, self._callback)
        return spec


class _Loader(importlib.abc.Loader):
    def __init__(self, real: Any, callback: Callable[[], None]) -> None:
        self._real = real
        self._callback = callback

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        created: ModuleType | None = self._real.create_module(spec)
        return created

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        module.__spec__.loader = module.__loader__ = self._real
        self._real.exec_module(module)
        self._callback()
