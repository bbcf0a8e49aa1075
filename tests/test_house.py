"""Where things are: what docs/design.md says of the folders, and what the folders say of themselves."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from prefect_tpu.wire import syntax

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "prefect_tpu"
DESIGN = (ROOT / "docs" / "design.md").read_text()
SOFT_END_LINES = 300
FOLDERS = sorted(one.parent for one in PACKAGE.rglob("__init__.py") if one.parent != PACKAGE)


def house() -> dict[str, str]:
    """Of every folder or file in the table: where it runs."""
    rows = re.findall(r"^\| (`[^|]+`) \| [^|]+ \| ([^|]+) \|$", DESIGN.partition("## Five ways")[0], re.MULTILINE)
    return {name: runs.strip() for names, runs in rows for name in re.findall(r"`([^`]+)`", names)}


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda one: one.relative_to(PACKAGE).as_posix())
def test_a_folder_says_in_its_first_line_what_it_is_for_and_where_it_runs(folder: Path) -> None:
    """In words that the table of docs/design.md repeats."""
    first = str(compile((folder / "__init__.py").read_text(), "", "exec").co_consts[0]).splitlines()[0]
    match = re.fullmatch(r"(.+) Runs: (.+)\.", first)
    assert match, first
    runs = house()[folder.relative_to(PACKAGE).as_posix()]
    assert re.sub(r" \(.*\)", "", match[2]).lower() == runs.lower(), (match[2], runs)


def test_the_table_has_every_folder_and_file_at_the_top() -> None:
    """And nothing that is not there."""
    there = {one.relative_to(PACKAGE).as_posix() for one in FOLDERS}
    there |= {one.stem for one in PACKAGE.glob("*.py")} - {"__init__", "_version"}
    assert set(house()) == there


def test_files_that_the_design_names_are_there() -> None:
    """A path in it is one below the package, or below the project's root."""
    named = set(re.findall(r"`((?:[a-z_]+/)+[a-z_]+\.(?:py|sh))`", DESIGN))
    assert len(named) > 20
    assert [one for one in sorted(named) if not (PACKAGE / one).exists() and not (ROOT / one).exists()] == []


def test_long_modules_are_explained() -> None:
    """Each one above the soft end, and no other."""
    section = DESIGN.partition("## Long modules")[2].partition("\n## ")[0]
    explained = set(re.findall(r"^\| `([a-z_/]+\.py)` \|", section, re.MULTILINE))
    long = {
        one.relative_to(PACKAGE).as_posix()
        for one in PACKAGE.rglob("*.py")
        if len(one.read_text().splitlines()) > SOFT_END_LINES
    }
    assert explained == long


@pytest.mark.parametrize("file", sorted(PACKAGE.rglob("*.py")), ids=lambda one: one.relative_to(PACKAGE).as_posix())
def test_ray_comes_before_its_parts(file: Path) -> None:
    """`import prefect_ray` puts a lazy module in Ray's place: imported by a part of it, Ray has two `ray._private`."""
    for scope in ast.walk(syntax.parse(file.read_text())):
        whole = False
        for one in scope.body if isinstance(scope, ast.Module | ast.FunctionDef | ast.AsyncFunctionDef) else []:
            if isinstance(one, ast.Import):
                whole |= any(name.name == "ray" for name in one.names)
                assert whole or not any(name.name.startswith("ray.") for name in one.names), one.lineno
            if isinstance(one, ast.ImportFrom) and (one.module or "").partition(".")[0] == "ray":
                assert whole, f"line {one.lineno}: `import ray` first"
