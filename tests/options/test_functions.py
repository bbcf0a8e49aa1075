"""What `task(task_runner=...)` takes as its function, and what it says of all else, where it is decorated."""

from __future__ import annotations

import functools
from typing import Any

import jax
import prefect
import pytest
import ray
from prefect.assets import Asset

from prefect_tpu import ConfigurationError, LocalFleet, TpuMultisliceRunner, materialize, task

RUNNER: TpuMultisliceRunner[Any] = TpuMultisliceRunner(num_slices=2)


def plain(x: int) -> int:
    return x


class Trainer:
    def train(self, x: int) -> int:
        return x


WRONG = [
    (
        ray.remote(plain),
        "'plain' is a task of Ray; take @ray.remote off, or give its function: task(fn._function, task_runner=...)",
    ),
    (ray.remote(num_cpus=1)(plain), "'plain' is a task of Ray"),
    (ray.remote(Trainer), "ActorClass(Trainer) object is an actor of Ray"),
    (Trainer, "'Trainer' is a class; give a method of one of its objects: task(Trainer(...).METHOD, task_runner=...)"),
    (prefect.task(plain), "'plain' is a task of Prefect; give its function: task(fn.fn, task_runner=...)"),
    (task(plain, task_runner=RUNNER), "'plain' is a task of Prefect; give its function"),  # type: ignore[call-overload]
    (prefect.flow(plain), "'plain' is a flow; a gang is a task: call it in the flow"),
    (jax.jit(plain), "'plain' is no plain Python function but a PjitFunction; write one that calls it"),
    (functools.lru_cache(plain), "is no plain Python function but a _lru_cache_wrapper; write one that calls it"),
    (print, "'print' is no plain Python function but a builtin_function_or_method"),
    (3, "int object is no function"),
]


@pytest.mark.parametrize(("given", "says"), WRONG)
def test_what_is_no_function_is_refused_where_it_is_decorated(given: Any, says: str) -> None:
    """With the way out; nothing of it waits for a host to say so."""
    for decorate in (task(task_runner=RUNNER), materialize(Asset(key="s3://b/a"), task_runner=RUNNER)):
        with pytest.raises(ConfigurationError) as caught:
            decorate(given)
        assert says in str(caught.value)


@pytest.mark.parametrize("given", [plain, Trainer().train, functools.partial(plain, 1), lambda x: x])
def test_what_can_be_called_is_taken(given: Any) -> None:
    """Functions, methods of an object, partials."""
    assert task(given, task_runner=RUNNER).task_runner == RUNNER  # type: ignore[call-overload]


def test_a_flow_whose_runner_makes_gangs_refuses_them_too() -> None:
    """A task of Prefect's own over a function of Ray."""
    inner: Any = prefect.task(ray.remote(plain))

    @prefect.flow(task_runner=TpuMultisliceRunner(pool=LocalFleet(slices=1)))
    def sweep() -> None:
        inner.submit(1).wait()

    with pytest.raises(ConfigurationError, match=r"is a task of Ray; take @ray\.remote off"):
        sweep()
