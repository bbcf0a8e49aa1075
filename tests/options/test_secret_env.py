"""Secrets for hosts: what is shown of them, and what travels."""

from __future__ import annotations

import copy
import json
import pickle
from typing import Any

import cloudpickle
import pytest
from prefect.blocks.system import Secret
from pydantic import SecretStr, ValidationError

from prefect_tpu import (
    ConfigurationError,
    LocalFleet,
    QueuedResourceFleet,
    QueuedResourceFleetBlock,
    TpuMultisliceRunner,
    TpuSlicePool,
)
from prefect_tpu.cli import run
from prefect_tpu.core.errors import ProvisioningError
from prefect_tpu.gang.agent_calls import note_failure
from prefect_tpu.gang.plan import GangPlan
from prefect_tpu.settings import current_settings

HUSH = "hf-hush-4711"
URL = f"https://u:{HUSH}@pypi.example/simple"
SETTING = "PREFECT_INTEGRATIONS_TPU_"


def plan_of(runner: TpuMultisliceRunner[Any]) -> GangPlan:
    import logging

    return runner.resolve().plan(timeout_seconds=None, checkpoint_name="x", say=logging.getLogger("test"))  # type: ignore[arg-type]


def runner(**options: Any) -> TpuMultisliceRunner[Any]:
    return TpuMultisliceRunner(pool=LocalFleet(), **options)


def made(what: Any, **options: Any) -> str:
    """The representation of what is made, or the whole error, with all that it was raised from."""
    import traceback

    try:
        one = what(**options)
    except (ValidationError, ConfigurationError) as error:
        return "".join(traceback.format_exception(error))
    return f"{one!r} {one}"


QUEUED = {"project": "my-project", "zones": ["us-east5-b"]}


@pytest.mark.parametrize(
    ("what", "options"),
    [
        (kind, options)
        for kind in (TpuMultisliceRunner, TpuSlicePool)
        for options in (
            {"env": {"HF_TOKEN": HUSH}},
            {"env": {"HF_TOKEN": HUSH, "N": 3}},
            {"env": {"HF_TOKEN": HUSH, "A=B": "x"}},
            {"env": {f"HF_TOKEN={HUSH}": "x"}},
            {"env": [f"HF_TOKEN={HUSH}"]},
            {"env": {"HF_TOKEN": HUSH}, "topology": "3x5"},
            {"env": {"HF_TOKEN": HUSH}, "num_slice": 5},
            {"secret_env": {"HF_TOKEN": HUSH}},
            {"secret_env": {"HF_TOKEN": HUSH, "N": 3}},
            {"secret_env": {"HF_TOKEN": f"secret/{HUSH}!"}},
            {"secret_env": {"HF_TOKEN": f"Secret/{HUSH}"}},
            {"secret_env": {"HF_TOKEN\n": HUSH}},
            {"env": {"HF_TOKEN": "1"}, "secret_env": {"HF_TOKEN": HUSH}},
            {"runtime_env": {"env_vars": {"A": HUSH}, "pip": [f"--index-url {URL}"]}},
            {"runtime_env": {"pip": f"--index-url {URL}"}},
            {"runtime_env": [URL]},
            {"runtime_env": {"working_dir": f"{URL}/x"}},
            {"pool": {"secret_env": {"A": HUSH}}},
        )
        if kind is TpuSlicePool or "num_slice" not in options
    ]
    + [
        (QueuedResourceFleet, QUEUED | {"host_packages": (f"git+https://u:{HUSH}@h/x",)}),
        (QueuedResourceFleet, QUEUED | {"host_packages": f"git+https://u:{HUSH}@h/x"}),
        (QueuedResourceFleetBlock, QUEUED | {"host_packages": [f"git+https://u:{HUSH}@h/x"]}),
        (QueuedResourceFleetBlock, QUEUED | {"host_packages": [f"git+https://u:{HUSH}@h/x"], "join": True}),
        (QueuedResourceFleetBlock, QUEUED | {"startup_script": f"#!/bin/sh\n{HUSH} {{{{ray_address}}}}"}),
        (QueuedResourceFleetBlock, QUEUED | {"startup_script": f"{HUSH}"}),
    ],
    ids=lambda one: getattr(one, "__name__", None) or f"{one!s:.60}".replace(HUSH, "HUSH"),
)
def test_neither_shown_nor_in_an_error(what: Any, options: dict[str, Any]) -> None:
    """The representation and the whole traceback name variables, never values; URLs have no password."""
    assert HUSH not in made(what, **options)


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("A", "Secret/hf-token", "what begins with 'secret/' is the name of a Secret block"),
        ("A", " secret/hf-token", "what begins with 'secret/' is the name of a Secret block"),
        ("A\n", "x", "no control characters"),
        ("A", "x" * 100_000, "has 100003 bytes, and 65536 are allowed"),
    ],
)
def test_what_is_nearly_right_is_not_taken(name: str, value: str, says: str) -> None:
    """It would reach the function as the secret."""
    with pytest.raises(ConfigurationError, match=says):
        TpuMultisliceRunner(secret_env={name: value})


