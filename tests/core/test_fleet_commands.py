"""What a local fleet may be told: one rule for the driver, who asks, and the supervisor, who is asked."""

from __future__ import annotations

import json
from typing import Any

import pytest

from prefect_tpu.core import fleet_commands
from prefect_tpu.core.fleet_commands import BadRequestError

GOOD: list[dict[str, Any]] = [
    {"do": "preempt", "target": "slice-1/0"},
    {"do": "drain", "target": "slice-1", "seconds": 30},
    {"do": "restore", "target": "slice-1"},
    {"do": "add_slice", "name": None},
    {"do": "add_slice", "name": "training-0a1b2c3d"},
    {"do": "remove_slice", "target": "slice-1"},
    {"do": "detach", "state_file": "/home/somebody/.prefect-tpu/default.json"},
    {"do": "status"},
    {"do": "stop"},
]
BAD: list[tuple[bytes, str]] = [
    (b"hello", "is no JSON"),
    (b"[1]", r"must be a JSON object, not \[1\]"),
    (b"42", "must be a JSON object, not 42"),
    (b"null", "must be a JSON object, not None"),
    (b"\xff\xfe", "is no JSON"),
    (b"[" * 60_000, "is no JSON"),
    (b'{"id": ' + b"9" * 5_000 + b"}", "is no JSON"),
    (b'{"id": 1, "do": "drain", "target": "slice-0", "seconds": NaN}', "NaN is no number"),
    (b'{"do": "status"}', "id must be a whole number.*not None"),
    (b'{"id": true, "do": "status"}', "id must be a whole number.*not True"),
    (b'{"id": -1, "do": "status"}', "id must be a whole number.*not -1"),
    (b'{"id": [], "do": "status"}', r"id must be a whole number.*not \[\]"),
    (b'{"id": 1}', "unknown command None; there are: preempt, drain"),
    (b'{"id": 1, "do": ["status"]}', r"unknown command \['status'\]"),
    (b'{"id": 1, "do": "\\ud800"}', r"unknown command '.ud800'"),
    (b'{"id": 1, "do": "status", "now": 1}', r"status takes nothing, not \['now'\]"),
    (b'{"id": 1, "do": "preempt"}', "preempt: target must be the name of a slice"),
    (b'{"id": 1, "do": "preempt", "target": {"a": 1}}', r"not \{'a': 1\}"),
    (b'{"id": 1, "do": "add_slice", "name": {"a": 1}}', "add_slice: name must be up to 63 letters"),
    (b'{"id": 1, "do": "add_slice", "name": "../x"}', "add_slice: name must be up to 63 letters"),
    (b'{"id": 1, "do": "add_slice", "name": ""}', "add_slice: name must be up to 63 letters"),
    (b'{"id": 1, "do": "add_slice", "name": "' + b"x" * 64 + b'"}', "add_slice: name must be up to 63 letters"),
    (b'{"id": 1, "do": "drain", "target": "slice-0", "seconds": "5"}', "seconds must be a number of seconds.*not '5'"),
    (b'{"id": 1, "do": "drain", "target": "slice-0", "seconds": 1e12}', "at most 31622400, not 1000000000000.0"),
    (b'{"id": 1, "do": "detach", "state_file": "x"}', "state_file must be an absolute path"),
]


@pytest.mark.parametrize("command", GOOD, ids=lambda one: "-".join(map(str, one.values())))
def test_commands(command: dict[str, Any]) -> None:
    """Each comes through as it was."""
    request = {"id": 7} | command
    assert fleet_commands.read(json.dumps(request).encode()) == request


@pytest.mark.parametrize(("line", "says"), BAD, ids=[f"{number}" for number in range(len(BAD))])
def test_what_is_no_command(line: bytes, says: str) -> None:
    """What is wrong with it and what may be, in a few words."""
    with pytest.raises(BadRequestError, match=says) as caught:
        fleet_commands.read(line)
    assert len(str(caught.value)) < 700
