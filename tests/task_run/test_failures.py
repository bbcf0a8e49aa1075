"""What a failed attempt raises in the driver, by its kind and its evidence."""

from __future__ import annotations

import pytest

from prefect_tpu.core import errors
from prefect_tpu.core.evidence import HostEvidence
from prefect_tpu.core.kinds import KINDS, Kind
from prefect_tpu.core.messages import Raised, Stage
from prefect_tpu.core.report import AttemptReport
from prefect_tpu.core.stages import STAGES
from prefect_tpu.core.verdict import Verdict
from prefect_tpu.task_run.failures import as_exception

RAISED_AS_THEY_COME = {Kind.SUCCEEDED, Kind.UNPROVISIONED, Kind.CANCELLED}
"""No error is made for these."""


def ended(kind: Kind, **fields: object) -> AttemptReport:
    """An attempt of one host, which is to blame."""
    evidence = HostEvidence(0, 0, 0, "slice-0", **fields)  # type: ignore[arg-type]
    return AttemptReport(1, None, (evidence,), Verdict(kind, "a cause", "a way out", (0,)), 0.0, 0.0, 0.0)


@pytest.mark.parametrize("kind", sorted(set(Kind) - RAISED_AS_THEY_COME))
def test_an_attempt_raises_the_error_of_its_kind(kind: Kind) -> None:
    """Where the evidence says nothing closer."""
    report = ended(kind)
    error = as_exception(report, 5)
    assert isinstance(error, getattr(errors, KINDS[kind].error))
    assert isinstance(error, errors.AttemptError)
    assert error.verdict is report.verdict


@pytest.mark.parametrize("stage", sorted(STAGES))
def test_what_the_user_has_written_is_configuration(stage: Stage) -> None:
    """All other stages that no repetition mends are the host process's. A line of the function is named."""
    error = as_exception(ended(Kind.FATAL, raised=Raised(stage, "X", "x", "line 7")), None)
    assert isinstance(error, errors.ConfigurationError) == (stage in ("preload", "checkpoints", "program"))
    assert ("line 7" in str(error.__cause__)) == (stage == "program")


def test_infrastructure_is_a_lost_host_a_hang_or_a_process() -> None:
    """By the evidence."""
    busy = Raised("device", "DeviceBusyError", "x", "")
    assert type(as_exception(ended(Kind.INFRASTRUCTURE, lost="x"), None)) is errors.HostLostError
    assert type(as_exception(ended(Kind.INFRASTRUCTURE, hung=True), None)) is errors.HangError
    assert type(as_exception(ended(Kind.INFRASTRUCTURE, raised=busy), None)) is errors.HostProcessError
