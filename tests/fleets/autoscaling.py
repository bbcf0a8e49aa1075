"""A Ray cluster on this machine that grows and shrinks by Ray's own autoscaler: real raylets, no cloud."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Self
from uuid import uuid4

from ray._private import services

from prefect_tpu.core.topology import SliceShape
from prefect_tpu.sidecars.simulated_identity import host_labels, host_resources, simulated_host_environment
from tests.processes import alive, with_environment

START_SECONDS = 60.0
HEAD_NODE_ID = "f" * 51 + "00000"
"""What Ray's provider for tests calls its head."""
PROVIDER = "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider"
"""Ray's own, which starts real raylets; by its module, as Ray's wheel lacks the defaults of its short name."""
TOKEN_VARIABLE = "PREFECT_TPU_AUTOSCALING_TEST"


class AutoscalingRay:
    """A head without chips, and single-host slices that Ray's autoscaler starts and ends.

    `ray.cluster_utils.AutoscalingCluster` does the same, but ends every Ray of the machine first, and reads a file
    that Ray's wheel lacks.
    """

    def __init__(
        self,
        shape: SliceShape,
        *,
        most_slices: int = 2,
        idle_seconds: float = 2.0,
        v2: bool = True,
        token: str = "",
    ) -> None:
        assert shape.hosts == 1
        self._shape, self._most, self.idle_seconds, self._v2 = shape, most_slices, idle_seconds, v2
        self.access = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token} if token else {"RAY_AUTH_MODE": "disabled"}
        self._folder = Path(tempfile.mkdtemp(prefix="ptpu-as-"))
        self._token = uuid4().hex
        with socket.socket() as free:
            free.bind(("", 0))
            self.port = free.getsockname()[1]
        self.address = f"{services.get_node_ip_address()}:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def _config(self) -> dict[str, Any]:
        resources = {name: int(amount) for name, amount in host_resources(self._shape, "x", 0).items() if name != "x"}
        labels = host_labels(self._shape, "x", 0)
        del labels["ray.io/tpu-slice-name"]  # the same for every host of a type, and Ray needs none for one host
        size = {"object_store_memory": 100 * 1024**2, "CPU": 1}
        return {
            "cluster_name": "autoscaling",
            "max_workers": self._most,
            "provider": {
                "type": "external", "module": PROVIDER, "gcs_address": self.address, "head_node_id": HEAD_NODE_ID,
                "launch_multiple": True, "use_node_id_as_ip": True, "disable_node_updaters": True,
            },
            "available_node_types": {
                "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
                "slice": {
                    "resources": resources | size, "labels": labels, "node_config": {}, "min_workers": 0,
                    "max_workers": self._most,
                },
            },
            "head_node_type": "ray.head.default",
            "upscaling_speed": 1.0,
            "idle_timeout_minutes": self.idle_seconds / 60,
            "auth": {}, "docker": {}, "file_mounts": {}, "cluster_synced_files": [],
            "initialization_commands": [], "setup_commands": [], "head_setup_commands": [],
            "worker_setup_commands": [], "head_start_ray_commands": [], "worker_start_ray_commands": [],
        }  # fmt: skip

    def __enter__(self) -> Self:
        config = self._folder / "autoscaler.yaml"
        config.write_text(json.dumps(self._config()))
        env = os.environ | self.access | simulated_host_environment(self._shape) | {
            TOKEN_VARIABLE: self._token, "AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_FAKE_CLUSTER": "1",
            "RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": str(Path(__file__).parents[2]),
            "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_NODE_ID, "RAY_CLOUD_INSTANCE_ID": HEAD_NODE_ID,
            "RAY_enable_autoscaler_v2": "1" if self._v2 else "0",
        }  # fmt: skip
        with (self._folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [
                    str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", f"--port={self.port}",
                    f"--temp-dir={self._folder / 'ray'}", "--num-cpus=0",
                    f"--object-store-memory={200 * 1024**2}", "--include-dashboard=false", "--disable-usage-stats",
                    f"--autoscaling-config={config}",
                ],
                env=env, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        give_up = time.monotonic() + START_SECONDS
        while "Ray runtime started" not in (text := (self._folder / "log").read_text()):
            if self._process.poll() is not None or time.monotonic() > give_up:
                self.close()
                raise AssertionError(f"the head did not start: {text[-3000:]}")
            time.sleep(0.2)
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End every process of it, and remove its files."""
        processes = with_environment(TOKEN_VARIABLE, self._token)
        for pid in processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if self._process is not None:
            self._process.wait()
        while alive(processes):
            time.sleep(0.1)
        shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def log(self) -> str:
        """What Ray's autoscaler has said."""
        return "\n".join(one.read_text()[-4000:] for one in (self._folder / "ray").glob("session_*/logs/monitor*"))
