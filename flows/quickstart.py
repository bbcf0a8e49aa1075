"""Train a small network on two TPU slices, data-parallel, as one Prefect task.

Run it: `python flows/quickstart.py`. Without a TPU the slices are simulated on this machine's CPU. The data
is scikit-learn's digits (1,797 images of 8 x 8 pixels), which ships inside the package.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from prefect import flow, task
from prefect.logging import get_run_logger

import prefect_tpu
from prefect_tpu import LocalFleet, TpuMultisliceRunner, runtime

STEPS = 200
GLOBAL_BATCH = 256
CHECKPOINT_EVERY_STEPS = 100
LEARNING_RATE = 5e-3
SEED = 0
PRELOAD = ("jax", "numpy", "cloudpickle", "optax", "orbax.checkpoint", "sklearn.datasets")


def load_digits() -> tuple[Any, Any, Any, Any]:
    """Train and test images (float32, 64 pixels in 0..1) and labels (int32), split with a fixed seed."""
    import numpy as np
    from sklearn.datasets import load_digits as sklearn_digits
    from sklearn.model_selection import train_test_split

    images, labels = sklearn_digits(return_X_y=True)
    split = train_test_split(images / 16.0, labels, test_size=0.2, random_state=SEED, stratify=labels)
    train_x, test_x, train_y, test_y = split
    return train_x.astype(np.float32), train_y.astype(np.int32), test_x.astype(np.float32), test_y.astype(np.int32)


def train_to(
    steps: int,
    checkpoint_every_steps: int = CHECKPOINT_EVERY_STEPS,
    after_step: Callable[[int, float], None] | None = None,
) -> dict[str, Any]:
    """Train up to a step, from the newest checkpoint if there is one; on every host of the gang at the same time.

    On however many slices there are: the batch of a step is the same, each device's share of it adapts. A gang that
    may grow does so after a checkpoint.

    Args:
        steps: how many there are to be in the end.
        checkpoint_every_steps: how many are lost at most when a slice goes.
        after_step: called on every host with the number of the step that is done, and its loss.

    Returns:
        Loss of the last batch, test accuracy, and all parameters as one float32 vector.
    """
    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax
    import orbax.checkpoint as ocp
    from jax.flatten_util import ravel_pytree
    from jax.sharding import NamedSharding, PartitionSpec

    logging.getLogger("absl").setLevel(logging.WARNING)  # Orbax tells every step of every save
    ctx = runtime.current()
    per_slice = jax.device_count() // ctx.num_slices
    mesh = runtime.mesh(("data",), ici_shape=(per_slice,), dcn_shape=(ctx.num_slices,))
    sharded, replicated = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())
    train_x, train_y, test_x, test_y = load_digits()

    first, second = jax.random.split(jax.random.key(SEED))
    layers = {
        "w1": jax.random.normal(first, (64, 128)) * (2 / 64) ** 0.5,
        "b1": jnp.zeros(128),
        "w2": jax.random.normal(second, (128, 10)) * (2 / 128) ** 0.5,
        "b2": jnp.zeros(10),
    }
    flat, unflatten = ravel_pytree(layers)  # one vector, so one all-reduce for all gradients

    def logits(params: Any, x: Any) -> Any:
        layer = unflatten(params)
        return jax.nn.relu(x @ layer["w1"] + layer["b1"]) @ layer["w2"] + layer["b2"]

    def loss_of(params: Any, x: Any, y: Any) -> Any:
        return optax.softmax_cross_entropy_with_integer_labels(logits(params, x), y).mean()

    optimizer = optax.adam(LEARNING_RATE)

    @jax.jit
    def update(params: Any, state: Any, x: Any, y: Any) -> tuple[Any, Any, Any]:
        loss, gradients = jax.value_and_grad(loss_of)(params, x, y)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, loss

    @jax.jit
    def accuracy_of(params: Any) -> Any:
        return (logits(params, test_x).argmax(-1) == test_y).mean()

    def global_batch(step: int) -> tuple[Any, Any]:
        """The same batch for a step number whoever runs it: a retry sees the same data in the same order."""
        rows = np.random.default_rng((SEED, step)).choice(len(train_x), GLOBAL_BATCH, replace=False)

        def shard(data: Any) -> Any:
            batch = data[rows]
            return jax.make_array_from_callback(batch.shape, sharded, lambda index: batch[index])

        return shard(train_x), shard(train_y)

    params = jax.device_put(np.asarray(flat), replicated)
    state = jax.jit(optimizer.init, out_shardings=replicated)(params)
    loss = jax.device_put(np.float32(np.inf), replicated)

    def to_keep() -> dict[str, Any]:
        """With the loss, so that a retry after the last step has one to return."""
        return {"params": params, "state": state, "loss": loss}

    assert ctx.checkpoint_dir is not None
    with ocp.CheckpointManager(ctx.checkpoint_dir, options=ocp.CheckpointManagerOptions(max_to_keep=2)) as checkpoints:
        done = checkpoints.latest_step() or 0
        if done:
            print(f"going on from the checkpoint at step {done}")
            kept = checkpoints.restore(done, args=ocp.args.StandardRestore(to_keep()))
            params, state, loss = kept["params"], kept["state"], kept["loss"]
        runtime.report(step=done, total_steps=steps)
        for step in range(done + 1, steps + 1):
            params, state, loss = update(params, state, *global_batch(step))
            loss.block_until_ready()  # simulated slices share few CPU threads: one collective at a time
            runtime.report(step=step, total_steps=steps, loss=loss)  # cheap: sent twice a second at most
            if step % checkpoint_every_steps == 0 or step == steps:
                checkpoints.save(step, args=ocp.args.StandardSave(to_keep()))
            if after_step is not None:
                after_step(step, float(loss))
            if step % checkpoint_every_steps == 0 and step < steps:
                runtime.resize_point(checkpoints.wait_until_finished)
        checkpoints.wait_until_finished()
    return {"loss": float(loss), "accuracy": float(accuracy_of(params)), "params": np.asarray(params)}


@prefect_tpu.task(
    task_runner=TpuMultisliceRunner(
        pool=LocalFleet(slices=2, accelerator_type="v4", topology="2x2x2"), num_slices=2, preload=PRELOAD
    ),
    retries=2,
)
def train(steps: int) -> dict[str, float]:
    """Runs once per host, on every host of both slices; every host returns the same loss and accuracy."""
    trained = train_to(steps)
    return {"loss": trained["loss"], "accuracy": trained["accuracy"]}


@task
def check(results: list[dict[str, float]]) -> float:
    """Every host has the same loss, or the slices did not train together. Returns the test accuracy."""
    losses = {result["loss"] for result in results}
    if len(losses) != 1:
        raise ValueError(f"hosts disagree about the loss: {sorted(losses)}")
    return results[0]["accuracy"]


@flow
def quickstart(steps: int = STEPS) -> float:
    """Train on two slices and return the test accuracy."""
    accuracy = check(train(steps))
    get_run_logger().info("test accuracy %.4f", accuracy)
    return accuracy


if __name__ == "__main__":
    print(f"test accuracy: {quickstart():.4f}")
