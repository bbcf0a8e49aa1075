"""Ray Train's JaxTrainer on the same hosts. Usage: jax_trainer.py CALLS. Needs RAY_TRAIN_V2_ENABLED=1."""

from __future__ import annotations

import sys
import tempfile
import time
from typing import Any

import ray.train
from cluster import PAUSE_SECONDS, connected_fleet
from collective import HOSTS, add_up, durations, first_marks, read_notes
from messages import Messages
from ray.train.v2.api.config import FailureConfig, RunConfig, ScalingConfig
from ray.train.v2.jax import JaxTrainer

CHIPS = 4
MAX_FAILURES = 3


def loop(config: dict[str, Any]) -> None:
    """On every host; the trainer has initialised JAX."""
    add_up(config["directory"], ray.train.get_context().get_world_rank(), first_marks())


def call(storage: str, case: str) -> None:
    """One `fit`."""
    with tempfile.TemporaryDirectory() as directory:
        begin = time.time()
        JaxTrainer(
            loop,
            train_loop_config={"directory": directory},
            scaling_config=ScalingConfig(
                use_tpu=True,
                num_workers=HOSTS,
                topology="2x2x2",
                accelerator_type="TPU-V4",
                resources_per_worker={"TPU": CHIPS},
                placement_strategy="SPREAD",
            ),
            run_config=RunConfig(storage_path=storage, failure_config=FailureConfig(max_failures=MAX_FAILURES)),
        ).fit()
        notes = read_notes(directory)
    messages.measured(case, "jax_trainer", max(note["collective"] for note in notes) - begin, durations(begin, notes))


if __name__ == "__main__":
    messages = Messages()
    with connected_fleet(messages), tempfile.TemporaryDirectory() as results:
        for number in range(int(sys.argv[1])):
            call(results, "warm" if number else "first")
            time.sleep(PAUSE_SECONDS)
