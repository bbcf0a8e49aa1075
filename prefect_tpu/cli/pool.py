"""`prefect-tpu pool`: pools that are saved as blocks."""

from __future__ import annotations

from typing import Annotated, Any

import cyclopts

from prefect_tpu.cli.output import EXIT_FAILED, EXIT_OK, Json, out, plain, print_table, tell
from prefect_tpu.core.errors import ConfigurationError
from prefect_tpu.core.gang import sizes_of

pool_app = cyclopts.App(
    name="pool",
    help=(
        "Pools that are saved as blocks in Prefect.\n\n"
        "Exit codes: 0 done; 1 its fleet does not answer or lacks slices; 2 wrong usage, or no such pool."
    ),
    version_flags=[],
)


@pool_app.command(name="status")
def pool_status(
    pool: Annotated[str, cyclopts.Parameter(help='Its name, or "tpu-slice-pool/NAME".')], /, *, json: Json = False
) -> int:
    """Show the slices of a saved pool as they are now. Reserves and starts nothing."""
    from prefect_tpu.blocks import QueuedResourceFleetBlock, load_pool
    from prefect_tpu.prefect_api import waited_for

    loaded = load_pool(pool if "/" in pool else f"tpu-slice-pool/{pool}")
    found: Any = waited_for(loaded.status)
    options = loaded.resolve()
    least = sizes_of(options.num_slices)[0]
    enough = bool(found["fitting"] >= least) if found["up"] else not found["problem"].startswith("no ")
    enough = enough or (found["up"] and isinstance(loaded.fleet, QueuedResourceFleetBlock))  # they come when wanted
    if json:
        tell(json, {"pool": pool, "num_slices": options.num_slices, **found}, "")
        return EXIT_OK if enough else EXIT_FAILED
    kind = f"{options.accelerator_type} {options.topology}"
    out.print(plain(f"{pool}: {found['fleet']}, gangs of {options.num_slices} slices of {kind}"))
    if found["problem"]:
        out.print(plain(found["problem"]))
    else:
        rows = []
        for one in found["slices"]:
            use = one["problem"] or ("draining" if one["draining"] else "free" if one["free"] else "taken")
            hosts = f"{one['hosts_alive']} of {one['hosts_expected'] or '?'}"
            rows.append((one["name"], f"{one['accelerator_type']} {one['topology']}", hosts, use))
        title = f"{found['fitting']} whole slices of {kind}, {found['free']} free"
        print_table(title, ("slice", "kind", "hosts", "use"), rows)
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
    from prefect_tpu.blocks import load_pool
    from prefect_tpu.fleets.queued_fleet import QueuedResourceFleet

    fleet = load_pool(pool if "/" in pool else f"tpu-slice-pool/{pool}").make_fleet()
    if not isinstance(fleet, QueuedResourceFleet):
        raise ConfigurationError(f"{pool} is {fleet.describe()}: only queued resources are left behind")
    deleted = fleet.reap(elsewhere_too=elsewhere)
    tell(json, {"deleted": deleted}, f"deleted: {', '.join(deleted) or 'nothing'}")
