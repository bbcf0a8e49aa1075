"""What every fleet does, whichever it is: one suite over all of them."""

from __future__ import annotations

import dataclasses
import pickle
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from prefect_tpu import ConfigurationError, QueuedResourceFleet, TopologyError
from prefect_tpu.cluster import inventory, session
from prefect_tpu.cluster.tpu import resolve_shape
from prefect_tpu.fleets.fleet import Fleet
from prefect_tpu.fleets.local_fleet import LocalFleet
from prefect_tpu.fleets.ray_fleet import RayFleet
from tests.provision.conftest import access
from tests.provision.queued_server import QueuedServer, queued_server

pytestmark = pytest.mark.slow

SHAPE = resolve_shape("v4", "2x2x1")
ZONES = ("us-east5-b",)


@dataclass
class Case:
    """A fleet, how to make an equal and another one, and what it must refuse."""

    make: Callable[..., Fleet]
    other: dict[str, Any]
    wrong: list[dict[str, Any]]
    reserved: Callable[[], int] = field(default=lambda: 0)


@pytest.fixture(scope="module")
def machines() -> Iterator[LocalFleet]:
    """One host of four chips."""
    with LocalFleet(slices=1, topology="2x2x1") as fleet:
        yield fleet


@pytest.fixture(scope="module")
def service() -> Iterator[QueuedServer]:
    """Cloud TPU's, whose TPU VMs nobody needs here."""
    with queued_server(step_seconds=0.05) as running:
        yield running


@pytest.fixture(params=["local", "ray", "queued"])
def case(request: pytest.FixtureRequest, machines: LocalFleet, service: QueuedServer) -> Iterator[Case]:
    """Each of them; all on the same Ray cluster."""
    if request.param == "local":
        yield Case(
            lambda **changed: LocalFleet(**({"slices": 1, "topology": "2x2x1"} | changed)),
            {"slices": 2},
            [{"slices": -1}, {"topology": "3x5"}, {"start_timeout_seconds": 0}],
        )
    elif request.param == "ray":
        yield Case(
            lambda **changed: RayFleet(**({"address": machines.address} | changed)),
            {"namespace": "other"},
            [{"address": "ray://head:10001"}, {"address": ""}, {"join": "yes"}],
        )
    else:
        values: dict[str, Any] = {
            "project": "my-project", "zones": ZONES, "ray_address": machines.address, "endpoint": service.endpoint,
            "poll_seconds": 0.1, "idle_release_seconds": 0, **access(),
        }  # fmt: skip
        yield Case(
            lambda **changed: QueuedResourceFleet(**(values | changed)),
            {"zones": ("us-east5-c",)},
            [
                {"project": ""},
                {"zones": ()},
                {"zones": ("us-east5-b", "us-east5-b")},
                {"zones": ("us-east5",)},
                {"zones": "us-east5-b"},
                {"provisioning": "cheap"},
                {"provisioning": "reservation"},
                {"reservation_name": "ours"},
                {"runtime_version": " "},
                {"name": "Training"},
                {"labels": {"Team": "vision"}},
                {"labels": {"prefect-tpu-owner": "me"}},
                {"startup_script": "#!/bin/bash\nray start"},
                {"idle_release_seconds": -1},
                {"poll_seconds": 0},
                {"close_timeout_seconds": None},
                {"owner_silence_seconds": 100},
                {"endpoint": "https://tpu.googleapis.com"},
                {"ray_address": "ray://head:10001"},
            ],
            lambda: len(service.states()),
        )
        QueuedResourceFleet(**values).close()
        service.until(lambda: not service.states())


def test_it_is_a_fleet(case: Case) -> None:
    """By the protocol, at run time."""
    assert isinstance(case.make(), Fleet)


def test_it_is_a_value(case: Case) -> None:
    """Equal configurations are equal and hash alike; others are not equal; nobody can change one."""
    one, same, other = case.make(), case.make(), case.make(**case.other)
    assert one == same
    assert hash(one) == hash(same)
    assert one != other
    name = next(iter(case.other))
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(one, name, None)