def test_names_are_shown() -> None:
    """They are what a person looks for."""
    says = repr(TpuMultisliceRunner(env={"A": HUSH}, secret_env={"HF_TOKEN": HUSH}))
    assert says == "TpuMultisliceRunner(env={'A': ...}, secret_env={'HF_TOKEN': ...})"
    assert "secret_env={'HF_TOKEN': ...}" in repr(TpuSlicePool(secret_env={"HF_TOKEN": SecretStr(HUSH)}))
    plan = plan_of(runner(secret_env={"HF_TOKEN": HUSH}, env={"A": HUSH}))
    assert HUSH not in repr(plan)
    assert plan.secret_env == {"HF_TOKEN": HUSH}


@pytest.mark.parametrize(
    "value", ['{"HF_TOKEN": "HUSH"}', '{"HF_TOKEN": "HUSH", "N": 3}', '{"HF_TOKEN": "HUSH"', '["HF_TOKEN=HUSH"]']
)
@pytest.mark.parametrize("name", ["ENV", "SECRET_ENV"])
def test_settings_name_variables_only(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`prefect-tpu settings`, with --json too, and the error of one that cannot be."""
    monkeypatch.setenv(SETTING + name, value.replace("HUSH", HUSH))
    codes = {run(["settings"]), run(["settings", "--json"])}
    said = "".join(capsys.readouterr())
    assert HUSH not in said
    assert f"{SETTING}{name}" in said
    if value.endswith('"HUSH"}'):
        assert codes == {0}
        assert "{'HF_TOKEN': ...}" in said
        assert HUSH not in repr(current_settings())
    else:
        assert codes == {2}
        assert HUSH not in made(current_settings)


def test_settings_hide_credentials_in_urls(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Of an index, and of whatever else is a URL."""
    monkeypatch.setenv(f"{SETTING}RUNTIME_ENV", json.dumps({"pip": [f"--index-url {URL}"]}))
    monkeypatch.setenv(f"{SETTING}CHECKPOINT_ROOT", f"s3://u:{HUSH}@bucket/x")
    assert run(["settings"]) == run(["settings", "--json"]) == 0
    said = capsys.readouterr().out
    assert HUSH not in said
    assert "s3://...@bucket/x" in said


def test_what_ray_says_of_a_runtime_env_has_no_password() -> None:
    """Its words have the command that failed."""
    from ray.exceptions import RuntimeEnvSetupError

    from prefect_tpu.gang.host_state import HostState

    host = HostState(None, None)  # type: ignore[arg-type]
    note_failure(host, RuntimeEnvSetupError(f"pip install --index-url {URL} x\nfailed: {URL}"))
    assert host.raised is not None
    assert HUSH not in repr(host.raised)
    assert "https://...@pypi.example/simple" in host.raised.message


def test_in_env_and_in_secret_env() -> None:
    """Refused where both are given; and when the task runs, if they come from two places."""
    for make in (TpuMultisliceRunner, TpuSlicePool):
        with pytest.raises(ValueError, match="'A' is in env and in secret_env: take it out of one of them"):
            make(env={"A": "1"}, secret_env={"A": "2"})
    with pytest.raises(ConfigurationError, match=r"'A' is in env and in secret_env: .*runner, setting and pool"):
        plan_of(TpuMultisliceRunner(pool=TpuSlicePool(secret_env={"A": "2"}), env={"A": "1"}))


def test_where_it_comes_from(monkeypatch: pytest.MonkeyPatch) -> None:
    """As every option: the runner, then a setting that is set, then the pool."""
    pool = TpuSlicePool(secret_env={"A": "pool"})
    assert plan_of(TpuMultisliceRunner(pool=pool)).secret_env == {"A": "pool"}
    monkeypatch.setenv(f"{SETTING}SECRET_ENV", '{"A": "setting"}')
    assert plan_of(TpuMultisliceRunner(pool=pool)).secret_env == {"A": "setting"}
    assert plan_of(TpuMultisliceRunner(pool=pool, secret_env={"A": "runner"})).secret_env == {"A": "runner"}


def test_values_do_not_travel_in_pickles() -> None:
    """A pickle may be stored. Names of blocks travel; a value that is missing then is an error, never silence."""
    for one in (
        runner(secret_env={"A": HUSH, "B": "secret/b"}),
        TpuMultisliceRunner(pool=TpuSlicePool(secret_env={"A": HUSH, "B": "secret/b"})),
    ):
        for dump in (pickle.dumps, cloudpickle.dumps):
            data = dump(one)
            assert HUSH.encode() not in data
            there = pickle.loads(data)
            assert "'A': ..., 'B': ..." in repr(there)
            with pytest.raises(ConfigurationError, match=r"secret_env: its values do not travel in pickles.*'?secret/"):
                plan_of(there)
    assert b"secret/b" in pickle.dumps(runner(secret_env={"B": "secret/b"}))


def test_copies_keep_them() -> None:
    """In the same process."""
    one = runner(secret_env={"A": HUSH})
    for other in (copy.copy(one), copy.deepcopy(one), one.duplicate()):
        assert other == one
        assert plan_of(other).secret_env == {"A": HUSH}


# --- with a Prefect server


def test_names_of_secret_blocks_are_resolved_when_the_task_runs() -> None:
    """In the driver; a text that looks like a number stays one."""
    one = runner(secret_env={"A": "secret/of-a-host", "B": "value"})
    Secret(value=HUSH).save("of-a-host", overwrite=True)
    assert plan_of(one).secret_env == {"A": HUSH, "B": "value"}
    Secret(value="0123").save("of-a-host", overwrite=True)
    assert plan_of(one).secret_env["A"] == "0123"


def test_a_secret_block_that_is_no_variable() -> None:
    """Missing, no text, NUL: by the names of variable and block, before anything is reserved."""
    Secret(value={"a": HUSH}).save("a-mapping", overwrite=True)
    Secret(value=f"{HUSH}\0").save("with-nul", overwrite=True)
    for name, says in {
        "nobodys": r"no Secret block 'secret/nobodys' for 'A'. Saved ones: .*secret/a-mapping.*save\('nobodys'\)",
        "a-mapping": "'secret/a-mapping' for 'A' holds a dict, and must hold a text",
        "with-nul": "'secret/with-nul' for secret_env: the value of 'A' cannot be a variable's",
    }.items():
        with pytest.raises(ConfigurationError, match=says) as caught:
            plan_of(runner(secret_env={"A": f"secret/{name}"}))
        assert HUSH not in str(caught.value)


def test_prefect_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error is about that, and not about a block."""

    def away(*_: Any, **__: Any) -> Any:
        raise OSError("nobody there")

    monkeypatch.setattr(Secret, "load", away)
    with pytest.raises(ProvisioningError, match=r"did not give the Secret block 'secret/x' for 'A'.*PREFECT_API_URL"):
        plan_of(runner(secret_env={"A": "secret/x"}))


def test_a_saved_pool_keeps_them_and_its_page_does_not_show_them(client: Any) -> None:
    """As Prefect's API gives the document to the page; `load` has the values."""
    TpuSlicePool(secret_env={"A": HUSH, "B": "secret/b"}).save("with-secrets", overwrite=True)
    loaded = TpuSlicePool.load("with-secrets")
    assert isinstance(loaded, TpuSlicePool)
    assert loaded.secret_env["A"].get_secret_value() == HUSH
    assert loaded.secret_env["B"].get_secret_value() == "secret/b"
    page = client.request(
        "GET",
        "/block_types/slug/{slug}/block_documents/name/{name}",
        path_params={"slug": "tpu-slice-pool", "name": "with-secrets"},
    )
    assert HUSH not in page.text
    assert list(page.json()["data"]["secret_env"]) == ["A", "B"]
    loaded.save("with-secrets", overwrite=True)
    again = TpuSlicePool.load("with-secrets")
    assert isinstance(again, TpuSlicePool)
    assert again.secret_env["A"].get_secret_value() == HUSH
