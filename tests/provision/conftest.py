"""A service for each test, and a keeper on it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any
from uuid import uuid4

import pytest

from prefect_tpu.cluster import gcs
from prefect_tpu.provision.cloud_tpu import QueuedResources
from prefect_tpu.provision.interfaces import RayView
from prefect_tpu.provision.keeper import Keeper
from prefect_tpu.provision.plan import Rules
from prefect_tpu.provision.request import SliceRequest
from tests.provision.queued_server import QueuedServer, queued_server

EAST, WEST = "us-east5-b", "us-west4-a"
SECRET, ACCOUNT = "projects/my-project/secrets/ray-token", "tpu-hosts@my-project.iam.gserviceaccount.com"
SCRIPT = "#!/bin/bash\nexport TPU_NAME={{slice_name}}\nray start --address={{ray_address}} --block\n"


def access() -> dict[str, Any]:
    """What TPU VMs install, and how they come to Ray: as this process, which is connected, does."""
    token = {"token_secret": SECRET, "service_account": ACCOUNT}
    return {"host_package": "prefect-tpu==0.1.0"} | (token if gcs.asks_for_token() else {"unprotected_ray": True})


def asked(**changed: Any) -> SliceRequest:
    """One v4 host."""
    values: dict[str, Any] = {
        "accelerator_type": "v4",
        "topology": "2x2x1",
        "runtime_version": "tpu-ubuntu2204-base",
        "provisioning": "spot",
        "ray_address": "10.0.0.2:6379",
        "startup_script": SCRIPT,
    }
    return SliceRequest(**(values | changed))


@pytest.fixture
def server() -> Iterator[QueuedServer]:
    """Every state takes 0.1 s."""
    with queued_server(step_seconds=0.05) as running:
        yield running


@pytest.fixture
def cloud(server: QueuedServer) -> Iterator[QueuedResources]:
    """The official client on it, with short limits."""
    api = QueuedResources("my-project", endpoint=server.endpoint, call_timeout_seconds=2, retry_seconds=6)
    yield api
    api.close()


@pytest.fixture
def keeper(server: QueuedServer) -> Iterator[Callable[..., Keeper]]:
    """Makes keepers; what is ACTIVE is whole in Ray, and what is in `busy` in use."""
    made: list[Keeper] = []

    def make(
        *zones: str,
        busy: set[str] | None = None,
        signs: dict[str, str] | None = None,
        reap_after_seconds: float | None = None,
        **rules: Any,
    ) -> Keeper:
        used: set[str] = set() if busy is None else busy
        heard: dict[str, str] = {} if signs is None else signs
        one = Keeper(
            name="training",
            zones=zones or (EAST,),
            cloud=QueuedResources("my-project", endpoint=server.endpoint, call_timeout_seconds=1, retry_seconds=3),
            ray=RayView(
                lambda: {record.id: record.id in used for record in server.active()},
                lambda names: None,
                lambda owner: heard.update({owner: uuid4().hex}),
                heard.get,
            ),
            rules=Rules(**({"idle_release_seconds": 0.3, "zone_pause_seconds": 0.5} | rules)),
            poll_seconds=0.05,
            close_timeout_seconds=5,
            owner_silence_seconds=2.0,
            reap_after_seconds=reap_after_seconds,
        )
        made.append(one)
        return one

    yield make
    for one in made:
        one.close()
