"""What `runtime.report` does with steps and values that are not plain numbers."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Iterator

import pytest

from prefect_tpu import runtime
from prefect_tpu.core.errors import ConfigurationError
from prefect_tpu.core.messages import GangContext, Progress
from prefect_tpu.runtime import process, reporter
from tests.runtime.test_runtime import CONTEXT

WAIT_SECONDS = 20.0


@pytest.fixture
def sent() -> Iterator[queue.Queue[Progress]]:
    """What arrives at the agent."""
    reports: queue.Queue[Progress] = queue.Queue()
    process.enter(GangContext(**CONTEXT), reports.put)
    yield reports
    process.this = None


class Scalar:
    """As a JAX scalar: its value is there when `ready` is set, and gone once it is `donated`."""

    def __init__(self, value: float, *, ready: bool = True) -> None:
        self.value = value
        self.ready = threading.Event()
        self.donated = False
        self.asked_by: list[str] = []
        if ready:
            self.ready.set()

    def __float__(self) -> float:
        self.asked_by.append(threading.current_thread().name)
        if not self.ready.wait(WAIT_SECONDS):
            raise TimeoutError
        if self.donated:
            raise RuntimeError("Array has been deleted")
        return float(self.value)

    def __int__(self) -> int:
        return int(self.__float__())


def test_a_step_is_taken_when_it_is_reported(sent: queue.Queue[Progress]) -> None:
    """Its array is donated right after, as every training step does with its state."""
    runtime.report(step=1)
    step = Scalar(2)
    runtime.report(step=step, total_steps=Scalar(9))
    step.donated = True
    assert process.here().reporter.flush() is None
    seen = [sent.get(timeout=WAIT_SECONDS), sent.get(timeout=WAIT_SECONDS)]
    assert [(one.step, one.total_steps) for one in seen] == [(1, None), (2, 9)]


@pytest.mark.parametrize("bad", ["7", 2**63, float("nan"), float("inf"), [1], object(), 1j])
def test_a_step_that_is_none_is_refused_where_it_is_reported(sent: queue.Queue[Progress], bad: object) -> None:
    with pytest.raises(ConfigurationError, match=r"step of runtime\.report must be a whole number"):
        runtime.report(step=bad)
    with pytest.raises(ConfigurationError, match=r"total_steps of runtime\.report must be a whole number"):
        runtime.report(step=1, total_steps=bad)
    assert sent.empty()


def test_nobody_waits_for_a_value(sent: queue.Queue[Progress]) -> None:
    """Neither the function nor who flushes; the step is known meanwhile, the value follows with its own step."""
    slow = Scalar(0.25, ready=False)
    runtime.report(step=1, loss=slow)
    gang = process.here().reporter
    gang._clock = lambda: time.monotonic() + reporter.REPORT_INTERVAL_SECONDS  # type: ignore[method-assign]
    gang.flush()
    first = sent.get(timeout=WAIT_SECONDS)
    assert (first.step, first.metrics) == (1, {})
    runtime.report(step=2, rate=0.5, loss=Scalar(0.125))
    gang.flush()
    second = sent.get(timeout=WAIT_SECONDS)
    assert (second.step, second.metrics) == (2, {"rate": 0.5})
    slow.ready.set()
    late = [sent.get(timeout=WAIT_SECONDS), sent.get(timeout=WAIT_SECONDS)]
    assert [(one.step, one.metrics) for one in late] == [(1, {"loss": 0.25}), (2, {"rate": 0.5, "loss": 0.125})]
    assert set(slow.asked_by) == {"prefect-tpu-reports"}


def test_the_last_values_are_not_lost(sent: queue.Queue[Progress]) -> None:
    """A function that ends waits a moment for them; without them its last step arrives all the same."""
    gang = process.here().reporter
    runtime.report(step=1, loss=Scalar(0.5))
    gang.flush(WAIT_SECONDS)
    runtime.report(step=2, loss=Scalar(0.25))
    gang.flush(WAIT_SECONDS)
    assert [(sent.get(timeout=5).metrics) for _ in range(2)] == [{"loss": 0.5}, {"loss": 0.25}]
    stuck = Scalar(0.125, ready=False)
    runtime.report(step=3, loss=stuck)
    gang.flush(0.01)
    last = sent.get(timeout=WAIT_SECONDS)
    assert (last.step, last.metrics) == (3, {})
    stuck.ready.set()
    assert sent.get(timeout=WAIT_SECONDS).metrics == {"loss": 0.125}


@pytest.mark.parametrize("error", [RuntimeError("Array has been deleted"), SystemExit(3), KeyboardInterrupt()])
def test_a_value_that_raises_is_left_out_with_a_word(
    sent: queue.Queue[Progress], caplog: pytest.LogCaptureFixture, error: BaseException
) -> None:
    """Once for each name; what comes after it arrives."""

    class Raises:
        def __float__(self) -> float:
            raise error

    gang = process.here().reporter
    with caplog.at_level(logging.WARNING, "prefect_tpu"):
        for step in range(3):
            runtime.report(step=step, loss=Raises(), rate=0.5)
            gang.flush(WAIT_SECONDS)
    assert [(one.step, one.metrics) for one in list(sent.queue)] == [(step, {"rate": 0.5}) for step in range(3)]
    (text,) = [one.getMessage() for one in caplog.records]
    assert text.startswith(f"metric 'loss' of step 0 has no value and is left out: {type(error).__name__}")


def test_plain_numbers_need_no_thread(sent: queue.Queue[Progress]) -> None:
    """They arrive while the function is still in `report`: it may end the process right after."""
    import numpy

    runtime.report(step=numpy.int32(1), loss=numpy.float32(0.5), accuracy=1, done=True)
    assert sent.get_nowait().metrics == {"loss": 0.5, "accuracy": 1.0, "done": 1.0}


def test_steps_that_begin_anew_are_told(sent: queue.Queue[Progress]) -> None:
    """The first and the highest of this process, and whether a step went back; the same step again does not."""
    gang = process.here().reporter
    told = []
    for step in (5, 6, 6, 0, 3):
        runtime.report(step=step)
        gang.flush()
        one = list(sent.queue)[-1]
        told.append((one.first_step, one.highest_step, one.restarts))
    assert told == [(5, 5, False), (5, 6, False), (5, 6, False), (5, 6, True), (5, 6, True)]
