"""The run summary: legible and bounded, whatever a run was like."""

from __future__ import annotations

import base64
import json
import logging
import re
import unicodedata
import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import pytest

from prefect_tpu.core.kinds import Kind
from prefect_tpu.core.messages import Progress
from prefect_tpu.core.rate import RateLimit
from prefect_tpu.core.report import AttemptReport
from prefect_tpu.observability import artifacts, run_summary, slices_table
from prefect_tpu.observability.logs import MAX_METRICS_CHARS, RunLog
from prefect_tpu.observability.run_summary import RunFacts
from tests.core.test_ledger import gang, report

BUDGETS = "preemptions 1, lost hosts 0 of 10, failures 0 of 3"


def cells(text: str, first: str) -> list[str]:
    """Of the table rows that begin with this, without their first cells."""
    lines = [line for line in text.splitlines() if line.startswith(f"| {first} |")]
    return [cell.strip() for line in lines for cell in line.strip("|").split("|")[1:]]


def picture(text: str) -> str:
    """The SVG text of the only picture."""
    (encoded,) = re.findall(r"!\[[^]]*\]\(data:image/svg\+xml;base64,([^)]*)\)", text)
    svg = base64.b64decode(encoded).decode()
    ElementTree.fromstring(svg)
    return svg


def two_attempts() -> tuple[AttemptReport, ...]:
    """One preemption, 30 of 100 steps done again."""
    return (
        report(1, Kind.PREEMPTED, began=0, run=100, drain=20, steps=(0, 100), lost=1),
        report(2, Kind.SUCCEEDED, began=110, run=90, steps=(70, 200), names=("slice-0", "slice-2")),
    )


def test_a_run_that_went_on_after_a_loss() -> None:
    """What happened, to whom, what it is charged to, what it cost."""
    text = run_summary.render(RunFacts("train", two_attempts(), ended=True, budgets=BUDGETS))
    assert text.startswith("## train: SUCCEEDED after 2 attempts\n")
    assert cells(text, "**79%**") == ["3 min 23 s", "step 200, 30 done again", BUDGETS]
    assert cells(text, "1") == [
        "slice-0, slice-1", "PREEMPTED", "slice 1 host 0, slice 1 host 1", "preemptions", "0 to 100, 30 lost",
        "1.0 s", "2.0 s", "1 min 20 s", "20.0 s", "30.0 s",
    ]  # fmt: skip
    assert cells(text, "2")[:4] == ["slice-0, slice-2", "SUCCEEDED", "", ""]
    assert "- attempt 1: cause of 1" in text
    picture(text)


def test_while_the_run_goes_on() -> None:
    """It says that another attempt follows, and claims nothing about it."""
    text = run_summary.render(RunFacts("train", two_attempts()[:1], ended=False, budgets=BUDGETS))
    assert text.startswith("## train: 1 attempt ended, the next one follows\n")
    assert cells(text, "**0%**")[1] == "step 100"


def test_a_quick_success_has_no_picture() -> None:
    """Nothing to see."""
    text = run_summary.render(RunFacts("quick", (report(1, Kind.SUCCEEDED, began=0, run=1.0),), ended=True, budgets=""))
    assert "data:image" not in text
    assert "no steps reported" in text


def test_no_slices_were_found() -> None:
    """A run without any attempt on slices has a summary too."""
    text = run_summary.render(
        RunFacts("waits", (report(1, Kind.UNPROVISIONED, began=0, names=()),), ended=True, budgets="")
    )
    assert "## waits: UNPROVISIONED after 1 attempt" in text
    assert "**unknown**" in text


def test_names_and_messages_are_only_text() -> None:
    """No markup of markdown or HTML comes from them, and no new cell of the table."""
    nasty = "a | b\n<script>alert(1)</script> `code` [link](http://x) ![p](y) **bold** # $x$ \\"
    first = two_attempts()[0]
    whole = first.gang
    assert whole is not None
    slices = tuple(replace(one, name=f"{nasty}-{index}") for index, one in enumerate(whole.slices))
    bad = replace(first, gang=replace(whole, slices=slices), verdict=replace(first.verdict, cause=nasty), budgets=nasty)
    text = run_summary.render(RunFacts(nasty, (bad,), ended=True, budgets=nasty))
    picture(text)
    outside = re.sub(r"\(data:[^)]*\)", "", text)
    assert "<script" not in outside
    assert not re.search(r"(?<!\\)`", outside)
    assert not re.search(r"(?<!\\)\]\(http", outside)
    assert len(re.split(r"(?<!\\)\|", next(line for line in outside.splitlines() if line.startswith("| 1 |")))) == 8


HIDDEN = "a\x1b[31m\x00\x07\u200b\u202e\ufffe\udcff$\\frac{$ ~~gone~~ https://x.org www.x.org me@x.org 漢"


