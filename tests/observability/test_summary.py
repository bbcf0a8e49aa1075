"""The run summary: legible and bounded, whatever a run was like."""

from __future__ import annotations

import base64
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace

from prefect_tpu.core.kinds import Kind
from prefect_tpu.core.report import AttemptReport
from prefect_tpu.observability import run_summary
from prefect_tpu.observability.run_summary import RunFacts
from tests.core.test_ledger import report

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