def test_it_pickles(case: Case) -> None:
    """Also while it is up."""
    one = case.make()
    one.connect()
    assert pickle.loads(pickle.dumps(one)) == one


def test_it_connects_and_again(case: Case, machines: LocalFleet) -> None:
    """To the same cluster, with the same connection; it says so at most once."""
    said: list[str] = []
    one = case.make()
    one.connect(say=said.append)
    generation = session.generation()
    told = len(said)
    case.make().connect(say=said.append)
    assert session.address() == machines.address
    assert (session.generation(), len(said)) == (generation, told)
    assert case.reserved() == 0


def test_its_address_is_the_clusters(case: Case, machines: LocalFleet) -> None:
    """Once it is connected."""
    one = case.make()
    one.connect()
    assert one.address == machines.address


def test_it_describes_itself_on_one_line(case: Case) -> None:
    """As messages can have it in the middle of a sentence."""
    text = case.make().describe()
    assert text.startswith("the ")
    assert "\n" not in text
    assert not text.endswith(".")


def test_it_can_be_asked_for_slices(case: Case) -> None:
    """None, or a demand that says how far it is and can be withdrawn twice, from any thread."""
    one = case.make()
    one.connect()
    demand = one.demand(SHAPE, 1, "run-1", lambda _: None)
    if demand is not None:
        demand.check()
        assert demand.describe()
        assert "\n" not in demand.describe()
        demand.withdraw()
        demand.withdraw()
        assert isinstance(demand.describe(), str)


def test_its_errors_come_before_anything_is_reserved(case: Case) -> None:
    """Each wrong value is named."""
    for wrong in case.wrong:
        with pytest.raises((ConfigurationError, TopologyError)) as caught:
            case.make(**wrong)
        name, value = next(iter(wrong.items()))
        assert name in str(caught.value) or repr(value).strip("'()") in str(caught.value), wrong
    assert case.reserved() == 0
    assert len(inventory.summary().slices) == 1


# -- what is of queued resources alone


def queued(machines: LocalFleet, **changed: Any) -> QueuedResourceFleet:
    values: dict[str, Any] = {"project": "my-project", "zones": ZONES, "ray_address": machines.address, **access()}
    return QueuedResourceFleet(**(values | changed))


def test_nothing_secret_is_shown_or_pickled(machines: LocalFleet) -> None:
    """Credentials are neither in repr nor in a pickle."""
    from google.auth.credentials import AnonymousCredentials

    secret = AnonymousCredentials()  # type: ignore[no-untyped-call]
    one = queued(machines, credentials=secret)
    assert "credentials" not in repr(one)
    assert pickle.loads(pickle.dumps(one)).credentials is None
    assert one.credentials is secret
    assert one != queued(machines), "another identity, other slices"


def test_a_flow_runs_fleet_is_the_same_fleet(machines: LocalFleet) -> None:
    """It shares its slices; only labels differ."""
    one = queued(machines)
    assert one.for_flow_run("Run 1") == one
    labels = dict(one.for_flow_run("Run 1").request(SHAPE, "10.0.0.2:6379", "task-1").labels)
    assert labels == {"prefect-tpu-flow-run": "run-1", "prefect-tpu-task-run": "task-1"}


def test_what_cloud_tpu_does_not_have(machines: LocalFleet) -> None:
    """A type that only Ray knows."""
    with pytest.raises(ConfigurationError, match=r"no queued resources of type 'v7x'; it has: v2, v3"):
        queued(machines).request(dataclasses.replace(SHAPE, accelerator_type="v7x"), "10.0.0.2:6379", "task-1")


def test_a_head_that_tpu_vms_cannot_reach() -> None:
    """At an address of this machine alone; said before anything is asked for."""
    from prefect_tpu.fleets import queued_keepers

    fleet = QueuedResourceFleet("my-project", ZONES, "127.0.0.1:6379")
    with pytest.raises(ConfigurationError, match=r"call connect\(\) first"):
        queued_keepers.address_for_hosts(fleet)
    with pytest.raises(ConfigurationError, match="which TPU VMs cannot reach"):
        queued_keepers.check_reachable(fleet, "127.0.0.1:6379")
    queued_keepers.check_reachable(fleet, "10.0.0.2:6379")


