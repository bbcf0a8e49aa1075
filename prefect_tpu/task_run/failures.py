"""What a failed attempt raises in the driver."""

from __future__ import annotations

from prefect_tpu.core.errors import (
    AttemptError,
    ConfigurationError,
    GangTimeoutError,
    HangError,
    HostLostError,
    HostProcessError,
    SlicePreemptedError,
)
from prefect_tpu.core.evidence import HostEvidence
from prefect_tpu.core.kinds import KINDS
from prefect_tpu.core.report import AttemptReport
from prefect_tpu.core.stages import STAGES
from prefect_tpu.prefect_api import TaskRunTimeoutError

_ERRORS: dict[str, type[AttemptError]] = {
    one.__name__: one for one in (AttemptError, GangTimeoutError, HostLostError, HostProcessError, SlicePreemptedError)
}


class TaskTimeoutError(GangTimeoutError, TaskRunTimeoutError):
    """GangTimeoutError that Prefect's engine knows as its own kind of timeout."""


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
        return ConfigurationError(text)
    return HostProcessError(text + _details(culprits[0]), verdict)


def _details(culprit: HostEvidence) -> str:
    if culprit.raised is not None:
        unpickled = culprit.raised.stage == "function" and culprit.raised.pickled is None
        note = f" ({culprit.raised.type_name} itself could not be sent to the driver)" if unpickled else ""
        return f"{note}\n{culprit.raised.traceback}"
    return "".join(f"\n  {line}" for line in culprit.last_stderr)
