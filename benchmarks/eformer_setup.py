"""What eFormer needs before it can be measured: a virtual environment of its own, and accelerator files."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import stat
import subprocess
import sys
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from peer_process import PeerError

EFORMER_VERSION = "0.0.101"
INSTALL_LIMIT_SECONDS = 900.0
ACCELERATOR_FILES = tuple(Path(f"/dev/accel{index}") for index in range(4))
"""It counts a host's chips by them."""
LOCK_FILE = Path("/tmp/libtpu_lockfile")  # noqa: S108 - libtpu's own
"""It deletes this one, whoever holds it."""
ENVIRONMENT = {
    "EFORMER_SCALE_POLL_S": "2",
    "EFORMER_SCALE_RETRY_SLEEP_S": "2",
    "EFORMER_KILL_VFIO": "0",  # else it kills every process of the machine that holds an accelerator
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
}


def find_python(given: Path | None) -> str:
    """A Python that has eFormer: the given one, or that of a cached environment, made if it is missing.

    Raises:
        PeerError: it cannot be installed, or the given one does not have it.
    """
    if given is not None:
        python = given
    else:
        directory = _cached_environment()
        python = directory / "bin" / "python"
        if _version(python) != EFORMER_VERSION:
            _install(directory)
    version = _version(python)
    if version != EFORMER_VERSION:
        raise PeerError(f"{python} has {f'eFormer {version}' if version else 'no eFormer'}, not {EFORMER_VERSION}")
    return str(python)


def _version(python: Path) -> str:
    """Of eFormer there; "" if it has none."""
    probe = [str(python), "-c", "import importlib.metadata as m; print(m.version('eformer'))"]
    try:
        return subprocess.run(probe, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def _cached_environment() -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    return cache / "prefect-tpu-benchmarks" / f"eformer-{EFORMER_VERSION}-python{python}"


def _install(directory: Path) -> None:
    # The same Ray as the other systems have.
    wanted = [f"eformer=={EFORMER_VERSION}", f"ray[default]=={importlib.metadata.version('ray')}"]
    print(f"installing {' '.join(wanted)} into {directory}", file=sys.stderr, flush=True)
    shutil.rmtree(directory, ignore_errors=True)  # half made, if there is one
    try:
        venv.create(directory, with_pip=True)
        pip = [str(directory / "bin" / "python"), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
        subprocess.run([*pip, *wanted], check=True, capture_output=True, text=True, timeout=INSTALL_LIMIT_SECONDS)
    except BaseException as error:
        shutil.rmtree(directory, ignore_errors=True)
        if not isinstance(error, (OSError, subprocess.SubprocessError)):
            raise
        output = str(getattr(error, "stderr", "") or error).strip().splitlines()
        raise PeerError(f"eFormer could not be installed: {output[-1] if output else error}") from error


@contextmanager
def accelerator_files() -> Iterator[None]:
    """Four empty files where eFormer looks for chips, gone afterwards. What is there already is not touched.

    Raises:
        PeerError: they cannot be made, or the machine has real accelerators, or something that eFormer deletes.
    """
    if LOCK_FILE.exists():
        raise PeerError(f"{LOCK_FILE} exists, and eFormer would delete it whoever holds it")
    present = [path for path in ACCELERATOR_FILES if path.exists()]
    if any(not stat.S_ISREG(path.stat().st_mode) for path in present):
        raise PeerError(f"this machine has real accelerators ({', '.join(map(str, present))}), which it would use")
    missing = [path for path in ACCELERATOR_FILES if path not in present]
    if missing and os.geteuid() != 0:
        raise PeerError("it counts chips by the files /dev/accel0 to /dev/accel3, and to make them one must be root")
    made: list[Path] = []
    try:
        for path in missing:
            try:
                os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
            except OSError as error:
                raise PeerError(f"it needs {path}, which cannot be made: {error}") from error
            made.append(path)
        yield
    finally:
        for path in made:
            path.unlink(missing_ok=True)
