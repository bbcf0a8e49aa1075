"""`prefect-tpu fleet`: simulated slices that stay up."""

from __future__ import annotations

from typing import Annotated, Any

import cyclopts

from prefect_tpu.cli.output import Json, print_table, progress, tell
from prefect_tpu.core import clock
from prefect_tpu.core.errors import ConfigurationError
from prefect_tpu.core.topology import DEFAULT_ACCELERATOR_TYPE, DEFAULT_TOPOLOGY

fleet_app = cyclopts.App(
    name="fleet",
    help=(
        "Simulated TPU slices on this machine, up until `fleet down`, for any number of runs.\n\n"
        "Exit codes: 0 done; 1 failed, or no such fleet is up; 2 wrong usage."
    ),
    version_flags=[],
)

Name = Annotated[str, cyclopts.Parameter(help="Which fleet, if there are several.")]
Target = Annotated[str, cyclopts.Parameter(help="A slice (slice-1) or one host of it (slice-1/0).")]
SliceName = Annotated[str, cyclopts.Parameter(help="A slice, such as slice-1.")]


@fleet_app.command
def up(
    *,
    slices: Annotated[int, cyclopts.Parameter(help="How many slices.")] = 2,
    accelerator_type: Annotated[str, cyclopts.Parameter(help="v4, v5e, v5p, v6e, ...")] = DEFAULT_ACCELERATOR_TYPE,
    topology: Annotated[str, cyclopts.Parameter(help="Chips of every slice.")] = DEFAULT_TOPOLOGY,
    chips_per_host: Annotated[int | None, cyclopts.Parameter(help="If not the type's default.")] = None,
    start_timeout_seconds: Annotated[float, cyclopts.Parameter(help="For all hosts to be up.")] = 180.0,
    name: Name = "default",
    json: Json = False,
) -> None:
    """Start simulated slices that stay up until `fleet down`."""
    from prefect_tpu.fleets import local_daemon
    from prefect_tpu.fleets.local_fleet import LocalFleet

    if slices < 1:
        raise ConfigurationError(f"fleet up: slices={slices} must be at least 1, or no gang can ever run on it")
    fleet = LocalFleet(
        slices=slices,
        accelerator_type=accelerator_type,
        topology=topology,
        chips_per_host=chips_per_host,
        start_timeout_seconds=start_timeout_seconds,
    )
    state = local_daemon.up(name, fleet, progress(json))
    exports = [f"PREFECT_INTEGRATIONS_TPU_RAY_ADDRESS={state.address}"]
    shape = fleet.shape
    if (shape.accelerator_type, shape.topology) != (DEFAULT_ACCELERATOR_TYPE, DEFAULT_TOPOLOGY):
        exports.append(f"PREFECT_INTEGRATIONS_TPU_ACCELERATOR_TYPE={shape.accelerator_type}")
        exports.append(f"PREFECT_INTEGRATIONS_TPU_TOPOLOGY={shape.topology}")
    tell(
        json,
        {"name": name, "address": state.address, "pid": state.pid, "log": state.log, "slices": slices},
        f"The fleet {name!r} is up: {slices} simulated {shape} slices at {state.address}\n"
        "Point your runs at it:\n"
        + "".join(f"  export {one}\n" for one in exports)
        + f"End it with `prefect-tpu fleet down{'' if name == 'default' else f' --name {name}'}`.",
    )


@fleet_app.command
def status(*, name: Name = "default", json: Json = False) -> None:
    """Show every slice: its hosts, and whether a gang has it."""
    from prefect_tpu.fleets import local_daemon, look

    found = local_daemon.request(name, "status", progress(json))
    seen = {one.name: one for one in look.summary_of(found["address"]).slices}
    for one in found["slices"]:
        in_ray = seen.get(one["name"])
        one["state"] = _state_of(one["hosts"])
        one["free"] = bool(in_ray and in_ray.intact and in_ray.free and not in_ray.draining)
        one["chips"] = in_ray.chips if in_ray else 0
    if json:
        tell(json, {"name": name, **found}, "")
        return
    rows = []
    for one in found["slices"]:
        ups = sum(1 for host in one["hosts"] if host["state"] in ("up", "draining"))
        use = "-" if one["state"] != "up" else ("free" if one["free"] else "taken")
        rows.append((one["name"], one["state"], use, f"{ups} of {len(one['hosts'])}", one["chips"]))
    title = f"fleet {name!r}: {found['accelerator_type']} {found['topology']} at {found['address']}"
    print_table(title, ("slice", "state", "use", "hosts up", "chips"), rows)


@fleet_app.command
def preempt(target: Target, /, *, name: Name = "default", json: Json = False) -> None:
    """Take a slice or one host away at once, without notice."""
    killed = _request(name, "preempt", json, target=target)
    tell(json, {"target": target, "hosts": killed}, f"{target} preempted ({killed} hosts).")


@fleet_app.command
def drain(
    target: SliceName,
    /,
    *,
    seconds: Annotated[float, cyclopts.Parameter(help="From the notice to the loss.")] = 30.0,
    name: Name = "default",
    json: Json = False,
) -> None:
    """Give a slice notice of its preemption, and take it away when the time is over."""
    if not clock.is_notice(seconds):
        raise ConfigurationError(f"--seconds {seconds:g}: must be {clock.NOTICE_WORDS}")
    hosts = _request(name, "drain", json, target=target, seconds=seconds)
    tell(
        json,
        {"target": target, "hosts": hosts, "seconds": seconds},
        f"{target} has notice: it goes away in {seconds:g} s ({hosts} hosts).",
    )


@fleet_app.command
def restore(target: Target, /, *, name: Name = "default", json: Json = False) -> None:
    """Bring back what was preempted or drained, and wait until it is up."""
    _request(name, "restore", json, starts_hosts=True, target=target)
    tell(json, {"target": target}, f"{target} is up.")


@fleet_app.command
def add_slice(*, name: Name = "default", json: Json = False) -> None:
    """Add one more slice and wait until it is up."""
    added = _request(name, "add_slice", json, starts_hosts=True)
    tell(json, {"slice": added}, f"{added} is up.")


@fleet_app.command
def down(*, name: Name = "default", json: Json = False) -> None:
    """End the fleet, with everything that runs on it."""
    from prefect_tpu.fleets import local_daemon

    state = local_daemon.down(name, progress(json))
    tell(json, {"name": name, "address": state.address}, f"The fleet {name!r} is down.")


def _request(name: str, do: str, quiet: bool, *, starts_hosts: bool = False, **arguments: Any) -> Any:
    from prefect_tpu.fleets import local_daemon

    return local_daemon.request(name, do, progress(quiet), starts_hosts=starts_hosts, **arguments)


def _state_of(hosts: list[dict[str, Any]]) -> str:
    states = {host["state"] for host in hosts}
    if len(states) == 1:
        return str(states.pop())
    for state in ("draining", "starting"):
        if state in states:
            return state
    return "partial"
