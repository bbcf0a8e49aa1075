"""Looks at every TPU host of the connected Ray cluster: its clock, its versions, who holds its accelerator."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from prefect_tpu.cluster import inventory
from prefect_tpu.core.messages import DeviceCheck
from prefect_tpu.host.surveyor import Surveyor

CLOCK_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class HostSurvey:
    """One host.

    Attributes:
        label: "slice-1 host 0".
        problem: why it could not be looked at, "" if it could.
        skew_seconds: of its clock, from the driver's.
        uncertain_seconds: how much of the skew may be the time that the answer took.
        devices: why its accelerator is not free, "" if it is.
        versions: of python, prefect_tpu, ray and jax there; "" for what is not installed.
    """

    label: str
    problem: str = ""
    skew_seconds: float = 0.0
    uncertain_seconds: float = 0.0
    devices: str = ""
    versions: tuple[tuple[str, str], ...] = ()


def survey(check: DeviceCheck, *, timeout_seconds: float) -> list[HostSurvey]:
    """Every host of every slice, in order; one that does not answer in time says so. Reserves no chips."""
    make = ray.remote(num_cpus=0, max_restarts=0)(Surveyor)
    actors: dict[str, Any] = {}
    for one in inventory.summary().slices:
        for host in one.slice.hosts:
            affinity = NodeAffinitySchedulingStrategy(node_id=host.node_id, soft=False)
            actors[f"{one.name} host {host.worker_id}"] = make.options(scheduling_strategy=affinity).remote()
    asked = {label: actor.look.remote(check) for label, actor in actors.items()}
    if asked:
        ray.wait(list(asked.values()), num_returns=len(asked), timeout=timeout_seconds)
    try:
        return [_answer(label, asked[label], actor) for label, actor in actors.items()]
    finally:
        for actor in actors.values():
            ray.kill(actor)


def _answer(label: str, ref: Any, actor: Any) -> HostSurvey:
    if not ray.wait([ref], timeout=0)[0]:
        return HostSurvey(label, "no answer in time")
    try:
        seen = ray.get(ref)
        before = time.time()
        there = ray.get(actor.clock.remote(), timeout=CLOCK_SECONDS)
        after = time.time()
    except RayError as error:
        return HostSurvey(label, f"{type(error).__name__}: {str(error).strip().splitlines()[0]}")
    return HostSurvey(
        label,
        skew_seconds=there - (before + after) / 2,
        uncertain_seconds=(after - before) / 2,
        devices=seen["devices"],
        versions=tuple(seen["versions"].items()),
    )
