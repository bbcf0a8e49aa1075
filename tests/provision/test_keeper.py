"""A keeper with the official client on a real service: each fault, from asking to having slices, to none left."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from prefect_tpu.core.errors import ProvisioningError
from prefect_tpu.provision.cloud_tpu import QueuedResources
from prefect_tpu.provision.interfaces import RayView
from prefect_tpu.provision.keeper import Keeper
from prefect_tpu.provision.owner import Owner
from prefect_tpu.provision.plan import Rules
from tests.provision.conftest import EAST, WEST, asked
from tests.provision.queued_server import QueuedServer, Record, State

Make = Callable[..., Keeper]


def up(server: QueuedServer, count: int, seconds: float = 20.0) -> list[Record]:
    found: list[Record] = server.until(lambda: server.active() if len(server.active()) == count else None, seconds)
    return found


def hopeless(server: QueuedServer, demand: Any) -> str:
    def why() -> str:
        try:
            demand.check()
        except ProvisioningError as error:
            return str(error)
        return ""

    return str(server.until(why))


def test_a_gang_gets_its_slices_and_gives_them_back(server: QueuedServer, keeper: Make) -> None:
    """As many as wanted, with labels; deleted when nobody has wanted them for a while."""
    one = keeper(EAST, WEST, idle_release_seconds=2.0)
    demand = one.demand(asked(labels=(("prefect-tpu-flow-run", "run-1"),)), 2)
    assert demand.describe() == "the API is being asked"
    server.until(lambda: "PROVISIONING" in demand.describe())
    records = up(server, 2)
    server.until(lambda: demand.describe() == "2 of 2 slices up")
    demand.check()
    for record in records:
        assert record.zone == EAST
        assert record.id.startswith("training-")
        assert record.labels == {
            "prefect-tpu-fleet": "training",
            "prefect-tpu-owner": str(one.owner),
            "prefect-tpu-kind": "v4-2x2x1",
            "prefect-tpu-flow-run": "run-1",
        }
    demand.withdraw()
    demand.withdraw()
    time.sleep(0.3)
    assert len(server.active()) == 2, "kept for who comes next"
    server.until(lambda: not server.states())


def test_the_next_gang_takes_over(server: QueuedServer, keeper: Make) -> None:
    """Nothing is created in between, and both together get more."""
    one = keeper(idle_release_seconds=30)
    first = one.demand(asked(), 1)
    names = {record.id for record in up(server, 1)}
    first.withdraw()
    second = one.demand(asked(labels=(("run", "second"),)), 1)
    third = one.demand(asked(labels=(("run", "third"),)), 2)
    records = up(server, 3)
    assert names < {record.id for record in records}
    assert sorted(record.labels.get("run", "") for record in records) == ["", "third", "third"]
    for demand in (second, third):
        demand.withdraw()


def test_scaling_down_spares_what_is_in_use(server: QueuedServer, keeper: Make) -> None:
    """A lease may outlive the demand."""
    busy: set[str] = set()
    one = keeper(busy=busy)
    demand = one.demand(asked(), 3)
    busy.add(up(server, 3)[1].id)
    demand.withdraw()
    server.until(lambda: set(server.states()) == busy)
    time.sleep(0.5)
    assert set(server.states()) == busy
    busy.clear()
    server.until(lambda: not server.states())


def test_closing_deletes_everything(server: QueuedServer, keeper: Make) -> None:
    """Whatever state it is in; in use or not."""
    busy: set[str] = set()
    one = keeper(busy=busy)
    one.demand(asked(), 2)
    busy |= {record.id for record in up(server, 2)}
    server.queue_up(EAST)
    one.demand(asked(), 1)
    server.until(lambda: "WAITING_FOR_RESOURCES" in server.states().values())
    assert one.close() == []
    server.until(lambda: not server.states())
    assert len(server.deleted) == 3


# -- each fault


def test_preempted(server: QueuedServer, keeper: Make) -> None:
    """SUSPENDED holds quota: deleted first, then replaced under another id."""
    server.quota(EAST, 2)
    one = keeper()
    demand = one.demand(asked(), 2)
    lost = up(server, 2)[0]
    server.preempt(lost.id)
    server.until(lambda: lost in server.deleted)
    assert "SUSPENDED" in lost.history
    records = up(server, 2)
    assert lost.id not in {record.id for record in records}
    demand.check()


def test_preempted_while_provisioning(server: QueuedServer, keeper: Make) -> None:
    """The next zone is tried."""
    server.preempt_while_provisioning(1)
    keeper(EAST, WEST).demand(asked(), 1)
    assert up(server, 1)[0].zone == WEST
    server.until(lambda: [record.zone for record in server.deleted] == [EAST])
    assert "ACTIVE" not in server.deleted[0].history


def test_stockout_in_one_zone(server: QueuedServer, keeper: Make) -> None:
    """FAILED ones are deleted; the next zone has some."""
    server.stockout(EAST)
    demand = keeper(EAST, WEST).demand(asked(), 2)
    assert {record.zone for record in up(server, 2)} == {WEST}
    server.until(lambda: len(server.deleted) == 2)
    demand.check()


def test_stockout_everywhere(server: QueuedServer, keeper: Make) -> None:
    """Not hopeless: says why it waits, and goes on when there is some."""
    server.stockout(EAST, WEST)
    demand = keeper(EAST, WEST).demand(asked(), 1)
    server.until(lambda: "us-west4-a tried again in" in demand.describe())
    assert "There is no more capacity" in demand.describe()
    demand.check()
    server.stockout()
    up(server, 1)


def test_a_request_that_expires_goes_to_the_next_zone(server: QueuedServer, keeper: Make) -> None:
    """Nothing becomes free before valid-until."""
    server.queue_up(EAST)
    keeper(EAST, WEST).demand(asked(valid_until_seconds=1), 1)
    assert up(server, 1)[0].zone == WEST


def test_quota(server: QueuedServer, keeper: Make) -> None:
    """Hopeless once every zone has said so; in words that help."""
    server.quota(EAST, 0)
    server.quota(WEST, 1)
    demand = keeper(EAST, WEST, quota_settle_seconds=0.0).demand(asked(), 2)
    why = hopeless(server, demand)
    assert why.startswith("no 2 slices of v4-2x2x1: create spot v4 2x2x1 in us-east5-b of project my-project: quota:")
    assert "Limit: 0 in us-east5-b" in why
    assert "Limit: 1 in us-west4-a" in why


def test_quota_that_another_gang_holds(server: QueuedServer, keeper: Make) -> None:
    """Waited for: its end makes room."""
    server.quota(EAST, 1)
    one = keeper(quota_settle_seconds=0.0, zone_pause_seconds=0.2)
    first = one.demand(asked(), 1)
    up(server, 1)
    second = one.demand(asked(topology="2x2x2"), 1)
    server.until(lambda: "quota" in second.describe())
    second.check()
    first.withdraw()
    server.until(lambda: [record.labels["prefect-tpu-kind"] for record in server.active()] == ["v4-2x2x2"])


def test_no_permission_then_some(server: QueuedServer, keeper: Make) -> None:
    """The next gang is not told what the one before was told."""
    server.deny()
    one = keeper(EAST, WEST)
    first = one.demand(asked(), 1)
    assert "roles/tpu.admin" in hopeless(server, first)
    first.withdraw()
    server.allow()
    second = one.demand(asked(), 1)
    second.check()
    up(server, 1)
    second.check()


def test_the_api_is_not_enabled(server: QueuedServer, keeper: Make) -> None:
    """The command that enables it."""
    server.disable()
    assert "gcloud services enable" in hopeless(server, keeper().demand(asked(), 1))


def test_the_api_is_down_for_a_while(server: QueuedServer, keeper: Make) -> None:
    """Nothing is lost, nothing is doubled."""
    one = keeper()
    demand = one.demand(asked(), 2)
    records = up(server, 2)
    server.down(4.5)
    time.sleep(5)  # longer than a call is tried again
    demand.check()
    server.until(lambda: demand.describe() == "2 of 2 slices up")
    assert {record.id for record in server.active()} == {record.id for record in records}


def test_the_api_is_down_at_first(server: QueuedServer, keeper: Make) -> None:
    """Waited for, and said so."""
    server.down(4.5)
    demand = keeper().demand(asked(), 1)
    server.until(lambda: "UNAVAILABLE: the service is down" in demand.describe())
    demand.check()
    up(server, 1)


def test_a_slow_api(server: QueuedServer, keeper: Make) -> None:
    """Takes longer, and that is all."""
    server.slow(0.4)
    keeper(idle_release_seconds=30).demand(asked(), 2)
    up(server, 2)
    time.sleep(1)
    assert server.count("CreateQueuedResource") == 2


def test_answers_get_lost(server: QueuedServer, keeper: Make) -> None:
    """Of creating and of deleting: no slice too many, none left."""
    server.lose_answers(2)
    one = keeper()
    one.demand(asked(), 2)
    up(server, 2)
    server.lose_answers(2, "DeleteQueuedResource")
    one.close()
    server.until(lambda: not server.states())


def test_too_many_requests(server: QueuedServer, keeper: Make) -> None:
    """Asked again, more slowly."""
    server.fail("CreateQueuedResource", "RESOURCE_EXHAUSTED", 2, "RATE_LIMIT_EXCEEDED")
    keeper().demand(asked(), 1)
    up(server, 1)


def test_slices_that_never_join_ray(server: QueuedServer) -> None:
    """Replaced once, then the startup script is at fault."""
    one = Keeper(
        name="training",
        zones=(EAST,),
        cloud=QueuedResources("my-project", endpoint=server.endpoint),
        ray=RayView(dict, lambda names: None),
        rules=Rules(join_seconds=0.3),
        poll_seconds=0.05,
        close_timeout_seconds=5,
        owner_silence_seconds=900,
    )
    try:
        demand = one.demand(asked(), 1)
        server.until(lambda: "1 ACTIVE and not in Ray yet" in demand.describe())
        assert "journalctl -u google-startup-scripts" in hopeless(server, demand)
        assert len(server.deleted) >= 1
    finally:
        one.close()


# -- what is left behind


def test_what_a_killed_run_has_left_is_reaped(server: QueuedServer, keeper: Make) -> None:
    """By its labels; what is not certainly left, or not ours, is not touched."""
    code = """
