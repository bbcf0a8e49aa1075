"""What an earlier run has left behind: only what carries our labels, and whose owner is certainly gone."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from prefect_tpu.provision.owner import Owner
from prefect_tpu.provision.plan import LEAVING, Resource


def left_behind(
    resources: Iterable[Resource],
    *,
    reap_after_seconds: float | None,
    unix_now: float,
    unseen_too: bool = False,
    silent: Callable[[str], bool] = lambda owner: False,  # noqa: ARG005
) -> list[Resource]:
    """Those that may be deleted.

    Args:
        resources: of one fleet.
        reap_after_seconds: what an owner has left that cannot be seen from here (on another machine, in another
            container) may go when it is so old; None: never.
        unix_now: in seconds.
        unseen_too: a person says that no owner elsewhere lives.
        silent: whether an owner elsewhere has given signs of life in the Ray cluster, and then stopped.
    """
    found = []
    for one in resources:
        owner = Owner.parse(one.owner)
        if owner is None or one.state in LEAVING:
            continue
        gone = owner.gone
        if gone is None:
            age = unix_now - one.created_unix_seconds if one.created_unix_seconds else 0.0
            old = reap_after_seconds is not None and age >= reap_after_seconds
            gone = unseen_too or old or silent(one.owner)
        if gone:
            found.append(one)
    return found


class Listener:
    """Hears the signs of life of owners elsewhere; by this process's own clock, as clocks may differ."""

    def __init__(self, silence_seconds: float) -> None:
        self.silence_seconds = silence_seconds
        self._heard: dict[str, tuple[str, float]] = {}

    def silent(self, owner: str, sign: str | None, now: float) -> bool:
        """Whether this sign of life has been its last one for `silence_seconds`; never if there is none at all."""
        if sign is None:
            self._heard.pop(owner, None)
            return False
        last, since = self._heard.get(owner, ("", now))
        if sign != last:
            since = now
        self._heard[owner] = (sign, since)
        return now - since >= self.silence_seconds
