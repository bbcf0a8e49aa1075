"""What an earlier run has left behind: only what carries our labels, and whose owner is certainly gone."""

from __future__ import annotations

from collections.abc import Iterable

from prefect_tpu.provision.owner import Owner
from prefect_tpu.provision.plan import LEAVING, Resource


def left_behind(
    resources: Iterable[Resource], *, reap_after_seconds: float | None, unix_now: float, unseen_too: bool = False
) -> list[Resource]:
    """Those that may be deleted.

    Args:
        resources: of one fleet.
        reap_after_seconds: what an owner has left that cannot be seen from here (on another machine, in another
            container) may go when it is so old; None: never.
        unix_now: in seconds.
        unseen_too: a person says that no owner elsewhere lives.
    """
    found = []
    for one in resources:
        owner = Owner.parse(one.owner)
        if owner is None or one.state in LEAVING:
            continue
        gone = owner.gone
        if gone is None:
            age = unix_now - one.created_unix_seconds if one.created_unix_seconds else 0.0
            gone = unseen_too or (reap_after_seconds is not None and age >= reap_after_seconds)
        if gone:
            found.append(one)
    return found
