"""Who holds this host's accelerator: device files and libtpu's lock file. Looks, and never touches. Linux only."""

from __future__ import annotations

import glob
import os
import pwd
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from prefect_tpu.core.messages import DeviceCheck
from prefect_tpu.linux.processes import ATTEMPT_MARK, environment_of

PLATFORMS = "JAX_PLATFORMS"
POLL_SECONDS = 0.1
MAX_COMMAND_CHARS = 120

Identity = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Holder:
    """A process that has a device file or the lock file open.

    Attributes:
        path: the file.
        pid: of the process.
        command: the program and its first argument; more could show secrets.
        user: who it belongs to.
        attempt: the attempt of prefect_tpu that it is left of, "" if of none.
    """

    path: str
    pid: int
    command: str
    user: str
    attempt: str = ""

    def describe(self) -> str:
        """One phrase for messages."""
        left = f", left of attempt {self.attempt}" if self.attempt else ""
        return f"{self.path} is held by pid {self.pid} ({self.command}, user {self.user}{left})"


def uses_accelerator(platforms: str | None) -> bool:
    """Whether a process with this JAX_PLATFORMS may open the accelerator; one that is told "cpu" does not."""
    return (platforms or "").strip().lower() != "cpu"


def holders(check: DeviceCheck) -> list[Holder]:
    """Every process, but for this one, that has one of the files open, as far as it can be seen.

    Processes of other users are seen by root only; of those, a lock on the lock file is seen by all.
    """
    files: dict[Identity, str] = {}
    for path in [*(path for pattern in check.device_globs for path in sorted(glob.glob(pattern))), check.lock_file]:
        identity = _identity(path)
        if identity is not None:
            files[identity] = path
    if not files:
        return []
    found: dict[tuple[str, int], Holder] = {}
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != os.getpid():
            for path in _open_files(name, files):
                found[path, int(name)] = _holder(path, int(name))
    for path, pid in _locks(files):
        found.setdefault((path, pid), _holder(path, pid))
    return sorted(found.values(), key=lambda one: (one.path, one.pid))


def lock_file_problem(check: DeviceCheck) -> str:
    """Why libtpu could not take over a lock file that nobody holds; "" if it could."""
    try:
        details = os.stat(check.lock_file)
    except FileNotFoundError:
        return ""
    if os.access(check.lock_file, os.W_OK):
        return ""
    return (
        f"{check.lock_file} belongs to user {_user(details.st_uid)}, and user {_user(os.getuid())} may not open it: "
        "libtpu would refuse the accelerator. Nobody holds it; its owner can remove it"
    )


def problem(check: DeviceCheck) -> str:
    """Why the accelerator is not free; "" if it is."""
    held = holders(check)
    return "; ".join(one.describe() for one in held) if held else lock_file_problem(check)


def wait_until_free(
    check: DeviceCheck, wait: Callable[[float], bool], now: Callable[[], float], say: Callable[[str], None]
) -> str:
    """Wait for whoever holds the accelerator, an earlier attempt perhaps, to let go.

    Args:
        check: what to look at, and for how long.
        wait: sleeps for so many seconds; True ends the waiting.
        now: a monotonic clock.
        say: told once that it waits, and for whom.

    Returns:
        Why it is still not free; "" if it is, or if `wait` ended it.
    """
    give_up = now() + check.wait_seconds
    told = False
    while reason := problem(check):
        if now() >= give_up:
            return reason
        if not told:
            told = True
            say(f"waiting up to {check.wait_seconds:g} s for the accelerator: {reason}")
        if wait(POLL_SECONDS):
            return ""
    if told:
        say("the accelerator is free")
    return ""


def _identity(path: str) -> Identity | None:
    try:
        return _identity_of(os.stat(path))
    except OSError:
        return None


def _identity_of(details: os.stat_result) -> Identity:
    """The same for every name of a device; for other files, what /proc/locks names too."""
    if stat.S_ISCHR(details.st_mode):
        return -1, details.st_rdev
    return details.st_dev, details.st_ino


def _open_files(pid: str, files: dict[Identity, str]) -> set[str]:
    found: set[str] = set()
    try:
        descriptors = os.listdir(f"/proc/{pid}/fd")
    except OSError:  # it has ended, or is not ours to look at
        return found
    for descriptor in descriptors:
        identity = _identity(f"/proc/{pid}/fd/{descriptor}")
        if identity in files:
            found.add(files[identity])
    return found


def _locks(files: dict[Identity, str]) -> list[tuple[str, int]]:
    """Locks on the files, with the process that has each; a lock tells its process to every user."""
    found = []
    for line in _lines("/proc/locks"):
        fields = line.split()
        # 1: FLOCK ADVISORY WRITE 1234 fe:00:5678 0 EOF; one that waits for it has an arrow in front.
        if len(fields) < 8 or "->" in fields:
            continue
        pid, (major, minor, inode) = int(fields[4]), fields[5].split(":")
        path = files.get((os.makedev(int(major, 16), int(minor, 16)), int(inode)))
        if path is not None and pid > 0 and pid != os.getpid() and os.path.exists(f"/proc/{pid}"):
            found.append((path, pid))
    return found


def _holder(path: str, pid: int) -> Holder:
    attempt = next(
        (one.partition(b"=")[2] for one in environment_of(pid) if one.startswith(f"{ATTEMPT_MARK}=".encode())), b""
    )
    return Holder(path, pid, _command(pid), _owner(pid), attempt.rpartition(b"/")[0].decode(errors="replace"))


def _command(pid: int) -> str:
    try:
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        arguments = []
    words = [one for one in arguments[:2] if one]
    if not words:  # it is ending, or of the kernel
        words = [line.strip() for line in _lines(f"/proc/{pid}/comm")] or ["unknown"]
    return " ".join(words)[:MAX_COMMAND_CHARS]


def _owner(pid: int) -> str:
    try:
        return _user(os.stat(f"/proc/{pid}").st_uid)
    except OSError:
        return "unknown"


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(errors="replace").splitlines()
    except OSError:
        return []
