"""A real Prefect server that tests start, freeze, kill and start again."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx

START_SECONDS = 90.0
BUSY_SECONDS = 60.0
"""How long the server may answer 503 (its SQLite file is locked), as Prefect's own client allows it to."""


class Server:
    """A Prefect server that can be frozen, killed and started again with the same database."""

    def __init__(self, folder: Path, *, ui: bool = False) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.ui = f"http://127.0.0.1:{self.port}"
        self.url = f"{self.ui}/api"
        self._flags = [] if ui else ["--no-ui"]
        self._env = os.environ | {
            "PREFECT_HOME": str(folder),
            "PREFECT_API_URL": self.url,
            "PREFECT_UI_API_URL": self.url,
        }
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Wait until it answers."""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "prefect", "server", "start", "--port", str(self.port), *self._flags],
            env=self._env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        give_up = time.monotonic() + START_SECONDS
        while True:
            try:
                httpx.get(f"{self.url}/health", timeout=2).raise_for_status()
                return
            except httpx.HTTPError:
                assert time.monotonic() < give_up, "the server does not start"
                time.sleep(0.3)

    def signal(self, number: signal.Signals) -> None:
        """To all of its processes, which are ours."""
        assert self.process is not None
        os.killpg(self.process.pid, number)

    def kill(self) -> None:
        """At once."""
        if self.process is not None and self.process.poll() is None:
            self.signal(signal.SIGKILL)
            self.process.wait()

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        """A call to the API, again while the server is busy; its answer, None if there is none."""
        give_up = time.monotonic() + BUSY_SECONDS
        while True:
            try:
                answer = httpx.request(method, f"{self.url}{path}", json=body, timeout=30)
            except httpx.TimeoutException:
                assert time.monotonic() < give_up, f"no answer: {method} {path}"
                continue
            if answer.status_code != httpx.codes.SERVICE_UNAVAILABLE or time.monotonic() >= give_up:
                answer.raise_for_status()
                return answer.json() if answer.content else None
            time.sleep(0.5)

    def post(self, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
        """One of the API's filters."""
        found: list[dict[str, Any]] = self.ask("POST", path, body)
        return found
