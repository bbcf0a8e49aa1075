"""Task runs whose function did on a host what ends or steers a whole process: Crashed, as in Prefect; here an error.

Prefect says Crashed for what is no Exception, and raises that where the task was called, whatever the caller asked for.
Raised here, a host's `sys.exit()` would end the flow's process.
"""

from __future__ import annotations

import concurrent.futures
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prefect.client.schemas.objects import State, TaskRun


class GangCrash(BaseException):
    """Raised through Prefect's engine and no further; its text is the message of the state.

    Attributes:
        error: what the caller gets.
        task_run: whose state the engine sets.
    """

    def __init__(self, text: str, error: Exception, task_run: TaskRun) -> None:
        super().__init__(text)
        self.error = error
        self.task_run = task_run

    @property
    def state(self) -> State[Any] | None:
        """What the engine has set, with the error in place of what went through the engine."""
        state = self.task_run.state
        if state is not None:
            state.data = self.error
        return state


def end_of_call(crash: GangCrash, *, return_state: bool) -> State[Any]:
    """What the caller of a task gets whose run has crashed.

    Raises:
        Exception: unless the caller wants the state.
    """
    state = crash.state
    if return_state and state is not None:
        return state
    raise crash.error


def end_of_future(engine: concurrent.futures.Future[Any]) -> concurrent.futures.Future[Any]:
    """A future that ends as the engine's, and with a state where that has crashed."""
    future: concurrent.futures.Future[Any] = concurrent.futures.Future()

    def end(done: concurrent.futures.Future[Any]) -> None:
        if done.cancelled():
            future.cancel()
            future.set_running_or_notify_cancel()
            return
        error = done.exception()
        if error is None:
            future.set_result(done.result())
            return
        if not isinstance(error, GangCrash):
            future.set_exception(error)
        elif (state := error.state) is not None:
            future.set_result(state)
        else:
            future.set_exception(error.error)

    engine.add_done_callback(end)
    return future
