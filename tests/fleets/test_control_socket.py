"""The control socket of a local fleet: no message ends it, and no client holds it up."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import string
from collections.abc import Iterator
from typing import Any

import pytest
from prefect import flow

from prefect_tpu import ConfigurationError, LocalFleet, ProvisioningError, TpuMultisliceRunner, runtime, task
from prefect_tpu.cluster import session
from prefect_tpu.core import fleet_commands
from tests.core.test_fleet_commands import BAD
from tests.waiting import eventually

pytestmark = pytest.mark.timeout(180)
FUZZED = 400


@pytest.fixture
def control(fleet: LocalFleet) -> str:
    """Of the fleet of all tests."""
    return os.path.join(fleet.status()["directory"], "control")


def connect(control: str) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(20)
    connection.connect(control)
    return connection


def answer(control: str, line: bytes) -> dict[str, Any]:
    """To one line on a connection of its own."""
    with connect(control) as connection:
        with contextlib.suppress(OSError):  # it may be closed before all of it is written
            connection.sendall(line + b"\n")
        for one in connection.makefile("rb"):
            message = json.loads(one)
            if "progress" not in message:
                return dict(message)
    raise AssertionError(f"no answer to {line[:100]!r}")


def garbage(dice: random.Random) -> Iterator[bytes]:
    """Bytes, JSON, and commands with something wrong; nothing that a fleet would do."""
    values: list[Any] = [None, True, -1, 1e300, "", "x" * 300, "\0", "\ud800", [], {}, [[1]], {"a": {}}, 2**70]
    while True:
        match dice.randrange(4):
            case 0:
                line = bytes(dice.randrange(256) for _ in range(dice.randrange(1, 80))).replace(b"\n", b" ")
            case 1:
                line = json.dumps(dice.choice(values)).encode()
            case 2:
                line = "".join(dice.choice('{}[]":,01ed ') for _ in range(dice.randrange(1, 60))).encode()
            case _:
                do: Any = dice.choice([*fleet_commands.COMMANDS, "", *values])
                request = {"id": dice.choice([1, *values]), "do": do}
                for name in ("target", "seconds", "name", "state_file", dice.choice(string.ascii_letters)):
                    if dice.random() < 0.5:
                        request[name] = dice.choice(values)
                line = json.dumps(request).encode()
        with contextlib.suppress(fleet_commands.BadRequestError):
            if fleet_commands.read(line)["do"] != "status":
                continue
        if line.strip():
            yield line


def where() -> str:
    return runtime.current().slice_name


def test_a_fleet_survives_every_malformed_message(fleet: LocalFleet, control: str, prefect_server: None) -> None:
    """Each is answered; a client that does not read, and one that never ends its line, hold nobody up; a gang runs."""
    silent, endless = connect(control), connect(control)
    silent.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        for _ in range(20_000):
            silent.send(b'{"id": 1, "do": "status"}\n')
    with contextlib.suppress(OSError):
        for _ in range(100):
            endless.sendall(b"x" * 10_000)
    for line, _ in BAD:
        assert answer(control, line)["ok"] is False, line[:100]
    assert f"more than {fleet_commands.MAX_LINE_BYTES} bytes" in answer(control, b"[" * 100_000)["error"]
    lines = garbage(random.Random(13))
    with connect(control) as connection:
        replies = connection.makefile("rb")
        for _ in range(FUZZED):
            line = next(lines)
            connection.sendall(line + b"\n")
            assert "ok" in json.loads(replies.readline()), line
    silent.close()
    endless.close()
    with pytest.raises(ConfigurationError, match="name must be up to 63 letters"):
        fleet.add_slice("a b")
    assert (
        "only who started the fleet" in answer(control, b'{"id": 1, "do": "detach", "state_file": "/tmp/x"}')["error"]
    )
    assert [one["name"] for one in fleet.status()["slices"]] == ["slice-0", "slice-1"]

    runner: TpuMultisliceRunner[Any] = TpuMultisliceRunner(pool=fleet, num_slices=1, jax_distributed=False)

    @flow
    def go() -> list[str]:
        return list(task(task_runner=runner)(where)())

    assert len(set(go())) == 1


def test_a_fleet_that_has_ended_says_why(fleet: LocalFleet) -> None:
    """How its supervisor went, and the last lines of its log."""
    small = LocalFleet(slices=0, topology="2x2x1")
    small.connect()
    session.disconnect()  # else Ray ends this process when its raylet goes
    os.kill(small.status()["pid"], signal.SIGKILL)
    eventually(lambda: small.address == "", "the supervisor is gone")
    with pytest.raises(ProvisioningError, match=r"(?s)not up any more.*by signal 9.*head of the local fleet is up"):
        small.status()
    small.close()
    fleet.connect()
