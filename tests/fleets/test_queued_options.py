"""The options of a fleet of queued resources: declared once, the same rules for fleet and block."""

from __future__ import annotations

import dataclasses
import pickle
import subprocess
import sys
from typing import Any

import pytest
from pydantic import ValidationError

from prefect_tpu import ConfigurationError, QueuedResourceFleet, QueuedResourceFleetBlock
from prefect_tpu.fleets.queued_options import QueuedOptions
from prefect_tpu.fleets.queued_spec import QueuedSpec

NEEDED: dict[str, Any] = {"project": "my-project", "zones": ["us-east5-b"]}
ABOVE_0, TEXT = "must be a number of seconds that is more than 0", "must be a text that is not empty"
BAD: list[tuple[str, Any, str]] = [
    ("project", "My Project", "must be the id of a Google Cloud project"),
    ("zones", [], "must be one or more zones in order of preference"),
    ("zones", ["us-east5"], "must be names of zones"),
    ("name", "A B", "must be lower-case letters"),
    ("provisioning", "cheap", "must be 'spot', 'on-demand' or 'reservation'"),
    ("reservation_name", "ours", "must be given for provisioning='reservation', and only then"),
    *((name, " ", TEXT) for name in ("runtime_version", "network", "subnetwork", "service_account")),
    ("host_packages", [" "], "must be requirements as for pip"),
    ("labels", {"A": "b"}, "lower-case letters, digits"),
    ("host_packages", ["-r x"], "must be requirements as for pip"),
    ("host_packages", ["git+https://u:p@host/x"], "must have no password in it"),
    ("host_package", "prefect-tpu", "must be where TPU VMs get prefect_tpu: 'gs://"),
    ("host_package", "https://host/x.whl", "must be where TPU VMs get prefect_tpu"),
    ("host_package", "git+https://host/x@main", "must be where TPU VMs get prefect_tpu"),
    ("host_package", "/home/me/x.whl", "must be where TPU VMs get prefect_tpu"),
    ("host_package", "https://u:p@host/x.whl#sha256=" + "0" * 64, "must have no password in it"),
    ("host_lock", "lock.txt", "must be the address of a lock file"),
    ("token_secret", "hf_token", "must be the name of a secret in Secret Manager"),
    ("token_secret", "projects/p/secrets/s", "must come with service_account"),
    ("endpoint", "x", "must be 'host:port'"),
    ("namespace", "", "must be a text of at least 1 character"),
    ("idle_release_seconds", -1, "must be a number of seconds that is not negative"),
    *(
        (name, value, ABOVE_0)
        for name in QueuedOptions.model_fields
        if name.endswith("_seconds") and name != "idle_release_seconds"
        for value in (0, "soon")
    ),
    ("valid_until_seconds", float("inf"), "must be a number of seconds that ends"),
    ("valid_until_seconds", 1e300, "must be a number of seconds that ends"),
    ("owner_silence_seconds", 100, "must be at least 190"),
]


def test_fields_are_generated() -> None:
    """After a change of an option: `python -m prefect_tpu.fleets.queued_generate`."""
    done = subprocess.run(
        [sys.executable, "-m", "prefect_tpu.fleets.queued_generate", "--check"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_fleet_and_block_have_the_same_fields() -> None:
    """In the same order, with the same defaults."""
    fleet, names = QueuedResourceFleet(**NEEDED), list(QueuedOptions.model_fields)
    assert [one.name for one in dataclasses.fields(fleet)] == [*names, "run_labels"]
    assert list(QueuedResourceFleetBlock.model_fields) == names
    block = QueuedResourceFleetBlock(**NEEDED)
    assert block.make("v6e", "4x4", None) == fleet


@pytest.mark.parametrize(("name", "value", "words"), BAD)
def test_refused_in_the_same_words(name: str, value: Any, words: str) -> None:
    """By name, with the value and what is allowed."""
    with pytest.raises(ConfigurationError) as caught:
        QueuedResourceFleet(**(NEEDED | {name: value}))
    assert f"QueuedResourceFleet({name}=" in str(caught.value)
    assert words in str(caught.value)
    with pytest.raises(ValidationError) as invalid:
        QueuedResourceFleetBlock(**(NEEDED | {name: value}))
    assert name in str(invalid.value)
    assert words in str(invalid.value)


def test_every_option_is_in_args() -> None:
    """In the docstring of the fleet."""
    text = QueuedResourceFleet.__doc__ or ""
    assert [name for name in QueuedOptions.model_fields if f"{name}:" not in text and f"{name}," not in text] == []


def test_what_it_is_asked_for_is_a_value_of_its_own() -> None:
    """It does nothing, and pickles as what it was."""
    spec = QueuedSpec(**NEEDED)
    assert type(pickle.loads(pickle.dumps(spec))) is QueuedSpec
    assert not hasattr(spec, "connect")
    fleet = QueuedResourceFleet(**NEEDED).for_flow_run("run")
    again = pickle.loads(pickle.dumps(fleet))
    assert (type(again), again, again.run_labels) == (QueuedResourceFleet, fleet, fleet.run_labels)
