"""The block of queued resources: saved with its credentials, loaded by a pool's slug."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any
from urllib.error import URLError
from uuid import uuid4

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from prefect.blocks.core import Block
from prefect.client.orchestration import SyncPrefectClient
from prefect.testing.standard_test_suites import BlockStandardTestSuite
from prefect_gcp import GcpCredentials

from prefect_tpu import QueuedResourceFleet, QueuedResourceFleetBlock, TpuMultisliceRunner, TpuSlicePool
from prefect_tpu.cli import run as cli
from prefect_tpu.provision.owner import Owner
from tests.provision.queued_server import queued_server

ZONES = ["us-east5-b", "us-east5-c"]


class TestStandard(BlockStandardTestSuite):
    """Prefect's own suite for blocks."""

    @pytest.fixture
    def block(self) -> type[Block]:
        """The block."""
        return QueuedResourceFleetBlock

    def test_has_a_valid_image(self, block: type[Block]) -> None:
        """Where the network reaches it."""
        try:
            super().test_has_a_valid_image(block)
        except URLError as error:
            pytest.skip(f"the logo's host cannot be reached: {error.reason}")


@pytest.fixture(scope="module")
def account() -> dict[str, Any]:
    """A service account's key file, of nobody."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()
    return {
        "type": "service_account",
        "project_id": "my-project",
        "private_key_id": "1",
        "private_key": pem,
        "client_email": "driver@my-project.iam.gserviceaccount.com",
        "token_uri": "https://oauth2.googleapis.com/token",
    }


def test_a_pool_with_credentials(account: dict[str, Any], client: SyncPrefectClient) -> None:
    """The key is saved as a secret, reaches the fleet, and is shown nowhere; loading it twice is the same fleet."""
    name = f"pool-{uuid4().hex[:8]}"
    credentials = GcpCredentials(service_account_info=account)
    credentials.save(name)
    block = QueuedResourceFleetBlock(
        project="my-project",
        zones=ZONES,
        ray_address="10.0.0.2:6379",
        labels={"team": "vision"},
        credentials=credentials,
    )
    TpuSlicePool(fleet=block, accelerator_type="v6e", topology="4x4", num_slices=8).save(name)
    runner: Any = TpuMultisliceRunner(pool=f"tpu-slice-pool/{name}")
    fleet, again = runner.resolve().fleet, runner.resolve().fleet
    assert isinstance(fleet, QueuedResourceFleet)
    assert (fleet.project, fleet.zones, fleet.labels) == ("my-project", tuple(ZONES), (("team", "vision"),))
    assert fleet == again
    assert hash(fleet) == hash(again)
    identity = fleet.credentials.get_credentials_from_service_account()
    assert identity.service_account_email == account["client_email"]
    secret = account["private_key"].splitlines()[3]
    for shown in (repr(fleet), fleet.describe(), repr(block), repr(runner)):
        assert secret not in shown
    body = {"block_documents": {}, "include_secrets": False}
    assert secret not in json.dumps(client.request("POST", "/block_documents/filter", json=body).json())


def test_the_plan_of_a_flow_run() -> None:
    """Spot slices can be taken away, and the flow run's id reaches the labels."""
    import logging

    block = QueuedResourceFleetBlock(project="my-project", zones=ZONES)
    pool = TpuSlicePool(fleet=block, accelerator_type="v6e", topology="4x4", num_slices=8)
    resolved = pool.runner().resolve()
    plan = resolved.plan(
        timeout_seconds=None, checkpoint_name="run", say=logging.getLogger("test"), flow_run_id="0b8d3a5e"
    )
    assert plan.options.preemptible
    assert isinstance(plan.fleet, QueuedResourceFleet)
    assert dict(plan.fleet.run_labels) == {"prefect-tpu-flow-run": "0b8d3a5e"}
    paid = pool.model_copy(update={"fleet": block.model_copy(update={"provisioning": "on-demand"})})
    said = logging.getLogger("test")
    plan = paid.runner().resolve().plan(timeout_seconds=None, checkpoint_name="run", say=said)
    assert not plan.options.preemptible


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"zones": []}, "must be one or more zones"),
        ({"zones": ["us-east5"]}, "names of zones"),
        ({"project": "My Project"}, "id of a Google Cloud project"),
        ({"provisioning": "reservation"}, "given for provisioning='reservation'"),
        ({"provisioning": "cheap"}, "spot"),
        ({"startup_script": "#!/bin/sh\necho {{head}}"}, "placeholder {{head}}"),
        ({"zone": ["us-east5-b"]}, "has no field 'zone'"),
        ({"poll_seconds": 0}, "must be a number of seconds that is more than 0"),
    ],
)
def test_bad_fields_are_refused_before_they_are_saved(fields: dict[str, Any], words: str) -> None:
    """By name, with what is allowed."""
    with pytest.raises(ValueError) as caught:
        QueuedResourceFleetBlock(**({"project": "my-project", "zones": ZONES} | fields))
    assert words in str(caught.value)


def test_on_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    """`prefect-tpu pool reap`: what it has deleted; elsewhere only if it is said so; other fleets leave nothing."""
    name = f"pool-{uuid4().hex[:8]}"
    with queued_server(step_seconds=0.05) as server:
        fleet = QueuedResourceFleetBlock(project="my-project", zones=ZONES, endpoint=server.endpoint)
        TpuSlicePool(fleet=fleet, num_slices=2).save(name)
        TpuSlicePool().save(f"{name}-local")
        dead = replace(Owner.new(), pid=2**22 + 1)
        for resource_id, owner in (("left", dead), ("far", replace(dead, machine="0" * 12))):
            server.put(ZONES[1], resource_id, {"prefect-tpu-fleet": "prefect-tpu", "prefect-tpu-owner": str(owner)})
        assert cli(["pool", "reap", name]) == 0
        assert capsys.readouterr().out == "deleted: left\n"
        server.until(lambda: set(server.states()) == {"far"})
        assert cli(["pool", "reap", f"tpu-slice-pool/{name}", "--elsewhere", "--json"]) == 0
        assert json.loads(capsys.readouterr().out) == {"deleted": ["far"]}
        server.until(lambda: not server.states())
        server.deny()
        assert cli(["pool", "reap", name]) == 1
        assert "roles/tpu.admin" in capsys.readouterr().err.replace("\n", " ")
    assert cli(["pool", "reap", f"{name}-local"]) == 2
    assert "only queued resources are left behind" in capsys.readouterr().err.replace("\n", " ")
