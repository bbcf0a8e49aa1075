"""A TPU VM that runs its startup script for real, as far as another machine can; and what it reads of Google Cloud."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from prefect_tpu.linux import processes

ACCESS_TOKEN = "ya29.of-the-service-account"
STUBS = {
    # No user is made on the machine that runs tests: what the script asks for is written down, and done as who we are.
    "id": 'exit "${NO_SUCH_USER:-0}"',
    "useradd": 'echo "useradd $*" >>"$SAID"',
    "runuser": 'echo "runuser $1 $2" >>"$SAID"; shift 3; exec "$@"',
}
PYTHON = """#!/bin/bash
if [[ "$1 $2" == "-m pip" ]]; then
  echo "pip ${*:3}" >>"$SAID"
  mkdir -p uv/bin
  cp "$FAKE_UV" uv/bin/uv
else
  exec REAL "$@"
fi
""".replace("REAL", sys.executable)
UV = """#!/bin/bash
echo "uv $*" >>"$SAID"
if [[ $1 == venv ]]; then
  mkdir -p "${@: -1}/bin"
  cp "$FAKE_RAY" "${@: -1}/bin/ray"
fi
"""


class GoogleCloud:
    """Metadata server, Secret Manager and buckets, as a VM sees them: real HTTP, Google's paths and checks."""

    def __init__(self) -> None:
        self.secrets: dict[str, str] = {}
        self.objects: dict[str, bytes] = {}
        self.denied = False
        self.failures = 0
        self.calls: list[str] = []
        cloud = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                code, body = cloud.answer(self.path, dict(self.headers))
                self.send_response(code)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.host = f"127.0.0.1:{self._server.server_port}"

    def answer(self, path: str, headers: Mapping[str, str]) -> tuple[int, bytes]:
        self.calls.append(path)
        if self.failures:
            self.failures -= 1
            return 503, b"try again"
        if path == "/computeMetadata/v1/instance/service-accounts/default/token":
            if headers.get("Metadata-Flavor") != "Google":
                return 403, b"Missing Metadata-Flavor:Google header."
            return 200, json.dumps({"access_token": ACCESS_TOKEN, "expires_in": 3_599, "token_type": "Bearer"}).encode()
        if headers.get("Authorization") != f"Bearer {ACCESS_TOKEN}":
            return 401, b"Request had invalid authentication credentials."
        if self.denied:
            return 403, b"Permission 'secretmanager.versions.access' denied on resource"
        name = path.removeprefix("/v1/").removesuffix("/versions/latest:access")
        if name in self.secrets:
            data = base64.b64encode(self.secrets[name].encode()).decode()
            return 200, json.dumps({"name": path, "payload": {"data": data}}).encode()
        if path in self.objects:
            return 200, self.objects[path]
        return 404, b"not found"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class TpuVm:
    """It runs the script until it is switched off. `ray`: the program that stands for Ray's own command."""

    def __init__(self, script: str, folder: Path, cloud: GoogleCloud, ray: str, **variables: str) -> None:
        self.home, self.programs, self.said = folder / "home", folder / "programs", folder / "said"
        bin_ = folder / "bin"
        for one in (self.home, bin_):
            one.mkdir(parents=True)
        for name, text in STUBS.items():
            _program(bin_ / name, f"#!/bin/bash\n{text}\n")
        _program(bin_ / "python3", PYTHON)
        _program(folder / "ray", ray)
        _program(folder / "uv", UV)
        self.said.touch()
        self.environment = {
            "PATH": f"{bin_}:{os.environ['PATH']}",
            "PREFECT_TPU_HOME": str(self.home),
            "PREFECT_TPU_PROGRAMS": str(self.programs),
            "PREFECT_TPU_ENVIRONMENT": str(folder / "image"),
            "PREFECT_TPU_SECRET_MANAGER": f"http://{cloud.host}",
            "PREFECT_TPU_STORAGE": f"http://{cloud.host}",
            "PREFECT_TPU_PAUSE_SECONDS": "0.1",
            "GCE_METADATA_HOST": cloud.host,
            "SAID": str(self.said),
            "FAKE_RAY": str(folder / "ray"),
            "FAKE_UV": str(folder / "uv"),
        } | variables
        (folder / "startup-script").write_text(script)
        self.log = folder / "log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                ["bash", str(folder / "startup-script")],
                env=self.environment, stdout=log, stderr=log, cwd="/", start_new_session=True,
            )  # fmt: skip

    def words(self) -> list[str]:
        """What was done, in order."""
        return self.said.read_text().splitlines()

    def switch_off(self) -> None:
        end(self.process)


def end(process: subprocess.Popen[bytes]) -> None:
    """With everything that hangs below it, in whatever session."""
    table = processes.snapshot()
    for pid in processes.descendants(table, process.pid):
        processes.signal_process(table[pid], signal.SIGKILL)
    process.wait()


def _program(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


@contextlib.contextmanager
def google_cloud() -> Iterator[GoogleCloud]:
    cloud = GoogleCloud()
    try:
        yield cloud
    finally:
        cloud.close()
