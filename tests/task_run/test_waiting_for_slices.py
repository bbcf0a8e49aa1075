"""What users see of the wait for slices: sweeps over more elements than slices, sizes that cannot be there."""

from __future__ import annotations

import logging
import time
from typing import Any

import pytest
from prefect import flow
from prefect.states import State

from prefect_tpu import ConfigurationError, LocalFleet, TpuMultisliceRunner, runtime, task

Runner = TpuMultisliceRunner[Any]


def test_a_sweep_ends_however_short_the_lease_timeout_is(fleet: LocalFleet) -> None:
    """Six gangs on two slices, more than lease_timeout_seconds for all: only siblings are ahead, so all complete."""
    short: Runner = TpuMultisliceRunner(pool=fleet, jax_distributed=False, lease_timeout_seconds=3, returns="process0")

    @task(task_runner=short)
    def train(number: int) -> int:
        time.sleep(1.5)
        return number

    @flow
    def sweep() -> list[State[int]]:
        futures = train.map(range(6))
        futures.wait()
        return [one.state for one in futures]

    states: Any = sweep(return_state=True).result(raise_on_failure=False)
    assert [state.type.value for state in states] == ["COMPLETED"] * 6


def test_sizes_that_the_fleet_never_has_are_not_waited_for(fleet: LocalFleet, caplog: pytest.LogCaptureFixture) -> None:
    """It starts with the most that there are, at once, and says nothing of a wait."""
    sizes: Runner = TpuMultisliceRunner(
        pool=fleet, num_slices=[1, 2, 4], jax_distributed=False, lease_timeout_seconds=5, returns="process0"
    )
    with caplog.at_level(logging.INFO):
        assert task(task_runner=sizes)(lambda: runtime.current().num_slices)() == 2
    assert "waiting for 4" not in caplog.text


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"num_slices": 9}, r"num_slices=9.*has 2 slices.*LocalFleet\(slices=9\)"),
        ({"num_slices": [3, 4]}, r"num_slices=\[3, 4\].*has 2 slices.*LocalFleet\(slices=3\)"),
        ({"topology": "2x2x1"}, r"v4 2x2x1.*v4 2x2x2.*TpuMultisliceRunner\(topology='2x2x1'\)"),
    ],
)
def test_a_gang_that_never_fits_its_local_fleet_is_refused_at_once(
    fleet: LocalFleet, options: dict[str, Any], says: str
) -> None:
    """Before anything is started or waited for, once, whatever retries say; with the number that there is."""
    wrong: Runner = TpuMultisliceRunner(pool=fleet, lease_timeout_seconds=2, **options)
    runs: list[int] = []
    never = task(task_runner=wrong, retries=3, on_running=[lambda *_: runs.append(1)])(lambda: 1)
    with pytest.raises(ConfigurationError, match=says):
        never()
    assert len(runs) == 1
