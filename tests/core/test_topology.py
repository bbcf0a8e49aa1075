"""Slices by name: what is known, what is refused, and what the refusal says."""

from __future__ import annotations

import pytest

from prefect_tpu.core.errors import ConfigurationError, TopologyError
from prefect_tpu.core.topology import SliceShape, normalise_accelerator, slice_shape

TABLE = {"v4": {"2x2x1", "2x2x2", "4x4x4"}, "v5litepod": {"2x4", "4x4", "16x16"}, "v6e": {"2x4"}, "v7x": {"2x2x1"}}


def shape(accelerator_type: object = "v4", topology: object = "2x2x2", chips_per_host: object = 4) -> SliceShape:
    return slice_shape(accelerator_type, topology, table=TABLE, chips_per_host=chips_per_host, pod_type="v4-16")


@pytest.mark.parametrize(
    ("name", "known_as"),
    [
        ("v4", "v4"),
        ("V4", "v4"),
        ("TPU-V4", "v4"),
        (" tpu-v6e ", "v6e"),
        ("v5e", "v5litepod"),
        ("TPU-V5E", "v5litepod"),
        ("v5litepod", "v5litepod"),
        ("tpu7x", "v7x"),
        ("trillium", "v6e"),
    ],
)
def test_usual_spellings_are_understood(name: str, known_as: str) -> None:
    """What consoles, clouds and Ray call a type all mean the same."""
    assert normalise_accelerator(name, TABLE) == known_as


PODS = {"v4-16": ("v4", ["2x2x2"]), "v4-64": ("v4", ["2x4x4", "2x2x8"]), "v5litepod-16": ("v5litepod", ["4x4"])}


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("v4-16", "'v4-16' is a pod type: accelerator_type='v4', topology='2x2x2'"),
        ("TPU-V4-16", "is a pod type: accelerator_type='v4', topology='2x2x2'"),
        ("v5e-16", "is a pod type: accelerator_type='v5litepod', topology='4x4'"),
        ("v5litepod-16", "is a pod type: accelerator_type='v5litepod', topology='4x4'"),
        ("v4-64", "is a pod type: accelerator_type='v4', topology='2x2x8' or '2x4x4'"),
        ("v4-17", "accelerator_type='v4', and there is no slice of this size. Its topologies: 2x2x1, 2x2x2, 4x4x4"),
        ("v9-16", "Unknown accelerator type 'v9-16'"),
    ],
)
def test_a_pod_type_is_told_how_to_say_it_here(name: str, says: str) -> None:
    """Google's names have the size in them; here it is the topology."""
    with pytest.raises(TopologyError) as caught:
        normalise_accelerator(name, TABLE, PODS)
    assert says in str(caught.value)


def test_hosts_come_from_the_topology() -> None:
    """Chips are the product of the dimensions, hosts their share."""
    one = shape(topology="4X4x4 ")
    assert (one.topology, one.chips, one.hosts) == ("4x4x4", 64, 16)
    assert str(one) == "v4 4x4x4"


def test_an_unknown_type_lists_the_known_ones() -> None:
    """The message has every type, and the other names for them."""
    with pytest.raises(TopologyError, match=r"'v9'.*v4, v5litepod, v6e, v7x.*v5e for v5litepod"):
        shape("v9")


def test_an_unknown_topology_lists_the_valid_ones_by_size() -> None:
    """Small ones first, "16x16" after "4x4"."""
    with pytest.raises(TopologyError, match=r"'3x3'.*v5litepod.*2x4, 4x4, 16x16"):
        shape("v5e", "3x3")


@pytest.mark.parametrize("chips", [3, 5, 16])
def test_chips_that_do_not_divide_are_refused(chips: int) -> None:
    """It says how many chips there are and what would fit."""
    with pytest.raises(TopologyError, match=rf"8 chips.*hosts of {chips} .*Possible: 1, 2, 4, 8"):
        shape(chips_per_host=chips)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"accelerator_type": 4}, "accelerator_type must be a string"),
        ({"accelerator_type": None}, "accelerator_type must be a string"),
        ({"topology": (2, 2, 2)}, "topology must be a string"),
        ({"chips_per_host": 0}, "at least 1"),
        ({"chips_per_host": True}, "at least 1"),
        ({"chips_per_host": 4.0}, "at least 1"),
        ({"chips_per_host": "4"}, "at least 1"),
    ],
)
def test_wrong_types_are_refused(arguments: dict[str, object], says: str) -> None:
    """A TopologyError is a ConfigurationError and a ValueError."""
    with pytest.raises(ConfigurationError, match=says):
        shape(**arguments)
