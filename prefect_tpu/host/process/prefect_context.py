"""Makes Prefect's own words work on a host: `get_run_logger()`, `prefect.runtime`, tags, assets.

Prefect is imported only if the function imports it; this module sees that and enters the contexts that a task has in
the driver. Log records then go the way of all others; the API's log handler is off (see zygote_environment.py). What
needs Prefect's API is the matter of prefect_stand_ins.py.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import inspect
import logging
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

from prefect_tpu.core.messages import Carried
from prefect_tpu.core.prefect_run import PrefectRun
from prefect_tpu.host.process import prefect_stand_ins
from prefect_tpu.wire import pickling

log = logging.getLogger("prefect_tpu")


class PrefectContext:
    """Of one host process. Nothing of it raises."""

    def __init__(self, run: PrefectRun, send: Callable[[Carried], None]) -> None:
        """`run`: as the driver knows it. `send`: to the driver."""
        self._run = run
        self._outbox = prefect_stand_ins.Outbox(send, run)
        self._parameters: dict[str, Any] = {}
        self._called = False
        self._why_no_parameters = ""

    def install(self) -> None:
        """See to Prefect now if it is imported already, else as soon as it is."""
        if "prefect" in sys.modules:
            self._try(self._stand_in)
        else:
            sys.meta_path.insert(0, _Finder(lambda: self._try(self._stand_in, self._enter)))

    def called(self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """The function is about to be called with these; where Prefect is imported already, the contexts begin."""
        try:
            bound = inspect.signature(fn).bind(*args, **kwargs)
            bound.apply_defaults()
            self._parameters.update(bound.arguments)
        except (TypeError, ValueError):  # no signature: builtins
            self._parameters.update(kwargs)
        if "prefect" in sys.modules and not self._called:
            self._try(self._enter)

    def _try(self, *steps: Callable[[], None]) -> None:
        for step in steps:
            try:
                step()
            except Exception:
                log.warning("some of Prefect will not work on this host, or will wait for an API", exc_info=True)

    def _stand_in(self) -> None:
        # Only here, and only if the function has Prefect imported: hosts may not even have it.
        import prefect.main  # noqa: F401 - completes the models of prefect.context
        from prefect.settings import get_current_settings

        if get_current_settings().api.url is None:  # else the user gave this host one
            prefect_stand_ins.stand_in(self._outbox)

    def _enter(self) -> None:
        from prefect.client.schemas.objects import TaskRun
        from prefect.context import TagsContext, TaskRunContext
        from prefect.results import ResultStore
        from prefect.tasks import Task

        self._called = True
        known = dict(self._run.task)
        name = known.pop("task_name", None) or "gang"
        TaskRunContext.model_construct(  # not validated: there is no API, so no client
            task=Task(fn=_nothing, name=name),
            task_run=TaskRun.model_validate(known),
            client=None,  # type: ignore[arg-type]
            parameters=self._parameters,
            result_store=ResultStore(),
        ).__enter__()
        TagsContext(current_tags=set(self._run.tags)).__enter__()
        self._enter_assets()
        self._enter_flow()

    def _enter_assets(self) -> None:
        from prefect.assets import Asset
        from prefect.context import AssetContext

        outbox = self._outbox

        class Assets(AssetContext):
            def add_asset_metadata(self, asset_key: str, metadata: dict[str, Any]) -> None:
                super().add_asset_metadata(asset_key, metadata)
                outbox.put("asset", {"key": asset_key, "metadata": metadata})

        Assets(downstream_assets={Asset(key=one) for one in self._run.assets}).__enter__()

    def _enter_flow(self) -> None:
        from prefect.client.schemas.objects import FlowRun
        from prefect.context import FlowRunContext
        from prefect.flows import Flow
        from prefect.results import ResultStore
        from prefect.runtime import deployment, flow_run, task_run

        runtime = {"task_run": task_run, "flow_run": flow_run}
        for link, url in self._run.links.items():
            module, _, name = link.partition(".")
            runtime[module].FIELDS[name] = _just(url)
        if self._run.flow is None:
            return
        known = dict(self._run.flow)
        name, version = known.pop("flow_name", None), known.pop("flow_version", None)
        has_job_variables, of_deployment = known.pop("has_job_variables", False), known.get("deployment_id")
        parameters = self._flow_parameters()
        FlowRunContext.model_construct(
            flow=Flow(fn=_nothing, name=name or "flow", version=version),
            flow_run=FlowRun.model_validate(known),
            task_runner=None,  # type: ignore[arg-type]
            client=None,  # type: ignore[arg-type]
            parameters=parameters,
            result_store=ResultStore(),
        ).__enter__()
        unknown = {}
        if parameters is None:
            unknown["parameters"] = f"prefect.runtime.flow_run.parameters: {self._why_no_parameters}"
        if has_job_variables:
            unknown["job_variables"] = "prefect.runtime.flow_run.job_variables: they may have secrets, and stay there"
        if known.get("parent_task_run_id") is not None:
            for one in ("parent_flow_run_id", "parent_deployment_id", "root_flow_run_id"):
                unknown[one] = f"prefect.runtime.flow_run.{one} of a subflow"
        for one, text in unknown.items():
            flow_run.FIELDS[one] = _refuser(text)
        deployment.FIELDS["id"] = _just(of_deployment)
        for one in ("name", "version", "parameters"):
            known_to_be_none = of_deployment is None and one != "parameters"
            deployment.FIELDS[one] = (
                _just(None) if known_to_be_none else _refuser(f"prefect.runtime.deployment.{one} was read there")
            )

    def _flow_parameters(self) -> dict[str, Any] | None:
        """None, and why, if they did not travel or cannot be rebuilt here."""
        self._why_no_parameters = self._run.why_no_flow_parameters
        if self._run.flow_parameters is None:
            return None
        try:
            found: dict[str, Any] = pickling.loads(list(self._run.flow_parameters))
        except Exception as error:  # noqa: BLE001 - the user's classes; the function need not ask for them
            self._why_no_parameters = f"they cannot be rebuilt here: {error}"
            return None
        return found


def _just(value: Any) -> Callable[[], Any]:
    return lambda: value


def _refuser(text: str) -> Callable[[], Any]:
    return lambda: prefect_stand_ins.refuse(text)


def _nothing() -> None:
    return None


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
