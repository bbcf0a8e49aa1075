"""Texts from elsewhere: what every store takes, what a page or a terminal may show, and no more than so much of it."""

from __future__ import annotations

import pickle
import unicodedata
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_tpu.core.errors import AttemptError, GangTimeoutError, RetriesExhaustedError, TpuError
from prefect_tpu.core.evidence import MAX_KEPT_CHARS, HostEvidence
from prefect_tpu.core.kinds import Kind
from prefect_tpu.core.messages import Exited, LogLine, LogRecord, Notice, Progress, Raised, Returned
from prefect_tpu.core.text import MAX_LINE_CHARS, MAX_TEXT_CHARS, clean, cut, visible
from prefect_tpu.core.verdict import Verdict, judge

HOSTILE = "cannot open '/data/\udcff\udc80.txt'\0"
SAID = r"cannot open '/data/\udcff\udc80.txt'\x00"
TEXTS = st.text(st.characters(), max_size=60)


@given(TEXTS)
def test_every_store_takes_what_is_clean(text: str) -> None:
    """UTF-8, no NUL; a text that was so already stays as it is, and so does one that was cleaned."""
    said = clean(text)
    said.encode()
    assert "\0" not in said
    assert clean(said) == said
    if "\0" not in text and not any(unicodedata.category(one) == "Cs" for one in text):
        assert said == text


@given(TEXTS)
def test_nothing_invisible_is_shown(text: str) -> None:
    """No escape sequence, nothing of width zero, nothing that turns the direction; lines and tabs stay."""
    shown = visible(text)
    assert not [one for one in shown if unicodedata.category(one)[0] == "C" and one not in "\n\t"]
    assert visible(shown) == shown


def test_what_is_not_shown_is_named() -> None:
    """Nothing disappears without a trace."""
    assert visible("a\x1b[31mb\0\x07\u200b\u202ec\udcff\r\n\td é 漢 😀") == (
        r"a\x1b[31mb\x00\x07\u200b\u202ec\udcff\r" + "\n\td é 漢 😀"
    )


@pytest.mark.parametrize(
    "said",
    [
        LogLine("stdout", HOSTILE),
        LogRecord(20, "my\udcfflogger", HOSTILE),
        Progress(1, {"loss\udcff": 1.0}),
        Returned(1, HOSTILE),
        Raised("function", "Odd\udcffError", HOSTILE, HOSTILE, None, ("Other\0",)),
        Exited(1, None, (HOSTILE,)),
        Notice("preemption", HOSTILE),
        HostEvidence(0, 0, 0, "slice-\udcff", lost=HOSTILE, notice=HOSTILE, last_stderr=(HOSTILE,)),
        Verdict(Kind.USER_ERROR, HOSTILE, HOSTILE),
    ],
    ids=lambda one: type(one).__name__,
)
def test_what_hosts_say_is_clean(said: object) -> None:
    """Every message and everything that is kept of it, wherever it was made."""
    text = repr(said)
    assert r"\\ud" in text or r"\\x00" in text
    assert "\\ud" not in text.replace("\\\\ud", "")
    assert "\\x00" not in text.replace("\\\\x00", "")


def test_errors_of_ours_are_clean() -> None:
    """Also those whose text is the user's; after pickling as well."""
    verdict = Verdict(Kind.USER_ERROR, "cause")
    for error in (TpuError(HOSTILE), AttemptError(HOSTILE, verdict), GangTimeoutError(HOSTILE, verdict)):
        assert str(error) == str(pickle.loads(pickle.dumps(error))) == SAID
    again = pickle.loads(pickle.dumps(RetriesExhaustedError(HOSTILE, (1, 2))))
    assert (str(again), again.reports) == (SAID, (1, 2))


def test_what_is_long_is_cut_and_counted() -> None:
    """With a limit of its own or the usual one; the mark is all that comes on top."""
    assert cut("abc", limit=3) == "abc"
    assert cut("abcd", limit=3) == "abc... [1 more characters]"
    assert cut("x" * (MAX_LINE_CHARS + 5)).endswith("x... [5 more characters]")
    assert cut("\udcff") == r"\udcff"


def failed(message: str, lines: int = 20) -> HostEvidence:
    """A host with much to say."""
    stderr = tuple(f"{number} {'y' * MAX_LINE_CHARS}" for number in range(lines))
    raised = Raised("function", "ValueError", message, "z" * 100_000, b"pickled")
    return HostEvidence(0, 0, 0, "slice-0", raised=raised, last_stderr=stderr)


def test_a_verdict_is_bounded_whatever_it_is_made_of() -> None:
    """A message, an agent's error, a notice."""
    for one in (
        failed("m" * 10**6),
        replace(failed(""), raised=None, lost="l" * 10**6),
        replace(failed(""), raised=None, notice="n" * 10**6),
    ):
        verdict = judge(None, [one])
        assert len(verdict.cause) < MAX_LINE_CHARS + 100
        assert "more characters]" in verdict.cause


def test_a_ledger_keeps_little_of_each_host() -> None:
    """The last lines of culprits, cut; none of the others; no exception, the end of the traceback."""
    whole = failed("m" * MAX_LINE_CHARS)
    assert len(whole.slim(culprit=True).last_stderr[-1]) <= MAX_KEPT_CHARS
    for culprit in (True, False):
        kept = whole.slim(culprit=culprit)
        assert kept.raised is not None
        assert kept.raised.pickled is None
        assert len(pickle.dumps(kept)) < 3 * MAX_KEPT_CHARS
    assert whole.slim(culprit=False).last_stderr == ()
    short = replace(whole, last_stderr=("first", "last"))
    assert short.slim(culprit=True).last_stderr == ("first", "last")
    assert replace(short, raised=None).slim(culprit=False).last_stderr == ()


def test_no_text_of_a_host_is_without_a_bound() -> None:
    """Whatever it is that a host has so much to say about."""
    raised = Raised("function", "T" * 10**6, "m" * 10**6, "t" * 10**6, None, ("C" * 10**6,) * 3)
    for text in (raised.type_name, raised.message, raised.traceback, *raised.cause_types):
        assert len(text) < MAX_TEXT_CHARS + 100
