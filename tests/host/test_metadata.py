"""The watcher of GCE's metadata server: each notice once, no busy loop, and quiet where there is no such server."""

from __future__ import annotations

import logging
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import pytest

from prefect_tpu.core.errors import ConfigurationError
from prefect_tpu.core.messages import Notice, Phase
from prefect_tpu.host.metadata import DEFAULT_HOST, HOST_VARIABLE, THREAD_NAME, MetadataWatcher, metadata_url
from prefect_tpu.host.metadata_request import MetadataRequest
from prefect_tpu.host.supervisor import HostSupervisor
from tests.host.host_support import Run, supervisor
from tests.host.metadata_server import MAINTENANCE, PREEMPTED, MetadataServer, Mode, metadata_server

SOON_SECONDS = 10.0
TERMINATE = "TERMINATE_ON_HOST_MAINTENANCE"
MIGRATE = "MIGRATE_ON_HOST_MAINTENANCE"
NEVER_ANSWERING: tuple[Mode, ...] = ("drops", "silent", "other server")


@pytest.fixture
def server() -> Iterator[MetadataServer]:
    with metadata_server() as one:
        yield one


@pytest.fixture
def host() -> Iterator[HostSupervisor]:
    with supervisor() as one:
        yield one


@contextmanager
def watcher(
    url: str | None, on_notice: Callable[[Notice], object] | None = None, **options: float
) -> Iterator[tuple[MetadataWatcher, list[Notice]]]:
    """A watcher in a hurry, and the notices that it has told; stopped at the end, with no thread left."""
    notices: list[Notice] = []
    quick = {"min_poll_seconds": 0.05, "answer_timeout_seconds": 0.3, "absent_after_seconds": 1.0}
    one = MetadataWatcher(url, on_notice or notices.append, **{**quick, "max_retry_seconds": 0.3, **options})  # type: ignore[arg-type]
    try:
        yield one, notices
    finally:
        begin = time.monotonic()
        one.stop()
        assert time.monotonic() - begin < 0.9
        assert threads() == []
        assert not one.watching
        one.stop()


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(THREAD_NAME)]


