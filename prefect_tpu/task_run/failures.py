"""What a failed attempt raises in the driver."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefect_tpu.core.errors import (
    AttemptError,
    ConfigurationError,
    GangTimeoutError,
    HangError,
    HostLostError,
    HostProcessError,
    RemoteTraceback,
    RetriesExhaustedError,
    SlicePreemptedError,
)
from prefect_tpu.core.evidence import HostEvidence
from prefect_tpu.core.kinds import KINDS
from prefect_tpu.core.report import AttemptReport
from prefect_tpu.core.stages import STAGES
from prefect_tpu.prefect_api import TaskRunTimeoutError
from prefect_tpu.task_run.crashes import GangCrash

if TYPE_CHECKING:
    from collections.abc import Sequence

    from prefect.client.schemas.objects import TaskRun

_ERRORS: dict[str, type[AttemptError]] = {
    one.__name__: one for one in (AttemptError, GangTimeoutError, HostLostError, HostProcessError, SlicePreemptedError)
}


class TaskTimeoutError(GangTimeoutError, TaskRunTimeoutError):
    """GangTimeoutError that Prefect's engine knows as its own kind of timeout."""


def failure_of(
    reports: Sequence[AttemptReport],
    own: BaseException | None,
    timeout_seconds: float | None,
    exhausted: str,
    task_run: TaskRun,
) -> BaseException:
    """What is raised through Prefect's engine after the last attempt of `reports`.

    Args:
        reports: of all attempts so far.
        own: what the function raised, if it has come here.
        timeout_seconds: the task's.
        exhausted: the budget that is spent, "" for none.
        task_run: whose attempts they are.
    """
    report = reports[-1]
    failure = as_exception(report, timeout_seconds) if own is None else own
    if report.crashed and isinstance(failure, Exception):
        return GangCrash(report.verdict.cause, failure, task_run)
    if not exhausted:
        return failure
    error = RetriesExhaustedError(f"{exhausted}; last: {report.verdict.cause}", tuple(reports))
    error.__cause__ = failure
    return error


def as_exception(report: AttemptReport, timeout_seconds: float | None) -> Exception:
    """The exception for a verdict whose cause is not an exception of the user's that can be shown.

    Args:
        report: of the attempt that failed.
        timeout_seconds: the task's.
    """
    verdict = report.verdict
    text = f"{verdict.cause.removesuffix('.')}. What to do: {verdict.resolution}."
    error = _ERRORS[KINDS[verdict.kind].error]
    culprits = [one for one in report.evidence if one.process_id in verdict.culprits]
    if error is GangTimeoutError:
        return TaskTimeoutError(f"Task run exceeded timeout of {timeout_seconds} second(s)", verdict)
    if error is HostLostError and any(one.hung for one in report.evidence):
        return HangError(text, verdict)
    if error is HostLostError and any(one.raised is not None for one in culprits):
        return HostProcessError(text, verdict)
    if error is not HostProcessError:
        return error(text, verdict)
    raised = culprits[0].raised
    if raised is not None and STAGES[raised.stage].configuration:
        refused = ConfigurationError(text)
        if raised.stage == "program":
            refused.__cause__ = RemoteTraceback(raised.traceback)
        return refused
    return HostProcessError(text + _details(culprits[0]), verdict)


def _details(culprit: HostEvidence) -> str:
    if culprit.raised is not None:
        raised = culprit.raised
        unpickled = raised.stage == "function" and raised.pickled is None and not (raised.crash or raised.left)
        note = f" ({culprit.raised.type_name} itself could not be sent to the driver)" if unpickled else ""
        return f"{note}\n{culprit.raised.traceback}"
    return "".join(f"\n  {line}" for line in culprit.last_stderr)
