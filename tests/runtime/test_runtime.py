"""`prefect_tpu.runtime` without a gang, and the parts of it that need none."""

from __future__ import annotations

import math
import pickle
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from prefect_tpu import runtime
from prefect_tpu.core.errors import ConfigurationError, NotInGangError
from prefect_tpu.core.messages import GangContext
from prefect_tpu.runtime import process, reporter

CONTEXT = {
    "slice_index": 1,
    "num_slices": 2,
    "host_index": 0,
    "hosts_per_slice": 2,
    "process_id": 2,
    "num_processes": 4,
    "attempt": 3,
    "run_id": "run",
    "slice_name": "slice-b",
    "checkpoint_dir": "/data",
}


@pytest.fixture
def sent() -> Iterator[list[tuple[int | None, dict[str, float]]]]:
    reports: list[tuple[int | None, dict[str, float]]] = []
    process.enter(GangContext(**CONTEXT), lambda one: reports.append((one.step, one.metrics)))
    yield reports
    process.this = None


def test_outside_a_gang_there_is_an_error_or_the_default() -> None:
    assert runtime.current(default=None) is None
    assert runtime.current(default=5) == 5
    with pytest.raises(NotInGangError, match=r"TpuMultisliceRunner.*current\(default=None\)"):
        runtime.current()
    with pytest.raises(ConfigurationError):
        runtime.report(step=1)
    with pytest.raises(ConfigurationError):
        runtime.mesh(("x",), (1,))


def test_context_has_every_field(sent: object) -> None:
    context = runtime.current()
    assert {name: getattr(context, name) for name in CONTEXT} == CONTEXT
    assert not context.draining
    assert context.deadline is None
    with pytest.raises(AttributeError):
        context.attempt = 1  # type: ignore[misc]


def test_a_context_that_is_held_learns_of_a_drain(sent: object) -> None:
    """And that it is taken back: which notices stand, and the earliest deadline, the driver knows."""
    context = runtime.current()
    assert context.draining_slices == ()
    process.tell_drain([1], None)
    assert context.draining
    assert context.draining_slices == (1,)
    assert context.deadline is None
    process.tell_drain([2, 1], 1_000.0)
    assert context.draining_slices == (1, 2)
    assert context.deadline is not None
    assert abs(context.deadline.timestamp() - time.time() - 1_000.0) < 60
    assert context.deadline.tzinfo is not None
    process.tell_drain([], None)
    assert not context.draining
    assert context.draining_slices == ()
    assert context.deadline is None


@pytest.mark.parametrize("seconds_left", [1e12, 1e18, 1e300, math.inf, math.nan])
def test_a_deadline_that_no_calendar_has_is_none(sent: object, seconds_left: float) -> None:
    """The function is told of the drain all the same."""
    context = runtime.current()
    process.tell_drain([0], seconds_left)
    assert context.draining
    assert context.deadline is None
    process.tell_drain([], None)


def test_a_resize_point_needs_jax_where_hosts_must_agree(sent: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of several host processes; where the gang cannot grow it does nothing."""
    runtime.resize_point()
    process.enter(GangContext(**CONTEXT | {"can_grow": True}), lambda *_: None)
    with pytest.raises(ConfigurationError, match="jax_distributed"):
        runtime.resize_point()


def test_one_process_leaves_by_itself() -> None:
    """It saves first; before more slices are there it goes on."""
    saved: list[str] = []
    process.enter(GangContext(**CONTEXT | {"can_grow": True, "num_processes": 1}), lambda *_: None)
    try:
        runtime.resize_point(lambda: saved.append("too early"))
        process.offer_more_slices(True)
        with pytest.raises(runtime.Resizing):
            runtime.resize_point(lambda: saved.append("in time"))
    finally:
        process.this = None
    assert saved == ["in time"]


def test_reports_are_rate_limited_and_the_newest_is_kept() -> None:
    sent: list[object] = []
    now = 0.0
    one = reporter.Reporter(lambda one: sent.append((one.step, one.metrics)), clock=lambda: now)
    for step in range(10):
        one.report(step, {"loss": step})
    assert sent == [(0, {"loss": 0.0})]
    now = reporter.REPORT_INTERVAL_SECONDS
    one.report(10, {"loss": 10})
    assert sent[1:] == [(10, {"loss": 10.0})]
    one.report(11, {"loss": 11})
    one.flush()
    one.flush()
    assert sent[2:] == [(11, {"loss": 11.0})]


def test_metric_must_be_a_number(sent: list[object]) -> None:
    with pytest.raises(ConfigurationError, match="metric 'loss' must be a number, got str"):
        runtime.report(step=1, loss="high")
    runtime.report(step=1, loss=0.5)
    assert sent == [(1, {"loss": 0.5})]


def test_importing_runtime_imports_neither_prefect_nor_ray_nor_jax() -> None:
    code = (
        "import sys; from prefect_tpu import runtime; import prefect_tpu.cluster; "
        "print([name for name in ('prefect', 'ray', 'jax', 'numpy', 'pydantic') if name in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_callbacks_learn_of_a_drain_once(sent: object) -> None:
    """Each once, off the function's thread; whoever comes late is called at once; one that fails disturbs nobody."""
    called: queue.Queue[str] = queue.Queue()

    def late() -> None:
        called.put("late")

    def fails() -> None:
        raise ValueError("as asked")

    runtime.on_drain(fails)
    runtime.on_drain(lambda: called.put(threading.current_thread().name))
    process.tell_drain([0], 1_900)
    process.tell_drain([0], 1_800)
    runtime.on_drain(late)
    assert {called.get(timeout=10), called.get(timeout=10)} == {"prefect-tpu-drain", "late"}
    process.tell_drain([], None)
    runtime.on_drain(lambda: called.put("next time"))
    assert called.empty()
    process.tell_drain([0], None)
    assert called.get(timeout=10) == "next time"
    assert called.empty()


def test_leaving_sends_what_was_reported(sent: list[tuple[int | None, dict[str, float]]]) -> None:
    """The step that was saved is not lost; what is raised passes `except Exception`."""
    runtime.report(step=1)
    runtime.report(step=2)
    with pytest.raises(runtime.Left):
        try:
            runtime.leave()
        except Exception:  # noqa: BLE001
            pytest.fail("a training loop's own handler has caught it")
    assert sent == [(1, {}), (2, {})]


def test_what_is_raised_has_its_public_name() -> None:
    """In tracebacks and messages, and where it is rebuilt."""
    for cls in (runtime.Cancelled, runtime.Left, runtime.Resizing):
        assert cls.__module__ == "prefect_tpu.runtime"
        assert type(pickle.loads(pickle.dumps(cls("x")))) is cls
