"""On a host there is no Prefect API. What stands in its place: some goes to the driver, the rest is refused at once.

| what | here |
| --- | --- |
| `emit_event`, `create_*_artifact`, `update_progress_artifact`, metadata of assets | handed to the driver |
| tasks, flows, `concurrency`, `rate_limit`, `pause_flow_run`, every other use of the API | ConfigurationError |

Every name of Prefect is looked up here once, when the function has Prefect imported; nothing of Prefect waits, starts
a thread or a server for it. A host that the user has given a PREFECT_API_URL has Prefect's own.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable
from typing import Any, NoReturn
from uuid import UUID, uuid4

from prefect_tpu.core.errors import ConfigurationError
from prefect_tpu.core.messages import Carried
from prefect_tpu.core.prefect_run import PrefectRun
from prefect_tpu.core.rate import RateLimit
from prefect_tpu.core.text import clean_all

log = logging.getLogger("prefect_tpu")

REFUSED_TASK_METHODS = ("__call__", "submit", "map", "apply_async", "delay", "serve", "aserve")
REFUSED_FLOW_METHODS = ("__call__", "serve", "aserve", "deploy", "adeploy")
REFUSED_FUNCTIONS = (
    "pause_flow_run", "apause_flow_run", "suspend_flow_run", "asuspend_flow_run", "resume_flow_run", "aresume_flow_run",
)  # fmt: skip
MAX_ARTIFACTS = 1_000
"""Whose newest version is remembered, so that `update_progress_artifact` changes the rest of nothing."""

_WAY_OUT = (
    "Hosts have no Prefect API: do this in the flow, before or after the gang, and pass values as parameters and "
    "results. get_run_logger, prefect.runtime, emit_event and create_*_artifact work here."
)


def refuse(what: str) -> NoReturn:
    """Say what cannot be done on a host, and the way out."""
    raise ConfigurationError(f"Prefect's API was needed on a host of a gang: {what}. {_WAY_OUT}")


class Outbox:
    """What goes to the driver. Best effort: never raises, never waits; what is dropped is said once."""

    def __init__(self, send: Callable[[Carried], None], run: PrefectRun) -> None:
        """`run` has the limits."""
        self._send = send
        self._rate = RateLimit(run.items_per_second, run.burst_items)
        self._run = run
        self._complained: set[str] = set()

    def put(self, kind: Any, body: dict[str, Any]) -> None:
        """One event, artifact or metadata of an asset."""
        try:
            text = json.dumps(clean_all(body))
        except (TypeError, ValueError) as error:
            self._drop("json", f"{kind} is no JSON ({error})")
            return
        if len(text) > self._run.item_bytes:
            setting = f"PREFECT_INTEGRATIONS_TPU_HOST_PREFECT_ITEM_BYTES={self._run.item_bytes:g}"
            self._drop("bytes", f"{kind} of {len(text)} bytes is bigger than {setting}")
        elif not self._rate.take(time.monotonic()):
            setting = f"PREFECT_INTEGRATIONS_TPU_HOST_PREFECT_ITEMS_PER_SECOND={self._run.items_per_second:g}"
            self._drop(
                "rate", f"{kind}: more of them than {setting} lets through. Emit fewer, on one host, or raise it"
            )
        else:
            self._send(Carried(kind, text))

    def _drop(self, why: str, text: str) -> None:
        if why not in self._complained:
            self._complained.add(why)
            log.warning("dropped, and so will be all others like it: %s", text)


class Artifacts:
    """Artifacts that this process has made; Prefect's ids of them are known in the driver alone."""

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox
        self._made: dict[UUID, dict[str, Any]] = {}

    def create(self, artifact: Any) -> Any:
        """In the place of a client's `create_artifact`; what it returns has an id that holds in this process."""
        from prefect.client.schemas.objects import Artifact

        fields = artifact.model_dump(mode="json", include={"key", "type", "description", "data"})
        number = uuid4()
        self._made[number] = fields
        if len(self._made) > MAX_ARTIFACTS:
            del self._made[next(iter(self._made))]
        self._outbox.put("artifact", fields | {"number": str(number), "made_here": True})
        return Artifact(id=number, **fields)

    def update(self, artifact_id: UUID, artifact: Any) -> None:
        """In the place of a client's `update_artifact`; of one that the flow has made, too."""
        changes = artifact.model_dump(mode="json", exclude_unset=True, include={"description", "data"})
        known = self._made.get(artifact_id)
        if known is not None:
            known.update(changes)
        body = {"number": str(artifact_id), "made_here": known is not None, **(changes if known is None else known)}
        self._outbox.put("artifact", body)


