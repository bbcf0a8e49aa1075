"""prefect_tpu's recovery. Usage: recovery_gang.py REPEATS CASES."""

from __future__ import annotations

import logging
import sys
import tempfile
import time
from typing import Any

from collective import add_up
from losses import Loss, enter, fail, first_attempt, victim
from messages import SETTLE_SECONDS, Messages
from prefect import flow
from prefect.testing.utilities import prefect_test_harness

import prefect_tpu
from prefect_tpu import LocalFleet, TpuMultisliceRunner, runtime

SERVER_START_SECONDS = 90
FLEET = LocalFleet(slices=3, accelerator_type="v4", topology="2x2x2")
VERDICT_WORDS = "attempt 1 INFRASTRUCTURE"
"""In the line that tells the verdict of the lost attempt."""
FAILING_PROCESS = 1


@prefect_tpu.task(task_runner=TpuMultisliceRunner(pool=FLEET, num_slices=2), retries=1)
def work(directory: str, user_error: bool) -> None:
    """On every host; JAX has been initialised."""
    process_id = runtime.current().process_id
    add_up(tempfile.mkdtemp(dir=directory), process_id, {})
    if user_error and first_attempt(directory) and process_id == FAILING_PROCESS:
        time.sleep(1)
        fail(directory)
    enter(directory, process_id)


class Verdicts(logging.Handler):
    """When the driver said what had become of the attempt."""

    at = 0.0

    def emit(self, record: logging.LogRecord) -> None:
        """Note the time of the first such line."""
        if VERDICT_WORDS in record.getMessage() and not self.at:
            self.at = record.created


@flow
def lose(case: str) -> None:
    """One run with one loss."""
    verdicts = Verdicts()
    logger = logging.getLogger("prefect.task_runs")
    logger.addHandler(verdicts)
    gone: list[str] = []

    def kill(entered: list[dict[str, Any]]) -> None:
        gone.append(victim(entered))
        FLEET.preempt(gone[0])

    try:
        with tempfile.TemporaryDirectory() as directory:
            loss = Loss(directory, kill if case == "host_killed" else None)
            work(directory, case == "user_error")
            messages.measured(case, "prefect_tpu", loss.seconds)
            if case == "host_killed":
                messages.measured("verdict", "prefect_tpu", verdicts.at - loss.lost_at)
    finally:
        logger.removeHandler(verdicts)
    for host in gone:
        FLEET.restore(host)
        time.sleep(SETTLE_SECONDS)


if __name__ == "__main__":
    messages = Messages()
    messages.say("starting three simulated slices of two hosts")
    with prefect_test_harness(server_startup_timeout=SERVER_START_SECONDS), FLEET:
        time.sleep(SETTLE_SECONDS)
        for _ in range(int(sys.argv[1])):
            for one in sys.argv[2].split(","):
                lose(one)
