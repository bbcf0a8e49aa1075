"""The lines of the hosts in the task run's logs: every one of them, or a count of those that are missing."""

from __future__ import annotations

import logging
import re
from typing import Any
from uuid import UUID

import pytest
from prefect import flow, get_run_logger
from prefect.client.orchestration import SyncPrefectClient

from prefect_tpu import LocalFleet, TpuMultisliceRunner, runtime, task
from tests.waiting import eventually

Runner = TpuMultisliceRunner[Any]


def logs_of(client: SyncPrefectClient, flow_run_id: UUID, last: str) -> list[tuple[int, str]]:
    """All log lines of the flow run, oldest first, once `last` is among them."""

    def look() -> list[tuple[int, str]]:
        found: list[dict[str, Any]] = []
        while True:
            page = client.request(
                "POST",
                "/logs/filter",
                json={
                    "logs": {"flow_run_id": {"any_": [str(flow_run_id)]}},
                    "sort": "TIMESTAMP_ASC",
                    "limit": 200,
                    "offset": len(found),
                },
            ).json()
            found += page
            if len(page) < 200:
                break
        messages = [(one["level"], one["message"]) for one in found]
        return messages if any(last in message for _, message in messages) else []

    return list(eventually(look, f"a log line with {last!r}"))


def test_a_host_that_writes_too_much_is_cut_and_counted(
    one_slice: Runner, client: SyncPrefectClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it may say at once arrives; the rest is counted; errors arrive; other hosts are not cut."""
    monkeypatch.setenv("PREFECT_INTEGRATIONS_TPU_HOST_LOG_LINES_PER_SECOND", "0.001")
    monkeypatch.setenv("PREFECT_INTEGRATIONS_TPU_LOG_BURST_SECONDS", "20000")

    @task(task_runner=one_slice)
    def chatter() -> None:
        if runtime.current().process_id == 1:
            print("only this")
            return
        for index in range(300):
            print(f"chatter {index}")
        logging.getLogger("mine").error("but this matters")

    @flow
    def noisy() -> None:
        chatter()

    state = noisy(return_state=True)
    logs = logs_of(client, state.state_details.flow_run_id, "log lines dropped")
    texts = [message for _, message in logs]
    assert [text for text in texts if "chatter" in text and "host 0]" in text] == [
        f"[slice 0 host 0] chatter {index}" for index in range(20)
    ]
    assert "[slice 0 host 1] only this" in texts
    assert (logging.ERROR, "[slice 0 host 0] but this matters") in logs
    dropped = [message for level, message in logs if "dropped" in message and level == logging.WARNING]
    pattern = r"\[slice 0 host 0\] (\d+) log lines dropped: more than host_log_lines_per_second"
    counts = [int(found[1]) for message in dropped if (found := re.match(pattern, message))]
    assert len(counts) == len(dropped) >= 1
    assert sum(counts) == 280, "however many lines tell it"
    assert all("PREFECT_INTEGRATIONS_TPU_HOST_LOG_LINES_PER_SECOND" in message for message in dropped)


def test_all_hosts_together_have_a_limit_too(
    one_slice: Runner, client: SyncPrefectClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lines that arrive and lines that are counted make up all that were written."""
    monkeypatch.setenv("PREFECT_INTEGRATIONS_TPU_GANG_LOG_LINES_PER_SECOND", "0.001")
    monkeypatch.setenv("PREFECT_INTEGRATIONS_TPU_LOG_BURST_SECONDS", "30000")

    @task(task_runner=one_slice)
    def chatter() -> None:
        for index in range(100):
            print(f"chatter {index}")

    @flow
    def noisy() -> None:
        chatter()

    state = noisy(return_state=True)
    logs = logs_of(client, state.state_details.flow_run_id, "gang_log_lines_per_second")
    arrived = sum("] chatter " in message for _, message in logs)
    dropped = sum(int(found[1]) for _, message in logs if (found := re.search(r"(\d+) log lines dropped", message)))
    assert 0 < arrived <= 31
    assert arrived + dropped == 200


def test_levels_arrive_from_logging_and_from_prefects_logger(fleet: LocalFleet, client: SyncPrefectClient) -> None:
    """Each record once, with its level; what is below the task run's level stays on the host."""
    runner: Runner = TpuMultisliceRunner(pool=fleet, jax_distributed=False, preload=("prefect",))

    @task(task_runner=runner)
    def speak() -> None:
        if runtime.current().process_id == 0:
            for level in ("debug", "info", "warning", "error", "critical"):
                getattr(logging.getLogger("mine"), level)("logging says %s", level)
                getattr(get_run_logger(), level)("Prefect says %s", level)

    @flow
    def heard() -> None:
        speak()

    state = heard(return_state=True)
    logs = logs_of(client, state.state_details.flow_run_id, "Prefect says critical")
    said = sorted((level, message) for level, message in logs if " says " in message)
    assert said == sorted(
        (getattr(logging, level.upper()), f"[slice 0 host 0] {who} says {level}")
        for level in ("info", "warning", "error", "critical")
        for who in ("logging", "Prefect")
    )
