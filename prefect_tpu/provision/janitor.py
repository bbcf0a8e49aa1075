"""A small process that deletes what its owner has created in the cloud, if the owner ends without doing so.

A flow run that is cancelled ends by a signal, and a killed one by SIGKILL: neither comes to Python's exit handlers. The
janitor waits for the end of a pipe, imports Google's client only then, and is in a session of its own.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from typing import Any

from prefect_tpu.linux.programs import start_program

DISMISSED = "done"
"""The last line to the janitor of an owner that has deleted everything."""
EXIT_SECONDS = 5.0


class Janitor:
    """The owner's side. `config` is what `sweep` takes; it goes through the pipe, so credentials show nowhere."""

    def __init__(self, config: dict[str, Any]) -> None:
        # It needs what Google's client reads there, and outlives its owner; Prefect's settings hold keys.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
        self._process = start_program("prefect_tpu.sidecars.cloud_janitor", environment=environment)
        self._write(json.dumps(config))

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
