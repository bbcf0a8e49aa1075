"""The parts of the host side that need no process: environment, lines, events."""

from __future__ import annotations

import logging

import pytest

from prefect_tpu.core import text
from prefect_tpu.core.messages import Exited, LogLine, LogRecord, Notice, Phase, Progress
from prefect_tpu.host import streams
from prefect_tpu.host.process.result_summary import MAX_SUMMARY_CHARS, summarize
from prefect_tpu.host.streams import EventBuffer, LineSplitter
from prefect_tpu.host.zygote_environment import zygote_environment


def test_environment_is_the_hosts_own_not_rays() -> None:
    """A variable that Ray sets has the raylet's value, or none; the user's value wins over all."""
    own = {
        "OMP_NUM_THREADS": "1",
        "TPU_VISIBLE_CHIPS": "",
        "RAY_ADDRESS": "x",
        "PREFECT_API_KEY": "x",
        "MEGASCALE_SLICE_ID": "3",
        "JAX_COORDINATOR_ADDRESS": "x",
        "TPU_NAME": "mine",
        "HOME": "/root",
    }
    expected = {"TPU_NAME": "mine", "HOME": "/root"}
    extra = {
        "PREFECT_LOGGING_TO_API_ENABLED": "false",
        "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "false",
        "RAY_RUNTIME_ENV_HOOK": "prefect_tpu.host.process.no_ray.refuse",
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
        "PYTHONHASHSEED": "0",
    }
    assert zygote_environment(own, None, {}) == expected | extra
    assert zygote_environment(own, {"OMP_NUM_THREADS": "8", "OTHER": "x"}, {}) == expected | extra | {
        "OMP_NUM_THREADS": "8"
    }
    assert zygote_environment(own, {"OMP_NUM_THREADS": "8"}, {"OMP_NUM_THREADS": "2"})["OMP_NUM_THREADS"] == "2"
    assert zygote_environment(own, None, {"MEGASCALE_SLICE_ID": "7"})["MEGASCALE_SLICE_ID"] == "7"


@pytest.mark.parametrize(
    ("host", "agent", "user", "merged"),
    [
        ("--a=1", "--a=1", None, "--a=1"),
        ("--a=1", "--a=1", "--b=2", "--a=1 --b=2"),
        ("--a=1", "--b=2", "--a=3", "--a=1 --b=2 --a=3"),  # the second by a runtime_env
        ("--a=1", "--a=1", " --a=1 ", "--a=1"),
        (None, None, "--b=2", "--b=2"),
        (None, "--a=1", "", "--a=1"),
        (None, None, None, None),
    ],
)
@pytest.mark.parametrize("name", ["XLA_FLAGS", "LIBTPU_INIT_ARGS"])
def test_flags_are_merged_the_users_last(
    name: str, host: str | None, agent: str | None, user: str | None, merged: str | None
) -> None:
    """What the host has by itself, what a runtime_env adds, what the user says."""
    parent, own, env = ({} if one is None else {name: one} for one in (host, agent, user))
    assert zygote_environment(own, parent, env).get(name) == merged


@pytest.mark.parametrize(
    ("host", "agent", "user", "seed"),
    [
        (None, None, None, "0"),
        ("5", "5", None, "0"),
        ("5", "7", None, "7"),
        ("5", "5", "9", "9"),
        (None, "7", "9", "9"),
    ],
)
def test_the_seed_of_hashes_is_not_the_hosts_own(
    host: str | None, agent: str | None, user: str | None, seed: str
) -> None:
    """Which may be another on each; a runtime_env's is the user's, too."""
    parent, own, env = ({} if one is None else {"PYTHONHASHSEED": one} for one in (host, agent, user))
    assert zygote_environment(own, parent, env)["PYTHONHASHSEED"] == seed


