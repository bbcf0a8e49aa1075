"""What a slice is made of: accelerator type, topology, hosts and chips; checked against a table of what exists."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from prefect_tpu.core.errors import TopologyError
from prefect_tpu.core.gang import numeric_key

DEFAULT_ACCELERATOR_TYPE, DEFAULT_TOPOLOGY = "v4", "2x2x2"
"""Of slices where nobody says what they are: of simulated ones, most of all."""
ALIASES = {"v5e": "v5litepod", "v5lite": "v5litepod", "v7": "v7x", "trillium": "v6e", "ironwood": "v7x"}
"""Names that people and consoles use, and the one that Google's API and Ray's tables have."""


@dataclass(frozen=True, slots=True)
class SliceShape:
    """What every slice of a gang is.

    Attributes:
        accelerator_type: "v4", "v5litepod", "v6e", as in Ray's table.
        topology: chips in each dimension, "2x2x2".
        chips_per_host: chips of one host.
        hosts: hosts of one slice.
        pod_type: Google's name for a slice of this size, "v4-16" (for some types it counts cores).
    """

    accelerator_type: str
    topology: str
    chips_per_host: int
    hosts: int
    pod_type: str

    @property
    def chips(self) -> int:
        """Chips of one slice."""
        return self.chips_per_host * self.hosts

    def __str__(self) -> str:
        return f"{self.accelerator_type} {self.topology}"


def normalise_accelerator(
    name: object, table: Mapping[str, Collection[str]], pods: Mapping[str, tuple[str, Collection[str]]] | None = None
) -> str:
    """The table's name for an accelerator type: "v5e" is "v5litepod", "TPU-V4" is "v4".

    Args:
        name: what was given.
        table: topologies of every accelerator type that exists.
        pods: accelerator type and topologies of every pod type: "v4-16" is v4 with "2x2x2". Only for the message.

    Raises:
        TopologyError: there is no such type; the message lists those that there are, and says how a pod type is said.
    """
    known = sorted(table, key=numeric_key)
    if not isinstance(name, str):
        raise TopologyError(
            f"accelerator_type must be a string such as 'v6e', got {name!r} of type {type(name).__name__}. "
            f"Known types: {', '.join(known)}."
        )
    plain = name.strip().lower().removeprefix("tpu").removeprefix("-")
    found = _known_as(plain, known)
    if found is not None:
        return found
    family, _, size = plain.rpartition("-")
    found = _known_as(family, known)
    if found is not None and size.isdecimal():
        _, topologies = (pods or {}).get(f"{found}-{size}", ("", ()))
        says = f"{name!r} is a pod type: accelerator_type={found!r}, "
        if topologies:
            raise TopologyError(f"{says}topology={' or '.join(repr(one) for one in _by_size(topologies))}.")
        raise TopologyError(
            f"{says}and there is no slice of this size. Its topologies: {', '.join(_by_size(table[found]))}."
        )
    also = ", ".join(f"{alias} for {real}" for alias, real in ALIASES.items() if real in known)
    raise TopologyError(
        f"Unknown accelerator type {name!r}. Known types: {', '.join(known)}" + (f" (also {also})." if also else ".")
    )


def _known_as(plain: str, known: Collection[str]) -> str | None:
    candidates = (ALIASES.get(one, one) for one in (plain, f"v{plain}"))
    return next((one for one in candidates if one in known), None)


def _by_size(topologies: Iterable[str]) -> list[str]:
    return sorted(topologies, key=lambda one: (chips_in(one), numeric_key(one)))


def normalise_topology(topology: object, accelerator_type: str, valid: Collection[str]) -> str:
    """The table's spelling of a topology.

    Raises:
        TopologyError: this accelerator type has no such topology; the message lists those that it has.
    """
    valid_text = ", ".join(_by_size(valid))
    if not isinstance(topology, str):
        raise TopologyError(
            f"topology must be a string such as '2x2x2', got {topology!r} of type {type(topology).__name__}. "
            f"Topologies of {accelerator_type}: {valid_text}."
        )
    plain = topology.strip().lower()
    if plain not in valid:
        raise TopologyError(
            f"Unknown topology {topology!r} for accelerator type {accelerator_type}. Valid ones: {valid_text}."
        )
    return plain


def chips_in(topology: str) -> int:
    """Chips of a slice: the product of its dimensions."""
    return math.prod(int(part) for part in topology.split("x"))


def slice_shape(
    accelerator_type: object,
    topology: object,
    *,
    table: Mapping[str, Collection[str]],
    chips_per_host: object,
    pod_type: str,
) -> SliceShape:
    """Check a slice against a table of accelerator types and their topologies.

    Args:
        accelerator_type: any usual spelling.
        topology: such as "4x4".
        table: topologies of every accelerator type that exists.
        chips_per_host: how many chips one host has; has to divide the topology.
        pod_type: Google's name for it.

    Raises:
        TopologyError: it does not exist, or does not divide into hosts.
    """
    name = normalise_accelerator(accelerator_type, table)
    plain = normalise_topology(topology, name, table[name])
    chips = chips_in(plain)
    if isinstance(chips_per_host, bool) or not isinstance(chips_per_host, int) or chips_per_host < 1:
        raise TopologyError(
            f"chips_per_host must be a whole number of at least 1, got {chips_per_host!r}. "
            "Leave it out to get what hosts of this type have."
        )
    if chips % chips_per_host:
        fitting = ", ".join(str(n) for n in range(1, chips + 1) if chips % n == 0 and n <= MAX_CHIPS_PER_HOST)
        raise TopologyError(
            f"{name} {plain} has {chips} chips, which do not divide into hosts of {chips_per_host} "
            f"(chips_per_host). Possible: {fitting}; leave it out to get what hosts of this type have."
        )
    return SliceShape(name, plain, chips_per_host, chips // chips_per_host, pod_type)


MAX_CHIPS_PER_HOST = 8
"""No TPU VM has more; only used to keep lists in messages short."""