def wait_until(condition: Callable[[], object], seconds: float = SOON_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


def logged(caplog: pytest.LogCaptureFixture, text: str) -> list[str]:
    return [record.levelname for record in caplog.records if text in record.getMessage()]


@pytest.mark.parametrize(
    ("key", "value", "kind", "argument", "seconds"),
    [
        (PREEMPTED, "TRUE", "preemption", {}, 30.0),
        (PREEMPTED, "TRUE", "preemption", {"preemption_notice_seconds": 7.0}, 7.0),
        (MAINTENANCE, TERMINATE, "maintenance", {}, 60.0),
        (MAINTENANCE, TERMINATE, "maintenance", {"maintenance_notice_seconds": 3600.0}, 3600.0),
    ],
)
def test_notice_is_told_once_with_its_deadline(
    server: MetadataServer, key: str, value: str, kind: str, argument: dict[str, float], seconds: float
) -> None:
    """At the moment of the change, not at the end of the long poll; and not again when polls end without one."""
    with watcher(server.url, long_poll_seconds=1, **argument) as (_, notices):
        wait_until(lambda: server.waiting == 2)
        before = time.time()
        server.set(key, value)
        wait_until(lambda: notices)
        assert time.time() - before < 0.9
        time.sleep(1.5)
        (notice,) = notices
        assert notice.kind == kind
        assert f"{key} is {value}" in notice.reason
        assert notice.seconds_left == seconds
        assert not notice.withdrawn


def test_notice_that_is_there_from_the_start_is_told(server: MetadataServer) -> None:
    server.set(PREEMPTED, "TRUE")
    server.set(MAINTENANCE, TERMINATE)
    with watcher(server.url) as (_, notices):
        wait_until(lambda: len(notices) == 2)
        assert {notice.kind for notice in notices} == {"preemption", "maintenance"}


@pytest.mark.parametrize(
    ("key", "going", "staying"),
    [(PREEMPTED, "TRUE", "FALSE"), (MAINTENANCE, TERMINATE, "NONE"), (MAINTENANCE, TERMINATE, MIGRATE)],
)
def test_notice_is_withdrawn_and_can_come_again(server: MetadataServer, key: str, going: str, staying: str) -> None:
    with watcher(server.url) as (_, notices):
        for count, value in enumerate((going, staying, going), start=1):
            server.set(key, value)
            wait_until(lambda: len(notices) == count)
        assert [notice.withdrawn for notice in notices] == [False, True, False]
        assert len({notice.kind for notice in notices}) == 1
        assert notices[1].seconds_left is None
        assert f"{key} is {staying}" in notices[1].reason


def test_live_migration_and_unknown_values_are_no_notice(
    server: MetadataServer, caplog: pytest.LogCaptureFixture
) -> None:
    """An unknown value neither is a notice nor takes one back."""
    caplog.set_level(logging.INFO)
    with watcher(server.url) as (_, notices):
        server.set(MAINTENANCE, MIGRATE)
        wait_until(lambda: logged(caplog, MIGRATE))
        server.set(PREEMPTED, "PERHAPS")
        wait_until(lambda: logged(caplog, "PERHAPS"))
        assert notices == []
        for value in ("TRUE", "SOON", "TRUE", "FALSE"):
            server.set(PREEMPTED, value)
            time.sleep(0.3)
        wait_until(lambda: len(notices) == 2)
        assert [notice.withdrawn for notice in notices] == [False, True]
    assert logged(caplog, MIGRATE) == ["INFO"]
    assert logged(caplog, "PERHAPS") == ["WARNING"]


def test_quiet_time_costs_no_requests(server: MetadataServer) -> None:
    """One plain question for each key, then one that waits on the server; nothing more while nothing changes."""
    with watcher(server.url) as (one, _):
        wait_until(lambda: server.waiting == 2)
        time.sleep(1.0)
        assert len(server.requests) == 4
        assert one.watching
        assert {query.get("timeout_sec") for _, _, query in server.requests} == {None, "60"}


def test_bad_server_is_not_asked_in_a_busy_loop() -> None:
    """Under the constants that a real agent uses."""
    modes: tuple[Mode, ...] = ("no waiting", "no long polls", "unavailable", "drops", "other server")
    with ExitStack() as stack:
        servers = [stack.enter_context(metadata_server()) for _ in modes]
        for server, mode in zip(servers, modes, strict=True):
            server.behave(mode)
            stack.callback(MetadataWatcher(server.url, lambda notice: None).stop)
        time.sleep(2.0)
        asked = [len(server.requests) for server in servers]
        assert all(2 <= count <= 20 for count in asked), asked
        time.sleep(2.0)
        later = [len(server.requests) - count for server, count in zip(servers, asked, strict=True)]
        assert all(count <= 8 for count in later), later
    assert threads() == []


def test_server_without_long_polls_is_asked_plainly(server: MetadataServer, caplog: pytest.LogCaptureFixture) -> None:
    server.behave("no long polls")
    with watcher(server.url) as (_, notices):
        time.sleep(1.0)
        server.set(PREEMPTED, "TRUE")
        wait_until(lambda: notices)
    assert logged(caplog, "fails") == ["WARNING"]


@pytest.mark.parametrize("mode", ["unavailable", "drops", "silent", "other server", "redirects", "huge", "short"])
def test_outage_is_survived_and_logged_once(
    server: MetadataServer, caplog: pytest.LogCaptureFixture, mode: Mode
) -> None:
    """Longer than `absent_after_seconds`; then a change that came meanwhile is told, an old one not again."""
    caplog.set_level(logging.INFO)
    server.redirect_to = server.url
    server.set(MAINTENANCE, TERMINATE)
    with watcher(server.url, long_poll_seconds=1, absent_after_seconds=0.5) as (one, notices):
        wait_until(lambda: server.waiting == 2)
        wait_until(lambda: len(notices) == 1)
        server.behave(mode)
        time.sleep(1.2)
        assert one.watching
        assert len(notices) == 1
        server.set(PREEMPTED, "TRUE")
        server.behave("normal")
        wait_until(lambda: len(notices) == 2)
        assert notices[1].kind == "preemption"
        wait_until(lambda: logged(caplog, "works again"))
    assert logged(caplog, "fails") == ["WARNING"]
    assert logged(caplog, "works again") == ["INFO"]


def test_server_that_is_away_comes_back(server: MetadataServer) -> None:
    """It is unavailable from the start, for longer than an absent one is waited for: it is a metadata server."""
    server.behave("unavailable")
    with watcher(server.url) as (one, notices):
        time.sleep(1.7)
        assert one.watching
        server.set(PREEMPTED, "TRUE")
        server.behave("normal")
        wait_until(lambda: notices)


@pytest.mark.parametrize("mode", NEVER_ANSWERING)
def test_what_is_no_metadata_server_ends_the_watcher(
    server: MetadataServer, caplog: pytest.LogCaptureFixture, mode: Mode
) -> None:
    """Also one whose answer to everything is TRUE."""
    caplog.set_level(logging.DEBUG, logger="prefect_tpu")
    server.behave(mode)
    with watcher(server.url) as (one, notices):
        wait_until(lambda: not one.watching)
        assert threads() == []
        assert notices == []
        assert len(server.requests) <= 16
    assert [record.levelname for record in caplog.records if record.name.startswith("prefect_tpu")] == ["DEBUG"]


@pytest.mark.parametrize("host", ["127.0.0.1:{closed}", "metadata.invalid", "no..name"])
def test_nobody_there_ends_the_watcher(caplog: pytest.LogCaptureFixture, host: str) -> None:
    """Nobody listens; no such name; a name that none can have."""
    caplog.set_level(logging.DEBUG, logger="prefect_tpu")
    with socket.create_server(("127.0.0.1", 0)) as closed:
        url = f"http://{host.format(closed=closed.getsockname()[1])}/computeMetadata/v1"
    with watcher(url) as (one, notices):
        wait_until(lambda: not one.watching, seconds=60.0)
        assert notices == []
    assert [record.levelname for record in caplog.records if record.name.startswith("prefect_tpu")] == ["DEBUG"]
    assert url in caplog.text


def test_absent_key_ends_only_its_own_thread(server: MetadataServer) -> None:
    server.set(MAINTENANCE, None)
    with watcher(server.url) as (one, notices):
        wait_until(lambda: threads() == [f"{THREAD_NAME} {PREEMPTED}"])
        assert one.watching
        server.set(PREEMPTED, "TRUE")
        wait_until(lambda: notices)


def test_key_that_vanishes_is_asked_for_again(server: MetadataServer) -> None:
    with watcher(server.url) as (_, notices):
        wait_until(lambda: server.waiting == 2)
        server.set(PREEMPTED, None)
        time.sleep(1.5)
        server.set(PREEMPTED, "TRUE")
        wait_until(lambda: notices)


@pytest.mark.parametrize("mode", ["normal", "silent", "unavailable"])
def test_stop_is_prompt(server: MetadataServer, mode: Mode) -> None:
    """In a long poll, while it waits for an answer, and in a pause; `watcher` asserts it."""
    server.behave(mode)
    with watcher(server.url, answer_timeout_seconds=60.0, absent_after_seconds=60.0, max_retry_seconds=60.0):
        wait_until(lambda: len(server.requests) == {"normal": 4, "silent": 2, "unavailable": 10}[mode])
        time.sleep(0.1)


def test_stop_is_prompt_while_it_starts(server: MetadataServer) -> None:
    """At any moment between start and first long poll."""
    for index in range(40):
        with watcher(server.url, answer_timeout_seconds=60.0):
            time.sleep(index * 0.0005)


def test_request_that_was_cut_is_not_sent(server: MetadataServer) -> None:
    request = MetadataRequest("127.0.0.1", server.server_port)
    request.cut()
    with pytest.raises(ConnectionAbortedError):
        request.send(f"/computeMetadata/v1/{PREEMPTED}", {}, 60.0, 60.0)
    assert server.requests == []


def test_stop_is_prompt_while_it_connects() -> None:
    """Packets to the server are dropped, as they are outside Google's network: its queue is full."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        fillers = [socket.socket() for _ in range(4)]
        try:
            for one in fillers:
                one.setblocking(False)
                one.connect_ex(full.getsockname())
            url = f"http://127.0.0.1:{full.getsockname()[1]}/computeMetadata/v1"
            with watcher(url, answer_timeout_seconds=60.0):
                time.sleep(0.3)
                assert len(threads()) == 2
            with watcher(url) as (absent, _):
                wait_until(lambda: not absent.watching)
        finally:
            for one in fillers:
                one.close()


def test_stop_from_within_the_callback(server: MetadataServer) -> None:
    told = threading.Event()

    def stop(notice: Notice) -> None:
        one.stop()
        told.set()

    with watcher(server.url, stop) as (one, _):
        server.set(PREEMPTED, "TRUE")
        assert told.wait(SOON_SECONDS)
        wait_until(lambda: threads() == [])


def test_callback_that_raises_is_logged_and_called_again(
    server: MetadataServer, caplog: pytest.LogCaptureFixture
) -> None:
    notices: list[Notice] = []

    def refuse(notice: Notice) -> None:
        notices.append(notice)
        raise RuntimeError("not now")

    with watcher(server.url, refuse) as (one, _):
        for count, value in enumerate(("TRUE", "FALSE", "TRUE"), start=1):
            server.set(PREEMPTED, value)
            wait_until(lambda: len(notices) == count)
        wait_until(lambda: len(logged(caplog, "failed")) == 3)
        assert one.watching
    assert "not now" in caplog.text


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"])
def test_proxies_are_not_used(server: MetadataServer, monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    with metadata_server() as proxy:
        monkeypatch.setenv(variable, f"http://127.0.0.1:{proxy.server_port}")
        with watcher(server.url) as (_, notices):
            server.set(PREEMPTED, "TRUE")
            wait_until(lambda: notices)
        assert proxy.requests == []


def test_redirects_are_not_followed(server: MetadataServer) -> None:
    with metadata_server() as other:
        other.set(PREEMPTED, "TRUE")
        server.redirect_to = f"http://127.0.0.1:{other.server_port}"
        server.behave("redirects")
        with watcher(server.url) as (_, notices):
            wait_until(lambda: len(server.requests) >= 6)
            assert notices == []
        assert other.requests == []


def test_host_of_googles_own_variable_is_used(server: MetadataServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless an address was given."""
    assert metadata_url({}) == metadata_url({HOST_VARIABLE: ""}) == f"http://{DEFAULT_HOST}/computeMetadata/v1"
    server.set(PREEMPTED, "TRUE")
    monkeypatch.setenv(HOST_VARIABLE, f"127.0.0.1:{server.server_port}")
    with watcher(None) as (_, notices):
        wait_until(lambda: notices)
    monkeypatch.setenv(HOST_VARIABLE, "127.0.0.1:1")
    with watcher(f"{server.url}/") as (_, notices):
        wait_until(lambda: notices)


@pytest.mark.parametrize("url", ["", "metadata", "https://metadata/computeMetadata/v1", "http://", "http://host:port/"])
def test_bad_address_says_what_a_good_one_looks_like(url: str) -> None:
    with pytest.raises(ConfigurationError, match=r"looks like http://metadata\.google\.internal/computeMetadata/v1"):
        MetadataWatcher(url, lambda notice: None)
    assert threads() == []


def test_each_notice_reaches_the_attempt_at_once(server: MetadataServer, host: HostSupervisor) -> None:
    """Neither the end of the long poll nor another notice is waited for; one that is taken back hides none."""
    run = Run(host, time.sleep, 600, preload=("cloudpickle",))
    run.until(lambda event: event == Phase("entered"))
    with watcher(server.url, host.tell):
        wait_until(lambda: server.waiting == 2)
        began = time.monotonic()
        server.set(MAINTENANCE, TERMINATE)
        run.until(lambda event: isinstance(event, Notice))
        assert time.monotonic() - began < 2.0, "it waited for the poll of 5 s to end"
        server.set(PREEMPTED, "TRUE")
        run.until(lambda event: isinstance(event, Notice) and event.kind == "preemption")
        server.set(MAINTENANCE, "NONE")
        run.until(lambda event: isinstance(event, Notice) and event.withdrawn)
    notices = [(one.kind, one.withdrawn) for one in run.events if isinstance(one, Notice)]
    assert notices == [("maintenance", False), ("preemption", False), ("maintenance", True)]
    host.stop(run.id, 0)
    run.exited()


def test_what_stands_is_told_at_the_start_of_an_attempt(server: MetadataServer, host: HostSupervisor) -> None:
    """And not what was taken back before."""
    server.set(PREEMPTED, "TRUE")
    server.set(MAINTENANCE, TERMINATE)
    heard: list[Notice] = []

    def hear(notice: Notice) -> None:
        host.tell(notice)
        heard.append(notice)

    with watcher(server.url, hear):
        wait_until(lambda: len(heard) == 2)
        server.set(MAINTENANCE, MIGRATE)
        wait_until(lambda: len(heard) == 3)
    for _ in range(2):
        run = Run(host, str, preload=("cloudpickle",))
        assert run.value() == ""
        (told,) = [one for one in run.events if isinstance(one, Notice)]
        (first,) = [one for one in heard if one.kind == "preemption"]
        assert told.seconds_left is not None
        assert first.seconds_left is not None
        assert 0 <= told.seconds_left < first.seconds_left, "it has come nearer meanwhile"
        assert replace(told, seconds_left=None) == replace(first, seconds_left=None)


def test_neither_ray_nor_prefect_is_imported() -> None:
    code = "import sys, prefect_tpu.host.metadata; print({'ray', 'prefect', 'jax', 'numpy'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
