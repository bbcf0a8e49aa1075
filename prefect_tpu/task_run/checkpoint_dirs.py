"""Which directory a task run keeps its checkpoints in: by what is trained, not by when.

The name is made of the root flow run, the subflow calls that lead to the task, and the call of the task; a call by its
name and parameters, with a number among equal ones. So it is the same when a flow run is retried, in any process.
"""

from __future__ import annotations

import inspect
import itertools
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from prefect.client.schemas.objects import State
from prefect.context import FlowRunContext
from prefect.futures import PrefectFuture
from prefect.utilities.annotations import BaseAnnotation

from prefect_tpu import prefect_api
from prefect_tpu.core.checkpoints import Checkpoints, by_parameters, check_key, origin_of, record_of, with_dashes
from prefect_tpu.core.errors import ConfigurationError
from prefect_tpu.core.stable_hash import NotThereYetError, UnhashableError, stable_hash

if TYPE_CHECKING:
    from prefect.context import TaskRunContext

    from prefect_tpu.observability.logs import Logger

CheckpointKey = str | Callable[["TaskRunContext", dict[str, Any]], str]
"""The name of a directory below `checkpoint_root`, or what says it, as Prefect's `cache_key_fn` does."""

LOOK_SECONDS = 0.1
"""How often it is looked whether a task run that is being ended has left its directory."""


class NamedFunction(Protocol):
    """A gang task, as far as this goes."""

    name: str
    body: Callable[..., Any]


_LATER = (PrefectFuture, State, BaseAnnotation)
_lock = threading.Lock()
_used: dict[str, CheckpointDirectory] = {}


def check_checkpoint_key(key: Any) -> None:
    """Refuse what can be no key, where it is given.

    Raises:
        ValueError: what is allowed.
    """
    if isinstance(key, str):
        check_key(key)
    elif not callable(key) or inspect.iscoroutinefunction(key):
        raise ValueError("must be a string, or a function of (context, parameters) that returns one and is not async")


@dataclass(frozen=True, slots=True)
class _Call:
    """What a task was called with."""

    hashes: dict[str, str | None]
    unhashable: str = ""

    @classmethod
    def of(cls, parameters: Mapping[str, Any], *, resolved: bool) -> _Call | None:
        """None while a parameter is still to come."""
        hashes: dict[str, str | None] = {}
        unhashable = ""
        for name, value in parameters.items():
            try:
                hashes[name] = stable_hash(value, () if resolved else _LATER)
            except NotThereYetError:
                return None
            except UnhashableError as error:
                hashes[name] = None
                unhashable = unhashable or f"{name!r} ({error})"
        return cls(hashes, unhashable)