def test_without_googles_client() -> None:
    """The pip command; before Ray is connected."""
    code = """
import sys
sys.modules["google.cloud.tpu_v2"] = None
from prefect_tpu import ConfigurationError, QueuedResourceFleet
try:
    QueuedResourceFleet(
        "my-project", ("us-east5-b",), "127.0.0.1:1", host_package="prefect-tpu==0.1.0", unprotected_ray=True
    ).connect()
except ConfigurationError as error:
    assert "pip install 'google-cloud-tpu>=1.24,<2'" in str(error), error
else:
    raise AssertionError("connected")
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_google_is_imported_when_it_is_needed() -> None:
    """Not by making a fleet."""
    code = """
import sys
from prefect_tpu import QueuedResourceFleet
QueuedResourceFleet("my-project", ("us-east5-b",))
assert not [name for name in sys.modules if name.startswith(("google.cloud.tpu", "grpc"))]
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_signs_of_life_in_ray(machines: LocalFleet) -> None:
    """In the cluster's own store; another each time, and none where there is no cluster."""
    from prefect_tpu.fleets.signs_of_life import SignsOfLife

    signs, others = SignsOfLife(machines.address), SignsOfLife(machines.address)
    assert others.last("somebody") is None
    signs.leave("somebody")
    first = others.last("somebody")
    signs.leave("somebody")
    assert first is not None
    assert others.last("somebody") not in (None, first)
    began = time.monotonic()
    for nobody in ("127.0.0.1:1", "no-such-host.invalid:6379"):
        assert SignsOfLife(nobody).last("somebody") is None
    assert time.monotonic() - began < 10, "a keeper that waits for Ray does not delete"


def test_reaping_by_hand(service: QueuedServer, machines: LocalFleet) -> None:
    """What is certainly left; what is elsewhere only if a person says so."""
    from prefect_tpu.provision.owner import Owner

    dead = dataclasses.replace(Owner.new(), pid=2**22 + 1)
    elsewhere = dataclasses.replace(dead, machine="0" * 12)
    for name, owner in (("dead", dead), ("elsewhere", elsewhere)):
        labels = {"prefect-tpu-fleet": "prefect-tpu", "prefect-tpu-owner": str(owner)}
        service.put(ZONES[0], name, labels)
    fleet = queued(machines, endpoint=service.endpoint)
    assert fleet.reap() == ["dead"]
    service.until(lambda: set(service.states()) == {"elsewhere"})
    assert fleet.reap() == []
    assert fleet.reap(elsewhere_too=True) == ["elsewhere"]
    service.until(lambda: not service.states())


def test_what_the_keeper_sees_of_ray(machines: LocalFleet) -> None:
    """Leased slices are in use; retired ones are leased no more; a cluster that does not answer is no news."""
    from prefect_tpu.fleets import queued_keepers
    from prefect_tpu.leases.queue import LeaseQueue

    machines.connect()
    assert queued_keepers.slices_in_use(machines.address) == {"slice-0": False}
    lease = LeaseQueue().acquire(
        SHAPE, 1, timeout_seconds=20, fleet="it", cancelled=lambda: False, say=print, say_interval_seconds=5
    )
    assert queued_keepers.slices_in_use(machines.address) == {"slice-0": True}
    lease.release()
    deadline = time.monotonic() + 20
    while queued_keepers.slices_in_use(machines.address) != {"slice-0": False}:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    queued_keepers.retire(["slice-0"])
    assert inventory.free_slices(SHAPE) == []
    assert queued_keepers.slices_in_use("127.0.0.1:1") is None
    machines.preempt("slice-0")
    machines.restore("slice-0")
    assert len(inventory.free_slices(SHAPE)) == 1
