"""What a gang that waits for slices says, and what it says when it has waited for too long."""

from __future__ import annotations

from collections.abc import Sequence

import ray

from prefect_tpu.cluster import inventory
from prefect_tpu.core.patience import Patience, Waiter
from prefect_tpu.core.topology import SliceShape
from prefect_tpu.leases.lease import Extra

MAX_NAMED = 5
"""Of the gangs that hold slices."""


def waiting(
    shape: SliceShape,
    waiter: Waiter,
    patience: Patience,
    *,
    fleet: str,
    there: int,
    position: int,
    holders: Sequence[tuple[str, float]],
    behind: bool,
    size_wait_seconds: float | None,
    coming: str,
) -> str:
    """One line for the logs of a gang that waits.

    Args:
        shape: what every slice must be.
        waiter: how many it takes.
        patience: how long it has waited, and may.
        fleet: how it is called.
        there: how many such slices there are, free or not.
        position: how many gangs of this process came earlier.
        holders: gangs of this process that hold such slices, with the seconds since then.
        behind: whether they are all that it waits for.
        size_wait_seconds: how long the largest number is waited for; None: until the deadline.
        coming: what the fleet says of slices that it brings up.
    """
    wanted, *others = waiter.takes(there)
    number = " or ".join(str(one) for one in (wanted, *others))
    text = f"waiting for {number} free {shape} slices of {fleet}"
    if position:
        text += f", {position} gang{'s' if position > 1 else ''} ahead of this one"
    if holders:
        told = [f"{name or 'a gang'} for {seconds:.0f} s" for name, seconds in holders[:MAX_NAMED]]
        more = len(holders) - len(told)
        text += f", held by {', '.join(told)}" + (f" and {more} more" if more else "")
    counts = ""
    if behind:
        counts = " after the wait for these gangs of this process, which does not count"
    text += f" (at most {patience.left_seconds:.0f} s more{counts}"
    fewer = [one for one in reversed(waiter.sizes) if one < wanted and one not in others]
    if fewer:
        first = "" if size_wait_seconds is None else f"; {wanted} for {size_wait_seconds:g} s (size_wait_seconds)"
        text += f"{first}, then {' or '.join(str(one) for one in fewer)} will do"
    text += ")"
    if there < wanted and not coming:
        text += f"; {_too_few(there)}: it waits for more to join"
    return text + (f"; {coming}" if coming else "")


def smaller(waiter: Waiter, patience: Patience, size: int, there: int, size_wait_seconds: float | None) -> str:
    """For a gang that takes fewer slices than it has waited for; "" for one that takes what it wanted."""
    most = max(one for one in waiter.sizes if not waiter.only_there or one <= max(there, size))
    if size == most:
        return ""
    waited = f"{patience.timeout_seconds:g} s"
    if size_wait_seconds is not None and not patience.over:
        waited = f"{size_wait_seconds:g} s (size_wait_seconds)"
    return f"{most} slices were not free within {waited}: it takes {size}"


def unavailable(
    shape: SliceShape, waiter: Waiter, patience: Patience, *, fleet: str, there: int, position: int, extra: Extra
) -> str:
    """For SliceUnavailableError: what was asked, what there is, what to do."""
    least = waiter.sizes[0]
    beside = "".join(f" and {amount:g} {name} on each" for name, amount in extra)
    behind = patience.behind_seconds
    longer = f", and {behind:.0f} s behind gangs of this process, which do not count" if behind >= 1 else ""
    few = f" {fleet}: {_too_few(there)}." if there < least else ""
    try:
        has = inventory.summary().describe()
    except (ray.exceptions.RayError, ConnectionError) as error:
        has = f"unknown, the cluster does not answer ({error})"
    return (
        f"No {least} free {shape} slices within {patience.timeout_seconds:g} s (lease_timeout_seconds{longer}). "
        f"Asked: {least} x {shape.hosts} hosts x {shape.chips_per_host} chips{beside}.{few} "
        f"{fleet} has: {has}. Ahead in this process's queue: {position}. "
        "Ask for fewer slices or another topology, add slices to the fleet, wait for other gangs to end, "
        "or raise lease_timeout_seconds on the runner."
    )


def _too_few(there: int) -> str:
    return f"there {'is' if there == 1 else 'are'} {there or 'none'} of this kind, free or not"