def named(first: AttemptReport, name: str, cause: str) -> AttemptReport:
    """The attempt, on slices of this name."""
    assert first.gang is not None
    slices = tuple(replace(one, name=f"{name}{index}") for index, one in enumerate(first.gang.slices))
    return replace(first, gang=replace(first.gang, slices=slices), verdict=replace(first.verdict, cause=cause))


def test_what_cannot_be_seen_is_spelled_out() -> None:
    """Control characters, widthless ones, those that turn the direction; no formula, no link, nothing struck out."""
    bad = named(two_attempts()[0], HIDDEN, HIDDEN)
    text = run_summary.render(RunFacts(HIDDEN, (bad,), ended=True, budgets=HIDDEN))
    svg = picture(text)
    assert svg.count('<g id="text_') > 5, "names are drawn"
    for one in (text, svg):
        assert not [here for here in one if unicodedata.category(here)[0] == "C" and here != "\n"]
    outside = re.sub(r"\(data:[^)]*\)", "", text)
    for mark in ("~", "$", "@", "://", "www."):
        assert f"\\{mark}" in outside or mark in ("://", "www.")
        assert not re.search(rf"(?<!\\){re.escape(mark)}", outside), mark
    assert r"a\\x1b" in outside


def test_a_dollar_is_a_dollar() -> None:
    """A name with two of them was a formula, and a bad formula cost the picture."""
    for name in ("a$b$c", r"$\frac{$"):
        svg = picture(run_summary.render(RunFacts(name, (named(two_attempts()[0], name, ""),), ended=True, budgets="")))
        assert f"<!-- Slices of {name} -->" in svg
        assert f"<!-- {name}0 -->" in svg


def test_the_table_is_bounded() -> None:
    """500 attempts with a long message: the newest rows, and how many are left out."""
    whole = replace(two_attempts()[0], verdict=replace(two_attempts()[0].verdict, cause="漢" * 20_000))
    rows, left_out = slices_table.table_of([replace(whole, number=number) for number in range(1, 501)])
    assert len(rows) <= slices_table.MAX_TABLE_BYTES
    found = json.loads(rows)
    assert found[-1]["attempt"] == 500
    assert len(found) + left_out == 1_000
    assert 100 < len(found) < 1_000
    assert all(len(row["cause"]) < slices_table.MAX_CAUSE_CHARS + 50 for row in found)
    assert slices_table.table_of(two_attempts())[1] == 0
    (row, _) = slices_table.rows_of(named(two_attempts()[0], "![p](http://x)<b>", "x"))
    assert row["name"] == r"!\[p\](http\://x)&lt;b&gt;0"


def test_no_name_makes_an_artifact_big() -> None:
    """Of the task, of slices, of the budgets."""
    big = named(two_attempts()[0], "s" * 10**6, "c" * 10**6)
    text = run_summary.render(RunFacts("t" * 10**6, (big,), ended=True, budgets="b" * 10**6))
    assert len(text) < 100_000
    assert len(slices_table.table_of([big])[0]) < 10_000
    assert len(artifacts.artifact_key("slices", "t" * 10**6)) < 250


def test_a_line_of_metrics_is_bounded(caplog: pytest.LogCaptureFixture) -> None:
    """However many the function reports."""
    logger = logging.getLogger("bounded")
    run_log = RunLog(logger, RateLimit(100, 100))
    member = gang("slice-0").members[0]
    with caplog.at_level(logging.INFO, "bounded"):
        run_log.progress(member, Progress(3, {f"a-rather-long-name-{number}": 1.0 for number in range(10_000)}))
        run_log.say("s" * 10**6)
    progress, said = (record.getMessage() for record in caplog.records)
    assert progress.startswith("[slice 0 host 0] step 3: a-rather-long-name-0=1, ")
    assert progress.endswith("more characters]")
    assert len(progress) < MAX_METRICS_CHARS + 100
    assert len(said) < 21_000


def test_many_slices_and_many_attempts() -> None:
    """64 slices with long names, 500 attempts: newest attempts in the table, size bounded, every row in the picture."""
    names = [f"a-rather-long-name-of-a-slice-in-zone-b-{number}" for number in range(64)]
    spares, reports, began = [f"spare-{number}" for number in range(40)], [], 0.0
    for number in range(1, 501):
        lost = number % 64
        kind = Kind.PREEMPTED if number < 500 else Kind.SUCCEEDED
        reports.append(
            report(number, kind, began=began, run=600, steps=(number * 10, number * 10 + 12), names=tuple(names),
                   lost=lost if number < 500 else None)
        )  # fmt: skip
        began += 610
        spares.append(names[lost])
        names[lost] = spares.pop(0)
    text = run_summary.render(RunFacts("train", tuple(reports), ended=True, budgets=BUDGETS))
    assert len(text) < 600_000
    assert "Attempts 1 to 440 are not in the table: 440 PREEMPTED." in text
    row = cells(text, "499")
    assert re.fullmatch(r"64: \S+ … \S+, lost \S+", row[0])
    assert "The 64 slices that were used last; 40 others are not shown." in text
    assert len(picture(text)) < run_summary.MAX_PICTURE_BYTES
