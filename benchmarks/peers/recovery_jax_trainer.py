"""Ray Train's JaxTrainer: recovery. Usage: recovery_jax_trainer.py REPEATS CASES. Needs RAY_TRAIN_V2_ENABLED=1."""

from __future__ import annotations

import sys
import tempfile
import time
from typing import Any

import ray.train
from collective import HOSTS, add_up
from losses import Loss, enter, fail, first_attempt, victim
from messages import SETTLE_SECONDS, Messages
from ray.train.v2.api.config import FailureConfig, RunConfig, ScalingConfig
from ray.train.v2.jax import JaxTrainer

from prefect_tpu import LocalFleet

CHIPS = 4
MAX_FAILURES = 3
FLEET = LocalFleet(slices=3, accelerator_type="v4", topology="2x2x2")
FAILING_PROCESS = 1


def loop(config: dict[str, Any]) -> None:
    """On every host; the trainer has initialised JAX."""
    rank, directory = ray.train.get_context().get_world_rank(), config["directory"]
    add_up(tempfile.mkdtemp(dir=directory), rank, {})
    if config["user_error"] and first_attempt(directory) and rank == FAILING_PROCESS:
        time.sleep(1)
        fail(directory)
    enter(directory, rank)


def lose(storage: str, case: str) -> None:
    """One `fit` with one loss."""
    gone: list[str] = []

    def kill(entered: list[dict[str, Any]]) -> None:
        gone.append(victim(entered))
        FLEET.preempt(gone[0])

    with tempfile.TemporaryDirectory() as directory:
        loss = Loss(directory, kill if case == "host_killed" else None)
        JaxTrainer(
            loop,
            train_loop_config={"directory": directory, "user_error": case == "user_error"},
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
        messages.measured(case, "jax_trainer", loss.seconds)
    for host in gone:
        FLEET.restore(host)
        time.sleep(SETTLE_SECONDS)


if __name__ == "__main__":
    messages = Messages()
    messages.say("starting three simulated slices of two hosts")
    with FLEET, tempfile.TemporaryDirectory() as results:
        time.sleep(SETTLE_SECONDS)
        for _ in range(int(sys.argv[1])):
            for one in sys.argv[2].split(","):
                lose(results, one)
