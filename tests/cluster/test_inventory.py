"""Ray's nodes become slices: whole ones, free ones, and the reason why one is neither."""

from __future__ import annotations

import re
import socket
from typing import Any

import pytest

from prefect_tpu.cluster import tpu, tpu_names
from prefect_tpu.cluster.inventory import FleetSummary, fits, summarise
from prefect_tpu.core.topology import SliceShape
from prefect_tpu.linux import probe

SHAPE = tpu.resolve_shape("v4", "2x2x2")


def node(slice_name: str | None, worker_id: int, **changes: Any) -> dict[str, Any]:
    """One host as Ray describes it."""
    labels = {
        tpu_names.WORKER_ID_LABEL: str(worker_id),
        tpu_names.POD_TYPE_LABEL: changes.pop("pod_type", "v4-16"),
        tpu_names.TOPOLOGY_LABEL: changes.pop("topology", "2x2x2"),
    }
    if slice_name:
        labels[tpu_names.SLICE_NAME_LABEL] = slice_name
    chips = changes.pop("chips", 4)
    resources = {"CPU": 1.0, **({"TPU": float(chips)} if chips else {})}
    if worker_id == 0 and chips:
        resources[tpu_names.head_resource(labels[tpu_names.POD_TYPE_LABEL])] = 1.0
    return {
        "NodeID": f"{slice_name}-{worker_id}",
        "Alive": True,
        "NodeManagerAddress": "10.0.0.1",
        "NodeManagerPort": 1,
        "Resources": resources,
        "Labels": labels if chips else {},
    } | changes


def seen(*nodes: dict[str, Any], taken: tuple[str, ...] = (), draining: tuple[str, ...] = ()) -> FleetSummary:
    available = {
        one["NodeID"]: {} if one["NodeID"] in taken else dict(one["Resources"]) for one in nodes if one["Alive"]
    }
    return summarise(list(nodes), available, dict.fromkeys(draining, 0))


def both(name: str, **changes: Any) -> list[dict[str, Any]]:
    return [node(name, 1, **changes), node(name, 0, **changes)]


def test_slices_and_hosts_are_in_numeric_order() -> None:
    """slice-2 before slice-10, hosts by worker id, whatever order they came in."""
    found = seen(*both("slice-10"), *both("slice-2"))
    assert [one.name for one in found.slices] == ["slice-2", "slice-10"]
    assert [host.worker_id for host in found.slices[0].slice.hosts] == [0, 1]
    assert [host.has_head_resource for host in found.slices[0].slice.hosts] == [True, False]
    assert all(one.intact and one.free and fits(one, SHAPE) for one in found.slices)


@pytest.mark.parametrize(
    ("nodes", "why"),
    [
        ([node("s", 0)], "1 of 2 hosts alive"),
        ([node("s", 0), node("s", 1, Alive=False)], "1 of 2 hosts alive"),
        ([node("s", 0, Alive=False), node("s", 1, Alive=False)], "no host is alive"),
        ([node("s", 0), node("s", 1, chips=2)], "different numbers of chips"),
        ([node("s", 0, chips=2), node("s", 1, chips=2)], "2 of 4 hosts alive"),
        ([node("s", 1), node("s", 2)], r"worker ids \[1, 2\]"),
        ([node("s", 0), node("s", 0, NodeID="other")], r"worker ids \[0, 0\]"),
        ([node("s", 0), node("s", 1, topology="2x2x4")], "different things"),
        (both("s", topology=""), "do not tell what it is"),
    ],
)
def test_a_slice_that_is_not_whole_says_why(nodes: list[dict[str, Any]], why: str) -> None:
    """Partial slices are never handed out, and the reason is in the summary."""
    (one,) = seen(*nodes).slices
    assert not one.intact
    assert not fits(one, SHAPE)
    assert re.search(why, one.describe())


def test_a_replaced_host_does_not_count_twice() -> None:
    """The old host of the same place is dead; the slice is whole."""
    (one,) = seen(node("s", 0, Alive=False, NodeID="old"), *both("s")).slices
    assert fits(one, SHAPE)


def test_a_reserved_host_makes_the_whole_slice_taken() -> None:
    """Free means every chip of every host, and the head resource that other programs claim slices by."""
    (one,) = seen(*both("s"), taken=("s-1",)).slices
    assert (one.intact, one.free) == (True, False)
    assert "taken" in one.describe()


def test_a_draining_host_shows() -> None:
    """It is whole and may be free, but about to go."""
    (one,) = seen(*both("s"), draining=("s-0",)).slices
    assert (one.free, one.draining) == (True, True)
    assert "draining" in one.describe()


def test_another_shape_does_not_fit() -> None:
    """Same type, other topology; and the same with other hosts."""
    (one,) = seen(*both("s")).slices
    assert not fits(one, tpu.resolve_shape("v4", "2x2x1"))
    assert not fits(one, SliceShape("v4", "2x2x2", 8, 1, "v4-16"))


def test_a_nameless_single_host_slice_is_called_by_its_node() -> None:
    """Ray gives no slice name to some single-host TPU VMs."""
    (one,) = seen(node(None, 0, pod_type="v6e-8", topology="2x4", chips=8, NodeID="abc")).slices
    assert (one.name, one.intact) == ("abc", True)


def test_hosts_without_chips_are_counted_apart() -> None:
    """They are not slices, but the message about missing slices names them."""
    found = seen(node(None, 0, chips=0))
    assert found.describe() == "no TPU slices (1 hosts without TPU)"


def test_the_probe_finds_who_is_silent() -> None:
    """One endpoint listens, one refuses."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        good = ("127.0.0.1", server.getsockname()[1])
        with socket.create_server(("127.0.0.1", 0)) as closed:
            refuses = ("127.0.0.1", closed.getsockname()[1])
        assert probe.unreachable([good, refuses]) == {refuses}
        assert probe.unreachable([good]) == set()
