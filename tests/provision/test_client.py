"""Google's own client over real gRPC: what is asked, and what each answer means."""

from __future__ import annotations

import time

import pytest

from prefect_tpu.core.errors import ConfigurationError
from prefect_tpu.provision.cloud_tpu import QueuedResources
from prefect_tpu.provision.problems import Cause, CloudError
from tests.provision.conftest import EAST, WEST, asked
from tests.provision.queued_server import QueuedServer

OURS = (("prefect-tpu-fleet", "training"), ("prefect-tpu-kind", "v4-2x2x1"), ("prefect-tpu-owner", "somebody"))


def refused(cloud: QueuedResources, **changed: object) -> CloudError:
    with pytest.raises(CloudError) as caught:
        cloud.create(EAST, "one", asked(**changed))
    return caught.value


def test_from_create_to_delete(server: QueuedServer, cloud: QueuedResources) -> None:
    """Through the states in order, and gone in the end."""
    cloud.create(EAST, "one", asked(labels=OURS))
    [seen] = cloud.list(EAST, "training")
    assert (seen.id, seen.zone, seen.kind, seen.owner) == ("one", EAST, "v4-2x2x1", "somebody")
    assert abs(seen.created_unix_seconds - time.time()) < 10
    record = server.until(server.active)[0]
    assert record.history == ["CREATING", "ACCEPTED", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"]
    assert cloud.list(EAST, "training")[0].state == "ACTIVE"
    cloud.delete(EAST, "one")
    server.until(lambda: not server.states())
    assert cloud.list(EAST, "training") == []
    cloud.delete(EAST, "one")  # once more is no error


def test_what_is_asked(server: QueuedServer, cloud: QueuedResources) -> None:
    """Type, topology, tier, valid-until, network, identity, labels, script."""
    cloud.create(
        EAST,
        "one",
        asked(
            labels=(*OURS, ("prefect-tpu-flow-run", "0b8d3a5e")),
            valid_until_seconds=1_800,
            network="projects/my-project/global/networks/training",
            subnetwork="projects/my-project/regions/us-east5/subnetworks/training",
            external_ips=False,
            service_account="tpu@my-project.iam.gserviceaccount.com",
        ),
    )
    message = server.records["one"].message
    node = message.tpu.node_spec[0].node
    assert (node.accelerator_config.type_.name, node.accelerator_config.topology) == ("V4", "2x2x1")
    assert message.tpu.node_spec[0].node_id == "one"
    assert node.runtime_version == "tpu-ubuntu2204-base"
    assert "spot" in message
    assert "guaranteed" not in message
    assert message.queueing_policy.valid_until_duration.total_seconds() == 1_800
    assert node.network_config.network.endswith("networks/training")
    assert node.network_config.subnetwork.endswith("subnetworks/training")
    assert not node.network_config.enable_external_ips
    assert node.service_account.email == "tpu@my-project.iam.gserviceaccount.com"
    assert dict(node.labels) == dict(OURS) | {"prefect-tpu-flow-run": "0b8d3a5e"}
    assert "export TPU_NAME=one" in node.metadata["startup-script"]
    assert "ray start --address=10.0.0.2:6379" in node.metadata["startup-script"]


def test_on_demand(server: QueuedServer, cloud: QueuedResources) -> None:
    """Guaranteed, from no reservation, with no end."""
    cloud.create(EAST, "one", asked(provisioning="on-demand", valid_until_seconds=None))
    message = server.records["one"].message
    assert "guaranteed" in message
    assert "queueing_policy" not in message
    assert not message.reservation_name


@pytest.mark.parametrize("name", ["ours", f"projects/my-project/locations/{EAST}/reservations/ours"])
def test_a_reservation(server: QueuedServer, cloud: QueuedResources, name: str) -> None:
    """By its name in the zone, or its full name."""
    cloud.create(EAST, "one", asked(provisioning="reservation", reservation_name=name))
    message = server.records["one"].message
    assert message.reservation_name == f"projects/my-project/locations/{EAST}/reservations/ours"
    assert message.tpu.node_spec[0].node.scheduling_config.reserved


def test_only_this_fleets_are_listed_over_all_pages(server: QueuedServer, cloud: QueuedResources) -> None:
    """Others in the zone are not even seen."""
    for number in range(7):
        server.put(EAST, f"ours-{number}", {"prefect-tpu-fleet": "training"})
        server.put(EAST, f"theirs-{number}", {"prefect-tpu-fleet": "serving"} if number % 2 else {})
    server.put(WEST, "elsewhere", {"prefect-tpu-fleet": "training"})
    assert [one.id for one in cloud.list(EAST, "training")] == [f"ours-{number}" for number in range(7)]


def test_quota(server: QueuedServer, cloud: QueuedResources) -> None:
    """Not tried again; says what to do, and quotes the service."""
    server.quota(EAST, 0)
    error = refused(cloud)
    assert error.problem.cause is Cause.QUOTA
    for words in ("create spot v4 2x2x1 in us-east5-b of project my-project", "IAM & Admin, Quotas", "Limit: 0"):
        assert words in str(error)
    assert server.count("CreateQueuedResource") == 1


@pytest.mark.parametrize("reason", ["RATE_LIMIT_EXCEEDED", ""])
def test_too_many_requests_are_tried_again(server: QueuedServer, cloud: QueuedResources, reason: str) -> None:
    """429 without a word of a quota that is used up; also if the rate itself is told as a quota."""
    server.fail("CreateQueuedResource", "RESOURCE_EXHAUSTED", 2, reason, violation="per minute" if reason else "")
    cloud.create(EAST, "one", asked())
    assert server.count("CreateQueuedResource") == 3


@pytest.mark.parametrize("code", ["UNAVAILABLE", "INTERNAL", "UNKNOWN", "DEADLINE_EXCEEDED"])
def test_5xx_is_tried_again(server: QueuedServer, cloud: QueuedResources, code: str) -> None:
    """Every method."""
    server.put(EAST, "ours", {"prefect-tpu-fleet": "training"})
    for method in ("ListQueuedResources", "DeleteQueuedResource"):
        server.fail(method, code)
    assert len(cloud.list(EAST, "training")) == 1
    cloud.delete(EAST, "ours")


def test_too_many_requests_for_too_long(server: QueuedServer, cloud: QueuedResources) -> None:
    """Ends with its own cause."""
    cloud.hurry(0.5)
    server.fail("CreateQueuedResource", "RESOURCE_EXHAUSTED", 50, "RATE_LIMIT_EXCEEDED")
    assert refused(cloud).problem.cause is Cause.BUSY


def test_the_api_is_down_for_a_while(server: QueuedServer, cloud: QueuedResources) -> None:
    """Waited for."""
    server.down(1.5)
    began = time.monotonic()
    cloud.create(EAST, "one", asked())
    assert 1.4 < time.monotonic() - began < 6


def test_the_api_is_down_for_too_long(server: QueuedServer, cloud: QueuedResources) -> None:
    """Says so within the retry time."""
    cloud.hurry(1.0)
    server.down(30)
    error = refused(cloud)
    assert error.problem.cause is Cause.AWAY
    assert "UNAVAILABLE: the service is down" in str(error)


def test_a_slow_api(server: QueuedServer, cloud: QueuedResources) -> None:
    """Slower than one try may be: an error within the retry time, not a call that hangs."""
    cloud.hurry(0.5)
    server.slow(3)
    began = time.monotonic()
    assert refused(cloud).problem.cause is Cause.AWAY
    assert time.monotonic() - began < 2.5


def test_a_lost_answer_makes_no_second_one(server: QueuedServer, cloud: QueuedResources) -> None:
    """The same id is asked for again, and is there already."""
    server.lose_answers(1)
    cloud.create(EAST, "one", asked())
    assert list(server.states()) == ["one"]
    assert server.count("CreateQueuedResource") == 2


def test_no_permission(server: QueuedServer, cloud: QueuedResources) -> None:
    """Names the roles; not tried again."""
    server.deny()
    error = refused(cloud)
    assert error.problem.cause is Cause.PERMISSION
    assert "roles/tpu.admin" in str(error)
    assert server.count("CreateQueuedResource") == 1
    with pytest.raises(CloudError, match="list queued resources in us-east5-b"):
        cloud.list(EAST, "training")


def test_the_api_is_not_enabled(server: QueuedServer, cloud: QueuedResources) -> None:
    """The command that enables it."""
    server.disable()
    error = refused(cloud)
    assert error.problem.cause is Cause.DISABLED
    assert "gcloud services enable tpu.googleapis.com --project my-project" in str(error)


def test_a_request_that_is_refused(server: QueuedServer, cloud: QueuedResources) -> None:
    """Where to look up what there is."""
    error = refused(cloud, runtime_version="")
    assert error.problem.cause is Cause.INVALID
    assert "gcloud compute tpus tpu-vm versions list --zone us-east5-b" in str(error)


def test_no_capacity(server: QueuedServer, cloud: QueuedResources) -> None:
    """A FAILED one says why; told from a quota by the details, not the words."""
    server.stockout(EAST)
    cloud.create(EAST, "one", asked(labels=OURS))
    server.until(lambda: server.states()["one"] == "FAILED")
    problem = cloud.list(EAST, "training")[0].problem
    assert problem is not None
    assert problem.cause is Cause.CAPACITY
    assert "provision one in us-east5-b" in problem.text
    assert "There is no more capacity" in problem.text


def test_a_request_that_expires(server: QueuedServer, cloud: QueuedResources) -> None:
    """The service gives up after valid-until."""
    server.queue_up(EAST)
    cloud.create(EAST, "one", asked(labels=OURS, valid_until_seconds=1))
    server.until(lambda: server.states()["one"] == "WAITING_FOR_RESOURCES")
    server.until(lambda: server.states()["one"] == "FAILED")
    problem = cloud.list(EAST, "training")[0].problem
    assert problem is not None
    assert problem.cause is Cause.CAPACITY


def test_no_identity(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    """Before anything is asked: which ways there are to have one."""
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", f"{tmp_path}/none.json")
    with pytest.raises(ConfigurationError, match=r"no credentials for Google Cloud: .*application-default login"):
        QueuedResources("my-project")