class CheckpointDirectory:
    """Of one task run. Made where the task is called, so that equal calls are counted in their order."""

    def __init__(
        self,
        task: NamedFunction,
        parameters: Mapping[str, Any],
        key: CheckpointKey | None,
        cancel: Callable[[], None],
    ) -> None:
        """`key`: the task's own. `cancel`: ends the task run."""
        self.task_name = task.name
        self._function = origin_of(task.body)
        self.key = key
        self.cancel = cancel
        self._flow = FlowRunContext.get()
        if self._flow is not None and self._flow.flow_run is None:
            self._flow = None
        self.flows = _chain(self._flow)
        self._base = by_parameters(self.task_name, self._function, {})
        self._number = _count(self._flow, self._base)
        self._path = "" if self._flow is None else "/".join(_path(self.flows))
        self._warnings: list[str] = []
        self._called = None if key is not None else _Call.of(parameters, resolved=False)
        self._name = "" if self._called is None else self._name_by(self._called)
        self.who = ""
        self.directory = ""

    def place(
        self,
        context: TaskRunContext,
        root: str,
        key: CheckpointKey | None,
        say: Logger,
        *,
        look_timeout_seconds: float,
    ) -> Checkpoints:
        """Where it is, now that the values of all parameters are there.

        Args:
            context: of the task run.
            root: absolute, or a URL.
            key: the runner's, where the task has none.
            say: told where it is.
            look_timeout_seconds: see Checkpoints.

        Raises:
            ConfigurationError: the key cannot be, or its function fails.
        """
        run, flow_run = context.task_run, None if self._flow is None else self._flow.flow_run
        called = self._called = self._called or _Call.of(context.parameters, resolved=True) or _Call({})
        given = self.key if self.key is not None else key
        if given is not None:
            name = _ask(given, context, self.task_name)
        elif run.flow_run_id is None:
            name = str(run.id)
        else:
            self._path = self._path or str(run.flow_run_id)
            name = f"{self._path}/{self._name or self._name_by(called)}"
            for one in self._warnings:
                say.warning("%s", one)
        self.directory = f"{root}/{name}"
        self.who = f"task run {run.name!r}" + ("" if flow_run is None else f" of flow run {flow_run.name!r}")
        say.info("checkpoint_dir is %s; checkpoint_key=%r goes on from it in another flow run", self.directory, name)
        old = given is None and flow_run is not None
        parts = [] if given is None else name.split("/")[:-1]
        above = (f"{root}/{'/'.join([*parts[:at], record_of(part)])}" for at, part in enumerate(parts))
        return Checkpoints(
            directory=self.directory,
            key=name,
            task=self.task_name,
            function=self._function,
            task_run=run.name,
            flow_run="" if flow_run is None else flow_run.name,
            flow_run_id="" if flow_run is None else str(flow_run.id),
            parameters=called.hashes,
            old=with_dashes(self.task_name) if old else "",
            old_parent=f"{root}/{flow_run.id}" if old and flow_run is not None else "",
            above=tuple(above),
            look_timeout_seconds=look_timeout_seconds,
        )

    def _name_by(self, called: _Call) -> str:
        """Of the call among the calls of its flow run."""
        by_count = f"{self._base}-{self._number}"
        if called.unhashable:
            text = (
                f"checkpoint_dir of task {self.task_name!r} is named by the order of calls, as its parameter "
                f"{called.unhashable} has no hash: a flow run that is retried has to call it in the same order. Say "
                "what is trained by checkpoint_key= on the task"
            )
            if _count(self._flow, f"warned {self._base}") == 0:
                self._warnings.append(text)
            return by_count
        if not called.hashes:
            return by_count
        name = by_parameters(self.task_name, self._function, {one: text or "" for one, text in called.hashes.items()})
        if self._flow is not None and self._flow.detached:
            self._warnings.append(
                f"task {self.task_name!r} is called in another process than its flow: equal calls in other processes "
                "of this flow run have the same checkpoint_dir. Say what is trained by checkpoint_key= on the task"
            )
        return f"{name}-{_count(self._flow, name)}"

    def take(self, stopped: Callable[[], bool], wait_seconds: float) -> None:
        """Have the directory for this task run alone, as far as this process goes; again and again is once.

        A task run of an earlier run of the same flow run, which has been retried since, is ended first.

        Args:
            stopped: whether to give up waiting for that.
            wait_seconds: how long to wait for that, at most.

        Raises:
            ConfigurationError: another task run has it.
        """
        deadline = time.monotonic() + wait_seconds
        while True:
            with _lock:
                other = next((user for place, user in _used.items() if _overlap(place, self.directory)), self)
                if other is self:
                    _used[self.directory] = self
                    return
            if not self._replaces(other) or stopped() or time.monotonic() >= deadline:
                raise ConfigurationError(
                    f"{self.who} and {other.who} would use checkpoint_dir {self.directory} at the same time"
                    f"{'' if other.directory == self.directory else ', one inside of the other'}; give "
                    "each a checkpoint_key= of its own, or let one wait for the other (wait_for=)"
                )
            other.cancel()
            time.sleep(LOOK_SECONDS)

    def _replaces(self, other: CheckpointDirectory) -> bool:
        """Whether it belongs to an earlier run of the same flow run: each run has a context of its own."""
        runs = {one.flow_run.id: one for one in self.flows if one.flow_run is not None}
        return any(one.flow_run is not None and runs.get(one.flow_run.id, one) is not one for one in other.flows)

    def leave(self) -> None:
        """The task run is over."""
        with _lock:
            if _used.get(self.directory) is self:
                del _used[self.directory]


def _overlap(one: str, other: str) -> bool:
    """Whether two directories are the same, or one is inside of the other."""
    return f"{one}/".startswith(f"{other}/") or f"{other}/".startswith(f"{one}/")


def _ask(key: CheckpointKey, context: TaskRunContext, task_name: str) -> str:
    if isinstance(key, str):
        return key
    what = f"the checkpoint_key function of task {task_name!r}"
    try:
        found = key(context, dict(context.parameters))
    except Exception as error:
        raise ConfigurationError(f"{what} raised {type(error).__name__}: {error}") from error
    try:
        return check_key(found)
    except ValueError as error:
        raise ConfigurationError(f"{what} returned {found!r:.200}: {error}") from None


def _chain(flow: FlowRunContext | None) -> list[FlowRunContext]:
    """From the root flow run of this process down to `flow`."""
    found: list[FlowRunContext] = []
    while flow is not None and flow.flow_run is not None:
        found.insert(0, flow)
        flow = prefect_api.parent_of(flow)
    return found


def _path(flows: list[FlowRunContext]) -> list[str]:
    """The root flow run, then every call of a subflow by its name, its parameters, and its number among equals."""
    assert flows[0].flow_run is not None
    found = [str(flows[0].flow_run.id)]
    for parent, child in itertools.pairwise(flows):
        assert child.flow_run is not None
        place = f"prefect_tpu/flow/{child.flow_run.id}"  # retried by itself, a subflow keeps its run
        keys = prefect_api.dynamic_keys(parent)
        if place not in keys:
            name = child.flow.name if child.flow is not None else "flow"
            called = _Call.of(child.parameters or {}, resolved=True) or _Call({})
            hashes: dict[str, str] = {}
            if not called.unhashable:
                hashes = {one: text or "" for one, text in called.hashes.items()}
            base = by_parameters(name, "" if child.flow is None else origin_of(child.flow.fn), hashes)
            keys.setdefault(place, f"{base}-{_count(parent, f'flow {base}')}")
        found.append(str(keys[place]))
    return found


def _count(flow: FlowRunContext | None, what: str) -> int:
    """How often the flow run has asked for this before; anew with each retry of the flow run, as Prefect's own keys."""
    if flow is None:
        return 0
    key, keys = f"prefect_tpu/{what}", prefect_api.dynamic_keys(flow)
    with _lock:
        number = keys[key] = int(keys.get(key, -1)) + 1
    return number
