r"""What reaches the terminal: texts from elsewhere are text, not rich's markup, not a terminal's escape sequences."""

from __future__ import annotations

import pytest

from prefect_tpu.cli import output, run

HOSTILE = "[red]a[/x] \\[/y] \x1b[2J\x07\u202e\udcff"
SHOWN = r"[red]a[/x] \[/y] \x1b[2J\x07\u202e\udcff"


def test_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    """Its title and every cell."""
    output.print_table(HOSTILE, ("slice", "use"), [(HOSTILE, 3)])
    said = capsys.readouterr().out
    assert said.count(SHOWN) == 2
    assert "\x1b" not in said


def test_tables_are_not_cut_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """Names of slices can be long, and somebody greps for them."""
    output.print_table("", ("slice", "use"), [("gke-tpu-v6e-" + "x" * 150, "free")])
    assert "gke-tpu-v6e-" + "x" * 150 in capsys.readouterr().out


def test_words(capsys: pytest.CaptureFixture[str]) -> None:
    """On stdout and stderr; as JSON it is what it was."""
    output.tell(False, {}, HOSTILE)
    output.progress(False)(HOSTILE)
    said = capsys.readouterr()
    assert (said.out, said.err) == (f"{SHOWN}\n", f"{SHOWN}\n")
    output.tell(True, {"name": HOSTILE}, "")
    assert capsys.readouterr().out == r'{"name": "[red]a[/x] \\[/y] \u001b[2J\u0007\u202e\udcff"}' + "\n"


def test_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    """By its first word, and its exit code."""
    assert run(["fleet", "status", "--name", HOSTILE]) == output.EXIT_USAGE
    said = capsys.readouterr().err
    assert said.startswith("Error: '[red]a[/x] ")
    assert "\x1b" not in said


def test_a_finding_of_doctor(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Named by a variable of the environment."""
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.setenv(f"PREFECT_INTEGRATIONS_TPU_{HOSTILE.upper()}", "1")
    assert run(["doctor"]) == output.EXIT_FAILED
    said = capsys.readouterr().out
    assert r"not PREFECT_INTEGRATIONS_TPU_[RED]A[/X] \[/Y] \x1b[2J\x07\u202e\udcff: there is no such setting" in said
    assert "\x1b" not in said
