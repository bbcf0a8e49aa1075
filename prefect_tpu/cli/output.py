"""What the commands print: words for people, or JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Annotated, Any

import cyclopts
from rich.console import Console
from rich.table import Table

EXIT_OK, EXIT_FAILED, EXIT_USAGE = 0, 1, 2
MAX_COLUMNS = 1_000
"""Of a table that goes into a file or a pipe."""
Json = Annotated[bool, cyclopts.Parameter(name="--json", negative="", help="Print JSON on stdout, nothing else.")]

out = Console(soft_wrap=True, highlight=False)
err = Console(stderr=True, soft_wrap=True, highlight=False)


def progress(quiet: bool) -> Callable[[str], None]:
    """Tells people what happens, on stderr."""

    def say(text: str) -> None:
        if not quiet:
            err.print(f"[dim]{plain(text)}[/dim]")

    return say


def tell(as_json: bool, value: dict[str, Any], text: str) -> None:
    """Print the value as JSON, or the text."""
    if as_json:
        print(json.dumps(value))
    else:
        out.print(plain(text))


def print_table(table: Table) -> None:
    """As wide as it needs to be where no terminal says how wide that is: names are never cut."""
    (out if out.is_terminal else Console(width=MAX_COLUMNS, highlight=False)).print(table)


def plain(text: object) -> str:
    """Text that is no markup of rich's."""
    return str(text).replace("[", r"\[")
