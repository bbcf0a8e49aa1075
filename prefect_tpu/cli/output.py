"""What the commands print: words for people, or JSON. Nothing goes to a terminal but by `plain`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Any

import cyclopts
from rich.console import Console
from rich.table import Table
from rich.text import Text

from prefect_tpu.core.text import visible

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
            err.print(plain(text, "dim"))

    return say


def tell(as_json: bool, value: dict[str, Any], text: str) -> None:
    """Print the value as JSON, or the text."""
    if as_json:
        print(json.dumps(value))
    else:
        out.print(plain(text))


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """As wide as it needs to be where no terminal says how wide that is: names are never cut."""
    table = Table(title=plain(title))
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(plain(cell) for cell in row))
    (out if out.is_terminal else Console(width=MAX_COLUMNS, highlight=False)).print(table)


def plain(text: object, style: str = "") -> Text:
    """Text from elsewhere: no markup of rich's, and nothing in it that a terminal would act on."""
    return Text(visible(str(text)), style)
