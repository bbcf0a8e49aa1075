"""A planted secret is searched for in everything that a run leaves: it is in the host processes, and nowhere else."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import ray
from prefect import flow
from prefect.blocks.system import Secret
from prefect.client.orchestration import SyncPrefectClient
from prefect.settings import get_current_settings
from sqlalchemy import make_url

from prefect_tpu import LocalFleet, RayFleetBlock, TpuMultisliceRunner, TpuSlicePool, task
from prefect_tpu.linux.processes import ZYGOTE_MARK
from prefect_tpu.prefect_api import wait_for_events
from tests.prefect_runs import artifact_rows, log_messages, run_and_state, task_runs
from tests.waiting import eventually

NEEDLE = f"planted-{uuid4().hex}"
"""In every secret of this test."""


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def files_with(text: str, *folders: Path) -> list[str]:
    """Files below these folders that have the text in them."""
    files = [one for folder in folders for one in folder.rglob("*") if one.is_file() and not one.is_symlink()]
    return [str(one) for one in files if text.encode() in one.read_bytes()]


def processes_with_it() -> Iterator[tuple[str, str, str]]:
    """Of every process of this machine that can be read: where it is, its pid, whether it comes from a zygote."""
    for process in Path("/proc").glob("[0-9]*"):
        for where in ("cmdline", "environ"):
            try:
                text = (process / where).read_bytes()
                environment = (process / "environ").read_bytes()
            except OSError:
                continue
            if NEEDLE.encode() in text:
                yield where, process.name, "host" if f"{ZYGOTE_MARK}=".encode() in environment else "other"


def test_a_planted_secret_is_nowhere_but_in_host_processes(
    fleet: LocalFleet,
    client: SyncPrefectClient,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """By value, by a Secret block, in a pool and in a setting; with an attempt that fails beside it."""
    fleet.connect()
    Secret(value=f"{NEEDLE}-block").save("planted", overwrite=True)
    TpuSlicePool(
        fleet=RayFleetBlock(address=fleet.address), accelerator_type="v4", topology="2x2x2",
        secret_env={"FROM_POOL": f"{NEEDLE}-pool"},
    ).save("planted", overwrite=True)  # fmt: skip
    go_on = tmp_path / "go-on"
    of_runner: Any = TpuMultisliceRunner(
        pool=fleet, jax_distributed=False, env={"PLAIN": "seen"},
        secret_env={"FROM_RUNNER": f"{NEEDLE}-runner", "FROM_BLOCK": "secret/planted"},
    )  # fmt: skip

    @task(task_runner=of_runner, retries=1)
    def waits(flag: str) -> list[str]:
        import hashlib
        import os
        import subprocess
        import time

        from prefect_tpu import runtime

        token = os.environ["FROM_RUNNER"]
        if runtime.current().attempt == 1:
            raise PermissionError("the token is refused" if token else "")
        print("holds its secrets")
        with subprocess.Popen(["sleep", "60"]) as holder:
            while not os.path.exists(flag):
                time.sleep(0.05)
            holder.kill()
        return [hashlib.sha256(os.environ[name].encode()).hexdigest() for name in ("FROM_RUNNER", "FROM_BLOCK")]

    def answer() -> tuple[str | None, str | None]:
        import hashlib
        import os

        found = [os.environ.get(name) for name in ("FROM_POOL", "FROM_SETTING")]
        one, other = [hashlib.sha256(text.encode()).hexdigest() if text else None for text in found]
        return one, other

    of_pool = task(task_runner=TpuMultisliceRunner(pool="tpu-slice-pool/planted", jax_distributed=False))(answer)
    of_setting = task(task_runner=TpuMultisliceRunner(pool=fleet, jax_distributed=False))(answer)
    seen: dict[str, Any] = {}

    @flow
    def planted() -> Any:
        first = waits.submit(str(go_on))
        held = eventually(
            lambda: [one for one in processes_with_it() if one[0] == "environ"], "processes with the secrets", 60
        )
        seen["while it runs"] = list(processes_with_it()) or held
        go_on.touch()
        values = first.result()
        return values, of_pool(), seen_with_setting()

    def seen_with_setting() -> Any:
        with monkeypatch.context() as here:
            here.setenv("PREFECT_INTEGRATIONS_TPU_SECRET_ENV", json.dumps({"FROM_SETTING": f"{NEEDLE}-setting"}))
            return of_setting()

    try:
        flow_run_id, state = run_and_state(planted)
    finally:
        go_on.touch()
    values, from_pool, from_setting = state.result()
    assert values == [[digest(f"{NEEDLE}-runner"), digest(f"{NEEDLE}-block")]] * 2
    assert from_pool == [(digest(f"{NEEDLE}-pool"), None)] * 2
    assert from_setting == [(None, digest(f"{NEEDLE}-setting"))] * 2

    # What the function started has them in its environment; nobody's command line has them.
    assert {(where, kind) for where, _, kind in seen["while it runs"]} == {("environ", "host")}
    assert len(seen["while it runs"]) <= 2

    first = next(one for one in task_runs(client, flow_run_id, 3) if one.name.startswith("waits"))
    assert "PermissionError" in json.dumps(artifact_rows(client, first.id))
    log_messages(client, first.id, "the token is refused", "holds its secrets")
    wait_for_events()
    url = get_current_settings().server.database.connection_url
    assert url is not None
    database = Path(str(make_url(url.get_secret_value()).database))
    session = Path(ray._private.worker.global_worker.node.get_session_dir_path())  # type: ignore[attr-defined]
    assert database.exists(), database
    assert (session / "logs").exists(), session
    assert files_with("the token is refused", database.parent)  # what is there is found
    assert files_with("prefect-tpu-agent", session.parent)
    assert files_with(NEEDLE, database.parent, get_current_settings().home, session.parent) == []
    said = capfd.readouterr()
    assert NEEDLE not in said.out + said.err
    assert NEEDLE not in repr((of_runner, os.environ))
