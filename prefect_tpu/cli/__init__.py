"""The `prefect-tpu` command."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import cyclopts
from rich.console import Console
from rich.table import Table

from prefect_tpu._version import __version__
from prefect_tpu.core.errors import ConfigurationError, TpuError

EXIT_OK, EXIT_FAILED, EXIT_USAGE = 0, 1, 2
MAX_COLUMNS = 1_000
"""Of a table that goes into a file or a pipe."""

app = cyclopts.App(
    name="prefect-tpu",
    help=(
        "Run Prefect tasks as gangs on TPU slices.\n\n"
        "Exit codes: 0 done; 1 failed, or something is not as it should be; 2 wrong usage, or a setting that cannot be."
    ),
    version=__version__,
    version_flags=["--version"],
)
fleet_app = cyclopts.App(
    name="fleet",
    help=(
        "Simulated TPU slices on this machine, up until `fleet down`, for any number of runs.\n\n"
        "Exit codes: 0 done; 1 failed, or no such fleet is up; 2 wrong usage."
    ),
    version_flags=[],
)
app.command(fleet_app)
pool_app = cyclopts.App(
    name="pool",
    help=(
        "Pools that are saved as blocks in Prefect.\n\n"
        "Exit codes: 0 done; 1 its fleet does not answer or lacks slices; 2 wrong usage, or no such pool."
    ),
    version_flags=[],
)
app.command(pool_app)

Name = Annotated[str, cyclopts.Parameter(help="Which fleet, if there are several.")]
Json = Annotated[bool, cyclopts.Parameter(name="--json", negative="", help="Print JSON on stdout, nothing else.")]
Target = Annotated[str, cyclopts.Parameter(help="A slice (slice-1) or one host of it (slice-1/0).")]
SliceName = Annotated[str, cyclopts.Parameter(help="A slice, such as slice-1.")]

_out = Console(soft_wrap=True, highlight=False)
_err = Console(stderr=True, soft_wrap=True, highlight=False)


@fleet_app.command
def up(
    *,
    slices: Annotated[int, cyclopts.Parameter(help="How many slices.")] = 2,
    accelerator_type: Annotated[str, cyclopts.Parameter(help="v4, v5e, v5p, v6e, ...")] = "v4",
    topology: Annotated[str, cyclopts.Parameter(help="Chips of every slice.")] = "2x2x2",
    chips_per_host: Annotated[int | None, cyclopts.Parameter(help="If not the type's default.")] = None,
    start_timeout_seconds: Annotated[float, cyclopts.Parameter(help="For all hosts to be up.")] = 180.0,
    name: Name = "default",
    json: Json = False,
) -> None:
    """Start simulated slices that stay up until `fleet down`."""
    from prefect_tpu.fleets import local_daemon
    from prefect_tpu.fleets.fleet import LocalFleet

    if slices < 1:
        raise ConfigurationError(f"fleet up: slices={slices} must be at least 1, or no gang can ever run on it")
    fleet = LocalFleet(
        slices=slices,
        accelerator_type=accelerator_type,
        topology=topology,
        chips_per_host=chips_per_host,
        start_timeout_seconds=start_timeout_seconds,
    )
    state = local_daemon.up(name, fleet, _progress(json))
    exports = [f"PREFECT_INTEGRATIONS_TPU_RAY_ADDRESS={state.address}"]
    shape = fleet.shape
    if (shape.accelerator_type, shape.topology) != ("v4", "2x2x2"):
        exports.append(f"PREFECT_INTEGRATIONS_TPU_ACCELERATOR_TYPE={shape.accelerator_type}")
        exports.append(f"PREFECT_INTEGRATIONS_TPU_TOPOLOGY={shape.topology}")
    _tell(
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
    from prefect_tpu.cluster import inventory
    from prefect_tpu.fleets import local_daemon

    found = local_daemon.request(name, "status", _progress(json))
    seen = {one.name: one for one in inventory.summary_at(found["address"]).slices}
    for one in found["slices"]:
        in_ray = seen.get(one["name"])
        one["state"] = _state_of(one["hosts"])
        one["free"] = bool(in_ray and in_ray.intact and in_ray.free and not in_ray.draining)
        one["chips"] = in_ray.chips if in_ray else 0
    if json:
        _tell(json, {"name": name, **found}, "")
        return
    table = Table(title=f"fleet {name!r}: {found['accelerator_type']} {found['topology']} at {found['address']}")
    for column in ("slice", "state", "use", "hosts up", "chips"):
        table.add_column(column, overflow="fold")
    for one in found["slices"]:
        ups = sum(1 for host in one["hosts"] if host["state"] in ("up", "draining"))
        use = "-" if one["state"] != "up" else ("free" if one["free"] else "taken")
        table.add_row(one["name"], one["state"], use, f"{ups} of {len(one['hosts'])}", str(one["chips"]))
    _print_table(table)


@fleet_app.command
def preempt(target: Target, /, *, name: Name = "default", json: Json = False) -> None:
    """Take a slice or one host away at once, without notice."""
    killed = _request(name, "preempt", json, target=target)
    _tell(json, {"target": target, "hosts": killed}, f"{target} preempted ({killed} hosts).")


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
    if not seconds > 0:
        raise ConfigurationError(f"--seconds {seconds:g}: must be more than 0")
    hosts = _request(name, "drain", json, target=target, seconds=seconds)
    _tell(
        json,
        {"target": target, "hosts": hosts, "seconds": seconds},
        f"{target} has notice: it goes away in {seconds:g} s ({hosts} hosts).",
    )


@fleet_app.command
def restore(target: Target, /, *, name: Name = "default", json: Json = False) -> None:
    """Bring back what was preempted or drained, and wait until it is up."""
    _request(name, "restore", json, starts_hosts=True, target=target)
    _tell(json, {"target": target}, f"{target} is up.")


@fleet_app.command
def add_slice(*, name: Name = "default", json: Json = False) -> None:
    """Add one more slice and wait until it is up."""
    added = _request(name, "add_slice", json, starts_hosts=True)
    _tell(json, {"slice": added}, f"{added} is up.")


@fleet_app.command
def down(*, name: Name = "default", json: Json = False) -> None:
    """End the fleet, with everything that runs on it."""
    from prefect_tpu.fleets import local_daemon

    state = local_daemon.down(name, _progress(json))
    _tell(json, {"name": name, "address": state.address}, f"The fleet {name!r} is down.")


@pool_app.command(name="status")
def pool_status(
    pool: Annotated[str, cyclopts.Parameter(help='Its name, or "tpu-slice-pool/NAME".')], /, *, json: Json = False
) -> int:
    """Show the slices of a saved pool as they are now. Reserves and starts nothing."""
    from prefect_tpu.blocks.pool import QueuedResourceFleetBlock, load_pool

    loaded = load_pool(pool if "/" in pool else f"tpu-slice-pool/{pool}")
    found: Any = loaded.status(_sync=True)  # type: ignore[call-arg]
    enough = bool(found["fitting"] >= loaded.least_slices) if found["up"] else not found["problem"].startswith("no ")
    enough = enough or (found["up"] and isinstance(loaded.fleet, QueuedResourceFleetBlock))  # they come when wanted
    if json:
        _tell(json, {"pool": pool, "num_slices": loaded.num_slices, **found}, "")
        return EXIT_OK if enough else EXIT_FAILED
    kind = f"{loaded.accelerator_type} {loaded.topology}"
    _out.print(_plain(f"{pool}: {found['fleet']}, gangs of {loaded.num_slices} slices of {kind}"))
    if found["problem"]:
        _out.print(_plain(found["problem"]))
    else:
        table = Table(title=f"{found['fitting']} whole slices of {kind}, {found['free']} free")
        for column in ("slice", "kind", "hosts", "use"):
            table.add_column(column, overflow="fold")
        for one in found["slices"]:
            use = one["problem"] or ("draining" if one["draining"] else "free" if one["free"] else "taken")
            hosts = f"{one['hosts_alive']} of {one['hosts_expected'] or '?'}"
            table.add_row(one["name"], f"{one['accelerator_type']} {one['topology']}", hosts, use)
        _print_table(table)
    return EXIT_OK if enough else EXIT_FAILED


@pool_app.command(name="reap")
def pool_reap(
    pool: Annotated[str, cyclopts.Parameter(help='Its name, or "tpu-slice-pool/NAME".')],
    /,
    *,
    elsewhere: Annotated[
        bool,
        cyclopts.Parameter(
            negative="", help="Also what runs on other machines have created; only if none of them is alive."
        ),
    ] = False,
    json: Json = False,
) -> None:
    """Delete the queued resources that killed runs of a pool's fleet have left behind."""
    from prefect_tpu.blocks.pool import load_pool
    from prefect_tpu.fleets.queued_fleet import QueuedResourceFleet

    fleet = load_pool(pool if "/" in pool else f"tpu-slice-pool/{pool}").make_fleet()
    if not isinstance(fleet, QueuedResourceFleet):
        raise ConfigurationError(f"{pool} is {fleet.describe()}: only queued resources are left behind")
    deleted = fleet.reap(elsewhere_too=elsewhere)
    _tell(json, {"deleted": deleted}, f"deleted: {', '.join(deleted) or 'nothing'}")