class Client:
    """In the place of Prefect's clients."""

    def __init__(self, artifacts: Artifacts) -> None:
        self._artifacts = artifacts

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def create_artifact(self, artifact: Any) -> Any:
        return self._artifacts.create(artifact)

    def update_artifact(self, artifact_id: UUID, artifact: Any) -> Any:
        return self._artifacts.update(artifact_id, artifact)

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):
            raise AttributeError(name)
        refuse(f"its client was asked for {name!r}")


class AsyncClient(Client):
    """The same for coroutines, in any event loop."""

    @property
    def _loop(self) -> asyncio.AbstractEventLoop | None:
        try:
            return asyncio.get_running_loop()
        except RuntimeError:
            return None

    loop = _loop

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        return None

    async def create_artifact(self, artifact: Any) -> Any:
        return self._artifacts.create(artifact)

    async def update_artifact(self, artifact_id: UUID, artifact: Any) -> None:
        self._artifacts.update(artifact_id, artifact)


class _WhateverSettings:
    """Equal to the settings that a client is asked for with."""

    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = None  # type: ignore[assignment]


class _ClientContext:
    """In the place of Prefect's client contexts, in every thread."""

    _httpx_settings = _WhateverSettings()

    def __init__(self, client: Client) -> None:
        self.client = client


class _Events:
    """In the place of Prefect's worker that sends events."""

    def __init__(self, outbox: Outbox, client_type: type) -> None:
        self._outbox = outbox
        self.client_type = client_type

    def send(self, event: Any) -> None:
        self._outbox.put("event", event.model_dump(mode="json", exclude_unset=False))

    def wait_until_empty(self) -> None:
        return None

    def drain(self, *_: Any, **__: Any) -> None:
        return None


def stand_in(outbox: Outbox) -> None:
    """Take the places of Prefect's API in this process. Prefect is imported."""
    import prefect.main as public
    from prefect import flow_runs
    from prefect.concurrency import services
    from prefect.concurrency.v1 import services as services_v1
    from prefect.context import AsyncClientContext, SyncClientContext
    from prefect.events.clients import PrefectEventsClient
    from prefect.events.worker import EventsWorker
    from prefect.flows import Flow
    from prefect.tasks import Task

    artifacts = Artifacts(outbox)
    for context, client in ((SyncClientContext, Client(artifacts)), (AsyncClientContext, AsyncClient(artifacts))):
        context.get = _always(_ClientContext(client))  # type: ignore[method-assign]
    EventsWorker.instance = _always(_Events(outbox, PrefectEventsClient))  # type: ignore[method-assign]
    for service in (
        services.ConcurrencySlotAcquisitionService,
        services.ConcurrencySlotAcquisitionWithLeaseService,
        services_v1.ConcurrencySlotAcquisitionService,
    ):
        service.instance = _refused("concurrency or rate_limit was entered there")  # type: ignore[method-assign]
    for name in REFUSED_TASK_METHODS:
        text = f"{name.strip('_')} of a task. Its plain function can be called on a host: `.fn(...)`"
        setattr(Task, name, _refused_method(text))
    for name in REFUSED_FLOW_METHODS:
        setattr(Flow, name, _refused_method(f"{name.strip('_')} of a flow. Its plain function is `.fn(...)`"))
    for name in REFUSED_FUNCTIONS:
        for module in (flow_runs, public):
            if hasattr(module, name):
                setattr(module, name, _refused(f"{name} was called there"))


def _always(value: Any) -> Callable[..., Any]:
    return lambda *_, **__: value


def _refused(what: str) -> Callable[..., NoReturn]:
    def call(*_: Any, **__: Any) -> NoReturn:
        refuse(what)

    return call


def _refused_method(what: str) -> Callable[..., NoReturn]:
    def call(self: Any, *_: Any, **__: Any) -> NoReturn:
        refuse(f"{self.name!r}, {what}")

    return call
