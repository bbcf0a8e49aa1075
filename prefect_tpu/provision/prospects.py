"""What those who wait for slices are told: how far it is, and when it is hopeless. Pure, as `plan.py` is."""

from __future__ import annotations

from prefect_tpu.provision.plan import LIVE, UP, Memory, Pause, Rules, View
from prefect_tpu.provision.problems import FINAL, Cause


def hopeless(view: View, memory: Memory, rules: Rules, *, askers: int) -> str:
    """Why what is missing will not come; "" as long as it may.

    Args:
        view: as for `decide`.
        memory: after the last decision.
        rules: the limits.
        askers: how many gangs want slices; the end of one may make room in a quota for another.
    """
    if memory.failed_joins >= rules.max_failed_joins:
        return (
            f"{memory.failed_joins} slices in a row were ACTIVE for {rules.join_seconds:g} s and are not whole in Ray. "
            "Look at the startup script's log on a TPU VM (`journalctl -u google-startup-scripts`), and whether its "
            "network reaches Ray's head"
        )
    stopped = []
    for zone in view.zones:
        pauses = [pause for key, pause in memory.pauses.items() if key[0] == zone and key[1] in ("", *view.wanted)]
        stopped += [pause for pause in pauses if _stops(pause, view, memory, rules, askers)][:1]
    if len(stopped) < len(view.zones) or _missing(view) <= 0:
        return ""
    return "; ".join(dict.fromkeys(pause.problem.text for pause in stopped))


def describe(view: View, memory: Memory) -> str:
    """How far it is: "2 of 4 slices up, 1 PROVISIONING (us-east5-a), 1 ACCEPTED (us-east5-b)"."""
    mine = [one for one in view.resources if one.kind in view.wanted]
    wanted = sum(view.wanted.values())
    up = [one for one in mine if one.state == UP]
    joined = up if view.ray is None else [one for one in up if one.id in view.ray]
    counts: dict[str, int] = {}
    for one in mine:
        if one.state != UP:
            counts[f"{one.state} ({one.zone})"] = counts.get(f"{one.state} ({one.zone})", 0) + 1
    parts = [f"{len(joined)} of {wanted} slices up"]
    if len(up) > len(joined):
        parts.append(f"{len(up) - len(joined)} ACTIVE and not in Ray yet")
    parts += [f"{count} {what}" for what, count in sorted(counts.items())]
    text = ", ".join(parts)
    for (zone, kind), pause in memory.pauses.items():
        left = pause.until_seconds - view.now
        if kind in ("", *view.wanted) and left > 0 and _missing(view) > 0:
            when = f"tried again in {left:.0f} s" if left < float("inf") else "not tried again"
            text += f"; {zone} {when}: {pause.problem.brief}"
    return text


def _missing(view: View) -> int:
    there = dict.fromkeys(view.wanted, 0)
    for one in view.resources:
        if one.kind in there and one.state in LIVE:
            there[one.kind] += 1
    return sum(max(0, count - there[kind]) for kind, count in view.wanted.items())


def _stops(pause: Pause, view: View, memory: Memory, rules: Rules, askers: int) -> bool:
    if pause.problem.cause in FINAL:
        return True
    if pause.problem.cause is not Cause.QUOTA or askers > 1:
        return False
    return all(
        view.now - memory.last_leaving.get(zone, float("-inf")) > rules.quota_settle_seconds for zone in view.zones
    )
