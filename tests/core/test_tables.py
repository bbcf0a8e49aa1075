"""The tables of kinds and stages: a row for each, and no word in them that nobody else knows."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import pytest

from prefect_tpu.core import errors
from prefect_tpu.core.kinds import KINDS, Kind, StateType
from prefect_tpu.core.messages import Stage
from prefect_tpu.core.stages import STAGES

ROOT = Path(__file__).parents[2]
RETRIED = {True: "yes", False: "no", None: "up to the task"}
BY_EVIDENCE = {Kind.INFRASTRUCTURE: {"HangError", "HostProcessError"}, Kind.FATAL: {"ConfigurationError"}}
"""Errors that the evidence may choose in place of that of the kind."""


def documented() -> list[list[str]]:
    """Rows of the table in docs/retries.md: kind, what happened, charged to, retried, shown, raised, what to do."""
    lines = (ROOT / "docs" / "retries.md").read_text().splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    return [row for row in cells if row[0].isupper()]


def test_every_kind_and_every_stage_has_its_row() -> None:
    """A new one without a row would be a KeyError at the end of somebody's run."""
    assert set(KINDS) == set(Kind)
    assert set(STAGES) == set(get_args(Stage))


@pytest.mark.parametrize("kind", Kind)
def test_the_docs_say_the_same_of_each_kind(kind: Kind) -> None:
    """docs/retries.md: charge, retry, the state in Prefect's history, the error."""
    row = KINDS[kind]
    pages = [page for page in documented() if page[0] == kind]
    assert pages
    for _, _, charge, retried, shown, raised, _ in pages:
        assert charge == row.charge
        assert retried == (RETRIED[row.retry] if kind is not Kind.SUCCEEDED else "")
        assert (re.findall(r"^(\w+), then Retrying$", shown) or [""])[0] == row.state
        if kind is not Kind.USER_ERROR:  # the function's own, where it can be shown
            ours = {name for name in re.findall(r"\w+Error", raised) if hasattr(errors, name)}
            assert row.error in ours or ours & BY_EVIDENCE.get(kind, set()) or row.error == raised == ""


@pytest.mark.parametrize("kind", Kind)
def test_the_words_of_a_row_are_known_where_they_are_used(kind: Kind) -> None:
    """Errors to prefect_tpu, states to Prefect; what pays is what makes it be tried again."""
    row = KINDS[kind]
    assert row.error == "" or issubclass(getattr(errors, row.error), errors.TpuError)
    assert row.bar[0] in get_args(StateType)
    assert row.state in ("", row.bar[1])
    assert (row.charge == "failures") == (row.retry is None)
    assert row.charge not in ("preemptions", "infrastructure") or row.retry


@pytest.mark.parametrize("stage", sorted(STAGES))
def test_a_stage_says_what_to_do(stage: Stage) -> None:
    """Of the function the kind of end does."""
    row = STAGES[stage]
    assert (row.resolution == "") == (row.blames == "function")
    assert (row.what != "") == (row.blames == "host")