@app.command
def doctor(
    *,
    address: Annotated[str | None, cyclopts.Parameter(help='Ray cluster to look at: "auto" or host:port.')] = None,
    json: Json = False,
) -> int:
    """Look at versions, Prefect's API, Ray, slices and hosts; say what to do where something is not as it should be.

    Exit codes: 0 all is well; 1 something is not; 2 wrong usage.
    """
    from prefect_tpu.cli.doctor import examine

    findings = examine(address)
    failed = any(one.ok is False for one in findings)
    if json:
        rows = [{"name": one.name, "ok": one.ok, "says": one.says, "to_do": one.to_do} for one in findings]
        _tell(json, {"ok": not failed, "findings": rows}, "")
    else:
        for one in findings:
            mark = {True: "[green]ok [/green]", False: "[red]not[/red]", None: "[yellow]-- [/yellow]"}[one.ok]
            _out.print(
                f"{mark} {_plain(one.name)}: {_plain(one.says)}"
                + (f"\n    -> {_plain(one.to_do)}" if one.to_do else "")
            )
    return EXIT_FAILED if failed else EXIT_OK


@app.command
def settings(*, json: Json = False) -> None:
    """Print every setting: its value, where it comes from, and what it means."""
    from prefect_tpu.settings import describe_settings

    found = describe_settings()
    if json:
        _tell(json, {"settings": found}, "")
        return
    for one in found:
        _out.print(_plain(f"{one['name']}={one['value']}  ({one['source']})"))
        _out.print(_plain(f"    {one['meaning']}"))


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point. Exits with 0 (done), 1 (failed) or 2 (wrong usage)."""
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: Sequence[str]) -> int:
    """Do what the arguments say; the exit code."""
    try:
        code = app(arguments, exit_on_error=False, print_error=True, error_console=_err, result_action="return_value")
    except cyclopts.CycloptsError:
        return EXIT_USAGE
    except ConfigurationError as error:
        _err.print(f"[red]Error:[/red] {_plain(error)}")
        return EXIT_USAGE
    except TpuError as error:
        _err.print(f"[red]Error:[/red] {_plain(error)}")
        return EXIT_FAILED
    except KeyboardInterrupt:
        _err.print("Interrupted.")
        return EXIT_FAILED
    return code if isinstance(code, int) else EXIT_OK


def _request(name: str, do: str, quiet: bool, *, starts_hosts: bool = False, **arguments: Any) -> Any:
    from prefect_tpu.fleets import local_daemon

    return local_daemon.request(name, do, _progress(quiet), starts_hosts=starts_hosts, **arguments)


def _progress(quiet: bool) -> Any:
    def say(text: str) -> None:
        if not quiet:
            _err.print(f"[dim]{_plain(text)}[/dim]")

    return say


def _tell(as_json: bool, value: dict[str, Any], text: str) -> None:
    if as_json:
        print(json.dumps(value))
    else:
        _out.print(_plain(text))


def _print_table(table: Table) -> None:
    """As wide as it needs to be where no terminal says how wide that is: names are never cut."""
    (_out if _out.is_terminal else Console(width=MAX_COLUMNS, highlight=False)).print(table)


def _plain(text: object) -> str:
    return str(text).replace("[", r"\[")


def _state_of(hosts: list[dict[str, Any]]) -> str:
    states = {host["state"] for host in hosts}
    if len(states) == 1:
        return str(states.pop())
    for state in ("draining", "starting"):
        if state in states:
            return state
    return "partial"


if __name__ == "__main__":
    main()