import sys
from prefect_tpu.provision.keeper import Keeper
from prefect_tpu.provision.plan import Rules
from prefect_tpu.provision.cloud_tpu import QueuedResources
from prefect_tpu.provision.interfaces import RayView
from tests.provision.conftest import EAST, asked
keeper = Keeper(name="training", zones=(EAST,), cloud=QueuedResources("my-project", endpoint=sys.argv[1]),
    ray=RayView(lambda: None, lambda names: None), rules=Rules(), poll_seconds=0.05,
    close_timeout_seconds=5, owner_silence_seconds=900)
keeper.demand(asked(), 2)
sys.stdin.read()
"""
    process = subprocess.Popen([sys.executable, "-c", code, server.endpoint], stdin=subprocess.PIPE)
    assert process.stdin is not None
    left = {record.id for record in up(server, 2, 40)}
    alive = keeper()
    elsewhere = replace(Owner.new(), machine="0" * 12)
    labels = {"prefect-tpu-kind": "v4-2x2x1", "prefect-tpu-fleet": "training"}
    server.put(EAST, "elsewhere", labels | {"prefect-tpu-owner": str(elsewhere)})
    server.put(EAST, "a-persons", {})
    server.put(EAST, "another-fleets", {"prefect-tpu-fleet": "serving", "prefect-tpu-owner": str(elsewhere)})
    server.put(EAST, "without-owner", labels, State.FAILED)
    demand = alive.demand(asked(), 1)
    up(server, 6)
    time.sleep(0.5)
    assert left < set(server.states()), "its owner lives"
    process.kill()
    process.wait()
    process.stdin.close()
    server.until(lambda: not left & set(server.states()))
    demand.withdraw()
    alive.close()
    server.until(lambda: len(server.states()) == 4)
    assert set(server.states()) == {"elsewhere", "a-persons", "another-fleets", "without-owner"}


def test_old_ones_from_elsewhere_are_reaped_if_told_so(server: QueuedServer, keeper: Make) -> None:
    """By the age that somebody has set."""
    elsewhere = replace(Owner.new(), machine="0" * 12)
    server.put(EAST, "old", {"prefect-tpu-fleet": "training", "prefect-tpu-owner": str(elsewhere)})
    time.sleep(3.1)
    server.put(EAST, "new", {"prefect-tpu-fleet": "training", "prefect-tpu-owner": str(elsewhere)})
    keeper(reap_after_seconds=3.0).demand(asked(), 0)
    server.until(lambda: set(server.states()) == {"new"}, 2.9)


def test_owners_elsewhere_that_fall_silent(server: QueuedServer, keeper: Make) -> None:
    """Heard of in the Ray cluster, then no more: gone. One that was never heard of may live."""
    owners = {name: str(replace(Owner.new(), machine="0" * 12)) for name in ("alive", "dead", "unheard")}
    for name, owner in owners.items():
        server.put(EAST, name, {"prefect-tpu-fleet": "training", "prefect-tpu-owner": owner})
    signs = {owners["alive"]: "1", owners["dead"]: "1"}
    keeper(signs=signs).demand(asked(), 0)
    for number in range(35):
        signs[owners["alive"]] = f"sign {number}"
        time.sleep(0.1)
    assert set(server.states()) == {"alive", "unheard"}
    assert len(signs) == 3, "it gives signs itself"


def test_two_keepers_of_one_name(server: QueuedServer, keeper: Make) -> None:
    """Each looks after its own; what one could not delete, the other does once it is closed."""
    first, second = keeper(), keeper()
    first.demand(asked(), 1)
    [own] = up(server, 1)
    second.demand(asked(), 1)
    up(server, 2)
    server.fail("DeleteQueuedResource", "PERMISSION_DENIED", 400)
    first.close_timeout_seconds = 0.5
    assert first.close() == [own.id]
    server.mend()
    server.until(lambda: own.id not in server.states())
    assert len(server.active()) == 1
