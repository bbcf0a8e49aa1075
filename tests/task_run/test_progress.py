"""What counts as progress: for the crash-loop guard, for waits, for hangs."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from prefect_tpu.core.evidence import HostEvidence
from prefect_tpu.core.gang import Host, Member
from prefect_tpu.core.kinds import Kind
from prefect_tpu.core.messages import Progress
from prefect_tpu.core.report import AttemptReport
from prefect_tpu.core.retry import Limits
from prefect_tpu.core.verdict import Verdict
from prefect_tpu.gang.host_state import HostState
from prefect_tpu.options.tuning import Tuning
from prefect_tpu.task_run.retries import Retries


def preempted(number: int, step: int | None, found: bool | None) -> AttemptReport:
    evidence = HostEvidence(0, 0, 0, "slice-0", step=step)
    return AttemptReport(
        number, None, (evidence,), Verdict(Kind.PREEMPTED, "as asked"), 0, 0, 1, found_checkpoint=found
    )


@pytest.mark.parametrize(
    ("steps", "found", "ends_after"),
    [
        ([10, 10, 10, 10, 10, 10], [False] * 6, 3),
        ([10, 11, 12, 13, 14, 15], [False] * 6, None),
        ([39, 39, 39, 39, 39, 39], [False, True, True, True, True, True], None),  # epochs, a checkpoint after each
        ([39, 39, 39, 39, 39, 39], [False, True, False, False, False, False], 4),
        ([None, None, None, None, None, None], [None, True, True, True, True, True], None),  # reports nothing
        ([None, None, None, None, None, None], [None] * 6, 3),
    ],
)
def test_a_new_highest_step_or_a_new_checkpoint_is_progress(
    steps: list[int | None], found: list[bool | None], ends_after: int | None
) -> None:
    """Three preemptions in a row without it end the run."""
    task: Any = SimpleNamespace(
        name="train", retries=0, retry_delay_seconds=None, retry_jitter_factor=None, retry_condition_fn=None,
        timeout_seconds=None,
    )  # fmt: skip
    retries = Retries(task, lambda: Limits(max_preemptions_without_progress=3), Tuning)
    ended = None
    for number, (step, one) in enumerate(zip(steps, found, strict=True), 1):
        retries.judge(preempted(number, step, one))
        if retries.exhausted:
            ended = number
            break
    assert ended == ends_after


def test_any_report_is_a_sign_of_life() -> None:
    """The same step, a lower one, none at all; the highest is what the host has got to."""
    host = HostState(Member(0, 0, 0, "slice-0", Host("node", 0, "127.0.0.1", 4)), None)
    for now, (step, highest) in enumerate([(0, 0), (39, 39), (39, 39), (0, 39), (None, 39), (12, 39)]):
        host.progress(Progress(step, {}, None, 0, highest, now > 2), float(now))
        assert host.reported_at == now
    assert (host.step, host.first_step, host.evidence().restarts) == (39, 0, True)