@pytest.mark.parametrize(
    ("chunks", "lines"),
    [
        ([b"a\nb"], ["a", "b"]),
        ([b"a", b"b\n", b"\n"], ["ab", ""]),
        ([b"dos\r\n", b"dos\r", b"\n"], ["dos", "dos"]),
        ([b"\r1%", b"\r2%", b"\r3%\n"], ["3%"]),
        ([b"1%\r", b"2%\r", b"3%"], ["3%"]),
        ([b"\xff\n"], ["\ufffd"]),
        ([b"\xc3", b"\xa4\n"], ["ä"]),
    ],
)
def test_lines_are_what_a_terminal_would_show(chunks: list[bytes], lines: list[str]) -> None:
    splitter = LineSplitter()
    assert [line for chunk in chunks for line in splitter.feed(chunk)] + splitter.close() == lines


def test_endless_line_takes_bounded_memory() -> None:
    splitter = LineSplitter()
    for _ in range(100):
        assert splitter.feed(b"x" * 100_000) == []
    (line,) = splitter.feed(b"\n")
    assert line == "x" * text.MAX_LINE_CHARS + "... [9980000 more characters]"


def test_only_lines_are_dropped_and_only_the_newest_progress_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "MAX_BUFFERED_LINES", 2)
    buffer = EventBuffer()
    for index in range(4):
        buffer.add(LogLine("stdout", str(index)))
        buffer.add(Progress(index, {}))
    buffer.complete(Exited(0, None))
    poll = buffer.poll(0, 0.0)
    assert poll.events == (LogLine("stdout", "0"), LogLine("stdout", "1"), Progress(3, {}), Exited(0, None))
    assert poll.dropped_lines == 2
    assert buffer.poll(poll.cursor, 10.0).events == ()


def test_room_comes_back_when_lines_have_arrived(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "MAX_BUFFERED_CHARS", 10)
    buffer = EventBuffer()
    buffer.add(LogLine("stdout", "x" * 8))
    buffer.add(LogLine("stdout", "y" * 8))
    first = buffer.poll(0, 0.0)
    assert (len(first.events), first.dropped_lines) == (1, 1)
    assert buffer.poll(first.cursor, 0.0).events == ()
    buffer.add(LogLine("stdout", "z" * 8))
    buffer.add(Phase("entered"))
    assert len(buffer.poll(first.cursor, 0.0).events) == 2


def test_notices_are_never_dropped() -> None:
    """None for another one, nor for the log limits; the last event stays the last."""
    buffer = EventBuffer()
    buffer.limit(lines_per_second=1e-6, burst_lines=0)
    notices = [Notice("maintenance", "a"), Notice("preemption", "b"), Notice("maintenance", "a", withdrawn=True)]
    for one in notices:
        buffer.add(LogLine("stdout", "x"))
        buffer.add(one)
    buffer.complete(Exited(0, None))
    buffer.add(Notice("preemption", "late"))
    assert buffer.poll(0, 0.0).events == (*notices, Exited(0, None))


def test_summary_is_short_and_never_raises() -> None:
    class Bad:
        def __repr__(self) -> str:
            raise RuntimeError("no")

    assert summarize(0.5) == "0.5"
    assert "Bad" in summarize(Bad())
    assert len(summarize("x" * 10_000)) <= MAX_SUMMARY_CHARS
    assert len(summarize(list(range(10_000)))) <= MAX_SUMMARY_CHARS


def test_chatter_is_limited_and_does_not_push_out_warnings() -> None:
    """Lines have one limit, warnings another of the same size; what is over either is counted."""
    buffer = EventBuffer()
    buffer.limit(lines_per_second=1e-6, burst_lines=3)
    for index in range(10):
        buffer.add(LogLine("stdout", str(index)))
    for level in (logging.INFO, logging.WARNING, logging.ERROR, logging.ERROR, logging.ERROR):
        buffer.add(LogRecord(level, "mine", "told"))
    buffer.complete(Exited(0, None))
    poll = buffer.poll(0, 0.0)
    assert [event.text for event in poll.events if isinstance(event, LogLine)] == ["0", "1", "2"]
    assert [event.level for event in poll.events if isinstance(event, LogRecord)] == [30, 40, 40]
    assert poll.dropped_lines == 7 + 2
