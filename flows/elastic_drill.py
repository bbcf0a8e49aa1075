"""Lose two of four slices for good, go on with two, grow again when they come back: the same loss curve.

Run it: `python flows/elastic_drill.py`. It trains the quickstart's network twice on four simulated slices of one host,
the second time with that loss, compares the losses of all steps, and prints what happened to every attempt.
"""

from __future__ import annotations

import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from preemption_drill import print_ledger
from prefect import flow
from prefect.client.schemas.objects import State
from quickstart import PRELOAD, train_to

import prefect_tpu
from prefect_tpu import LocalFleet, TpuMultisliceRunner, runtime

STEPS = 60
CHECKPOINT_EVERY_STEPS = 10
LOSE_SLICES_AT, BRING_BACK_AT = 15, 25
LOST = ("slice-2", "slice-3")
STEP_SECONDS_WHEN_BACK = 0.3
"""Slow enough that the slices are seen before the run is over."""
TOLERANCE = 1e-4
"""Largest difference of a step's loss: the same batches, whose gradients are summed over another number of devices."""
WAIT_SECONDS = 300.0

FLEET = LocalFleet(slices=4, accelerator_type="v4", topology="2x2x1")


@prefect_tpu.task(
    task_runner=TpuMultisliceRunner(
        pool=FLEET, num_slices=[2, 4], preload=PRELOAD, resize_after_seconds=5, resize_interval_seconds=0
    )
)
def train(steps: int, folder: str, undisturbed: bool) -> int:
    """On every host. Process 0 writes the loss of each step into `folder`; returns the number of slices in the end."""
    ctx = runtime.current()

    def announce(name: str) -> None:
        if ctx.process_id == 0:
            Path(folder, name).touch()

    def after_step(step: int, loss: float) -> None:
        if ctx.process_id == 0:
            Path(folder, f"loss-{step}").write_text(repr(loss))
        if undisturbed:
            return
        if step == LOSE_SLICES_AT and ctx.num_slices == 4 and ctx.attempt == 1:
            announce("lose")
            time.sleep(WAIT_SECONDS)  # the loss comes now
        if step == BRING_BACK_AT and ctx.num_slices == 2:
            announce("bring back")
            give_up = time.monotonic() + WAIT_SECONDS
            while not Path(folder, "back").exists() and time.monotonic() < give_up:
                time.sleep(0.1)
        if step > BRING_BACK_AT and ctx.num_slices == 2:
            time.sleep(STEP_SECONDS_WHEN_BACK)

    train_to(steps, CHECKPOINT_EVERY_STEPS, after_step)
    return ctx.num_slices


def take_and_give(folder: str) -> None:
    """In the driver: take two slices, and bring them back once the run goes on without them."""
    for word in ("lose", "bring back"):
        give_up = time.monotonic() + WAIT_SECONDS
        while not Path(folder, word).exists():
            if time.monotonic() > give_up:
                return
            time.sleep(0.1)
        for name in LOST:
            (FLEET.preempt if word == "lose" else FLEET.restore)(name)
    Path(folder, "back").touch()


def losses(folder: str, steps: int) -> list[float]:
    """Of every step, as the last attempt that did it has seen it."""
    return [float(Path(folder, f"loss-{step}").read_text()) for step in range(1, steps + 1)]


@flow
def elastic_drill(steps: int = STEPS) -> float:
    """Train undisturbed, then with the loss; the largest difference of a step's loss."""
    with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second:
        train(steps, first, True)
        thread = threading.Thread(target=take_and_give, args=(second,))
        thread.start()
        state: State[Any] = train(steps, second, False, return_state=True)
        thread.join()
        print_ledger(state.state_details.task_run_id)
        ended_with: Any = state.result()
        if set(ended_with) != {4}:
            raise ValueError(f"the run ended with {ended_with[0]} slices, not with 4: it has not grown again")
        pairs = zip(losses(first, steps), losses(second, steps), strict=True)
        difference = max(abs(one - other) for one, other in pairs)
    if difference > TOLERANCE:
        raise ValueError(f"the losses differ by {difference:g}, more than {TOLERANCE:g}")
    return difference


if __name__ == "__main__":
    with FLEET:
        print(f"largest difference of a loss: {elastic_drill():g}")
