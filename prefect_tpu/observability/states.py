"""Entries in a task run's history that Prefect's engine does not make itself. The only place that emits them."""

from __future__ import annotations

import logging
import threading
from contextvars import copy_context
from typing import TYPE_CHECKING, Any

from prefect.client.schemas.objects import State, StateType
from prefect.events import emit_event

from prefect_tpu import prefect_api
from prefect_tpu.core.text import clean, cut

if TYPE_CHECKING:
    from prefect.client.schemas.objects import TaskRun

log = logging.getLogger("prefect_tpu.states")

MAX_MESSAGE_CHARS = 2_000

_complained = False


def emit(task_run: TaskRun, name: str, message: str) -> None:
    """Add a state to the history of a task run that is about to be retried; best effort, never raises.

    Prefect has no public call for it; without its internal one an event of the same name has the message.

    Args:
        task_run: whose history it is; it is not changed.
        name: of the state, as the kind of end has it.
        message: what a person reads beside it.
    """
    global _complained
    message = cut(message, limit=MAX_MESSAGE_CHARS)
    try:
        _emit_state(task_run, name, message)
    except Exception as error:  # noqa: BLE001 - observability must never fail a run
        log.log(logging.DEBUG if _complained else logging.WARNING, "no state %r in Prefect's history: %r", name, error)
        _complained = True
        _emit_event(task_run, name, message)


def _emit_state(task_run: TaskRun, name: str, message: str) -> None:
    state: State[None] = State(type=StateType.SCHEDULED, name=name, message=message)
    state.state_details.task_run_id = task_run.id
    state.state_details.flow_run_id = task_run.flow_run_id
    copy = task_run.model_copy(
        update={"state": state, "state_id": state.id, "state_type": state.type, "state_name": state.name}
    )
    prefect_api.emit_state_change(copy, task_run.state, state)


def emit_transition(task_run: TaskRun, before: State[Any] | None, after: State[Any]) -> None:
    """Tell Prefect of a task run that no engine looks after; best effort, never raises."""
    global _complained
    try:
        after.state_details.task_run_id = task_run.id
        after.state_details.flow_run_id = task_run.flow_run_id
        if after.message:
            after.message = cut(after.message, limit=MAX_MESSAGE_CHARS)
        prefect_api.emit_state_change(task_run, before, after)
    except Exception as error:  # noqa: BLE001 - observability must never fail a run
        log.log(logging.DEBUG if _complained else logging.WARNING, "no bar on Prefect's timeline: %r", error)
        _complained = True


def mend(task_run: TaskRun) -> bool:
    """Tell Prefect the last state of a task run, if its engine could not, as the message is no clean text.

    The message has the text of the user's own exception, which stays as it was raised. Prefect's events refuse it, and
    its server would show the task run as Running for ever.

    Returns:
        Whether that state is its last.
    """
    state = task_run.state
    if state is None or not state.is_final():
        return False
    if state.message and clean(state.message) != state.message:
        state.message = clean(state.message)
        emit_transition(task_run, None, state)
    return True


def flush(timeout_seconds: float) -> None:
    """Wait until Prefect has been told the states of task runs; for a process that is about to be ended.

    Prefect sends them from a thread of its own, which does not live to tell the last ones where a signal ends it.
    """

    def wait() -> None:
        try:
            prefect_api.wait_for_events()
        except Exception as error:  # noqa: BLE001 - observability must never fail a run
            log.debug("cannot wait for Prefect's events: %r", error)

    thread = threading.Thread(target=copy_context().run, args=(wait,), name="prefect-tpu-flush", daemon=True)
    thread.start()
    thread.join(timeout_seconds)


def _emit_event(task_run: TaskRun, name: str, message: str) -> None:
    try:
        emit_event(
            event=f"prefect-tpu.task-run.{name}",
            resource={"prefect.resource.id": f"prefect.task-run.{task_run.id}", "prefect.resource.name": task_run.name},
            payload={"message": message},
        )
    except Exception as error:  # noqa: BLE001 - as above
        log.debug("no event either: %r", error)
