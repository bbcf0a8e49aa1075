"""A small process that deletes what its owner has created in the cloud, if the owner ends without doing so.

A flow run that is cancelled ends by a signal, and a killed one by SIGKILL: neither comes to Python's exit handlers. The
janitor waits for the end of a pipe, imports Google's client only then, and is in a session of its own.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

DISMISSED = "done"
LOOK_SECONDS = 1.0
QUIET_LOOKS = 3
"""So many times in a row nothing of the owner's is listed, until all is taken to be gone: lists lag behind."""
EXIT_SECONDS = 5.0


class Janitor:
    """The owner's side. `config` is what `sweep` takes; it goes through the pipe, so credentials show nowhere."""

    def __init__(self, config: dict[str, Any]) -> None:
        path = [str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(path)},
        )
        self._write(json.dumps(config))

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def dismiss(self) -> None:
        """The owner has deleted everything itself."""
        self._write(DISMISSED)
        self.take_over()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(EXIT_SECONDS)

    def take_over(self) -> None:
        """The owner could not: the janitor goes on trying, when the owner has gone, too."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()

    def _write(self, line: str) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.write(f"{line}\n".encode())
            self._process.stdin.flush()


def sweep(config: dict[str, Any]) -> None:
    """Delete every queued resource of an owner, for as long as `seconds` says.

    Args:
        config: "project", "zones", "fleet", "owner", "endpoint", "call_seconds", "retry_seconds", "seconds", and
            "service_account", the content of a key file, or None for the environment's own identity.
    """
    from prefect_tpu.provision.cloud_tpu import QueuedResources, identity_of
    from prefect_tpu.provision.plan import LEAVING
    from prefect_tpu.provision.problems import CloudError

    api = QueuedResources(
        project=config["project"],
        credentials=identity_of(config["service_account"]) if config["service_account"] else None,
        endpoint=config["endpoint"],
        call_timeout_seconds=config["call_seconds"],
        retry_seconds=config["retry_seconds"],
    )
    give_up, quiet = time.monotonic() + config["seconds"], 0
    while quiet < QUIET_LOOKS and time.monotonic() < give_up:
        quiet += 1
        for zone in config["zones"]:
            try:
                mine = [one for one in api.list(zone, config["fleet"]) if one.owner == config["owner"]]
                for one in mine:
                    quiet = 0
                    if one.state not in LEAVING:
                        api.delete(zone, one.id)
            except CloudError:
                quiet = 0  # tried again until the time is over; nobody is there to be told
        time.sleep(LOOK_SECONDS)


def main() -> None:
    """Wait for the owner's end, or for its word that there is nothing to do."""
    config = json.loads(sys.stdin.readline())
    if sys.stdin.readline().strip() != DISMISSED:
        sweep(config)


if __name__ == "__main__":
    main()
