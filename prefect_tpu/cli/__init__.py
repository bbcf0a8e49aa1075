"""The command `prefect-tpu`. Runs: its own process."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

import cyclopts
from rich.text import Text

from prefect_tpu._version import __version__
from prefect_tpu.cli.fleet import fleet_app
from prefect_tpu.cli.output import EXIT_FAILED, EXIT_OK, EXIT_USAGE, Json, err, out, plain, tell
from prefect_tpu.cli.pool import pool_app
from prefect_tpu.core.errors import ConfigurationError, TpuError

app = cyclopts.App(
    name="prefect-tpu",
    help=(
        "Run Prefect tasks as gangs on TPU slices.\n\n"
        "Exit codes: 0 done; 1 failed, or something is not as it should be; 2 wrong usage, or a setting that cannot be."
    ),
    version=__version__,
    version_flags=["--version"],
)
app.command(fleet_app)
app.command(pool_app)


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
        tell(json, {"ok": not failed, "findings": rows}, "")
    else:
        for one in findings:
            mark = {True: ("ok ", "green"), False: ("not", "red"), None: ("-- ", "yellow")}[one.ok]
            to_do = f"\n    -> {one.to_do}" if one.to_do else ""
            out.print(Text.assemble(mark, plain(f" {one.name}: {one.says}{to_do}")))
    return EXIT_FAILED if failed else EXIT_OK


@app.command
def settings(*, json: Json = False) -> None:
    """Print every setting: its value, where it comes from, and what it means."""
    from prefect_tpu.settings import describe_settings

    found = describe_settings()
    if json:
        tell(json, {"settings": found}, "")
        return
    for one in found:
        out.print(plain(f"{one['name']}={one['value']}  ({one['source']})"))
        out.print(plain(f"    {one['meaning']}"))


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point. Exits with 0 (done), 1 (failed) or 2 (wrong usage)."""
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: Sequence[str]) -> int:
    """Do what the arguments say; the exit code."""
    try:
        code = app(arguments, exit_on_error=False, print_error=True, error_console=err, result_action="return_value")
    except cyclopts.CycloptsError:
        return EXIT_USAGE
    except ConfigurationError as error:
        err.print(Text.assemble(("Error:", "red"), plain(f" {error}")))
        return EXIT_USAGE
    except TpuError as error:
        err.print(Text.assemble(("Error:", "red"), plain(f" {error}")))
        return EXIT_FAILED
    except KeyboardInterrupt:
        err.print("Interrupted.")
        return EXIT_FAILED
    return code if isinstance(code, int) else EXIT_OK
