"""Talk to a fleet supervisor: start one as a child of this process, or reach one by its unix socket."""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import os
import queue
import secrets
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from typing import IO, Any

from prefect_tpu.core import fleet_commands
from prefect_tpu.core.errors import ConfigurationError, ProvisioningError
from prefect_tpu.fleets.local_environment import supervisor_environment
from prefect_tpu.linux import places, processes
from prefect_tpu.linux.programs import start_program

COMMAND_TIMEOUT_SECONDS = 60.0
"""For every command but those that start hosts, which have `start_timeout_seconds`."""
STOP_TIMEOUT_SECONDS = 20.0
END_SECONDS = 5.0
"""A process whose pipes are closed is gone a moment later."""
TOKEN_BYTES = 32
LOG_TAIL_LINES = 15
log = logging.getLogger("prefect_tpu.fleet")
Progress = Callable[[str], None]
_RAY, _SETTING = "Ray's files of a local fleet", "TMPDIR, if /tmp may not be written; else make room there"


class SupervisorProcess:
    """A fleet supervisor that this process started. It ends when this process does, however that happens.

    Attributes:
        token: lets into the fleet's Ray cluster. The supervisor and Ray's processes have it in their environment.
    """

    def __init__(self, config: dict[str, Any], progress: Progress, log: IO[bytes] | None = None) -> None:
        self._directory = places.short_directory()
        places.need_room(self._directory, _RAY, _SETTING)
        # Open for as long as the supervisor lives; it goes with this object.
        with places.usable(tempfile.gettempdir(), "the log of a local fleet", "TMPDIR"):
            self._log = log or tempfile.TemporaryFile()  # noqa: SIM115
        self._progress = progress
        self._numbers = itertools.count(1)
        self._answers: dict[int, queue.SimpleQueue[dict[str, Any] | None]] = {0: queue.SimpleQueue()}
        self._lock = threading.Lock()
        config = config | {
            "owner_pid": os.getpid(),
            "owner_start": processes.start_of(os.getpid()),
        }
        self.token = secrets.token_hex(TOKEN_BYTES)
        self.process = start_program(
            "prefect_tpu.sidecars.fleet_supervisor",
            [json.dumps(config)],
            environment=supervisor_environment() | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token},
            directory="/",
            stdout=subprocess.PIPE,
            stderr=self._log,
        )
        threading.Thread(target=self._read, name="prefect-tpu-fleet", daemon=True).start()

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def wait_ready(self, timeout_seconds: float) -> dict[str, Any]:
        """Wait until every host is up; where the fleet is.

        Raises:
            ProvisioningError: it did not come up; the message has the end of its log.
        """
        # Progress is told on this thread, which is the one that belongs to the run that waits.
        waiting, deadline = self._answers[0], time.monotonic() + timeout_seconds
        while True:
            try:
                message = waiting.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                raise self._too_late("start", timeout_seconds) from None
            if message is None:
                raise self._ended("start")
            if "progress" not in message:
                self._answers.pop(0)
                return dict(unpack(message, "start"))
            self._progress(message["progress"])

    def request(self, do: str, *, timeout_seconds: float = COMMAND_TIMEOUT_SECONDS, **arguments: Any) -> Any:
        """Send one command and wait for its answer.

        Raises:
            ConfigurationError: there is no such command, or it is refused.
            ProvisioningError: it failed, took too long, or the fleet has ended; with the end of its log.
        """
        number = next(self._numbers)
        request = checked({"id": number, "do": do, **arguments})
        with self._lock:
            self._answers[number] = queue.SimpleQueue()
            assert self.process.stdin is not None
            try:
                self.process.stdin.write(request)
                self.process.stdin.flush()
            except (OSError, ValueError) as error:
                raise self._ended(do) from error
        return self._take(number, timeout_seconds, do)

    def stop(self) -> None:
        """End the fleet and wait until every one of its processes is gone."""
        with self._lock, contextlib.suppress(OSError, ValueError):
            assert self.process.stdin is not None
            self.process.stdin.close()
        try:
            self.process.wait(STOP_TIMEOUT_SECONDS)
        except subprocess.TimeoutExpired:
            # Its janitor does the rest.
            self.process.kill()
            self.process.wait()
        self._log.close()

    def let_go(self, state_file: str) -> None:
        """Let the fleet outlive this process."""
        self.request("detach", state_file=state_file)

    def _take(self, number: int, timeout_seconds: float, do: str) -> Any:
        try:
            answer = self._answers[number].get(timeout=timeout_seconds)
        except queue.Empty:
            raise self._too_late(do, timeout_seconds) from None
        finally:
            self._answers.pop(number, None)
        if answer is None:
            raise self._ended(do)
        return unpack(answer, do)

    def _too_late(self, do: str, timeout_seconds: float) -> ProvisioningError:
        return ProvisioningError(
            f"The local fleet did not finish {do!r} within {timeout_seconds:g} s. The machine may be short of "
            f"CPU or memory: ask for fewer slices, or raise start_timeout_seconds.\n{self._log_tail()}{self._no_room()}"
        )

    def _no_room(self) -> str:
        try:
            places.need_room(self._directory, _RAY, _SETTING)
        except ConfigurationError as error:
            return f"\n{error}"
        return ""

    def _ended(self, do: str) -> ProvisioningError:
        return ProvisioningError(f"{self.obituary()}\nIt could not do {do!r}.")

    def obituary(self) -> str:
        """Of a fleet that has ended by itself: how, and what it said last."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(END_SECONDS)
        code = self.process.poll()
        how = f"was ended by signal {-code}" if code is not None and code < 0 else f"ended (exit code {code})"
        return f"The local fleet's supervisor {how}.\n{self._log_tail()}{self._no_room()}"

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                message = json.loads(line)
                waiting = self._answers.get(message.get("id", 0))
                if waiting is not None:
                    waiting.put(message)
                elif "progress" in message:
                    log.info("%s", message["progress"])
        self.process.wait()
        for waiting in list(self._answers.values()):
            waiting.put(None)

    def _log_tail(self) -> str:
        with contextlib.suppress(OSError, ValueError):
            with open(f"/proc/self/fd/{self._log.fileno()}", "rb") as file:
                lines = file.read().decode(errors="replace").splitlines()
            if not lines:
                return "Its log is empty."
            return "Last lines of its log:\n" + "\n".join(f"  {line}" for line in lines[-LOG_TAIL_LINES:])
        return ""


def unpack(answer: dict[str, Any], do: str) -> Any:
    """The value of an answer, or the error that it carries."""
    if answer.get("ok"):
        return answer["value"]
    text = f"local fleet: {do}: {answer.get('error')}"
    raise (ConfigurationError if answer.get("refused") else ProvisioningError)(text)


def _message(line: bytes, control: str) -> dict[str, Any]:
    try:
        return dict(json.loads(line))
    except (ValueError, TypeError) as error:
        raise ProvisioningError(f"What answers at {control} is no fleet of this version: {error}") from error


def checked(request: dict[str, Any]) -> bytes:
    """A command as it is sent, after a look at what the fleet will accept.

    Raises:
        ConfigurationError: it will not.
    """
    try:
        return json.dumps(fleet_commands.check(request)).encode() + b"\n"
    except fleet_commands.BadRequestError as error:
        raise ConfigurationError(f"local fleet: {error}") from error


def request_by_socket(control: str, do: str, *, progress: Progress, timeout_seconds: float, **arguments: Any) -> Any:
    """Send one command to a supervisor that another process started.

    Raises:
        ConfigurationError: there is no such command, or it is refused.
        ProvisioningError: it failed, took too long, or the fleet cannot be reached.
    """
    request = checked({"id": 1, "do": do, **arguments})
    deadline = time.monotonic() + timeout_seconds
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(timeout_seconds)
        try:
            connection.connect(control)
            connection.sendall(request)
            for line in connection.makefile("rb"):
                message = _message(line, control)
                if "progress" in message:
                    progress(message["progress"])
                else:
                    return unpack(message, do)
                connection.settimeout(max(0.1, deadline - time.monotonic()))
        except TimeoutError:
            raise ProvisioningError(
                f"The fleet did not finish {do!r} within {timeout_seconds:g} s. Look at its log."
            ) from None
        except OSError as error:
            raise ProvisioningError(f"The fleet at {control} cannot be reached: {error}") from error
    raise ProvisioningError(f"The fleet at {control} ended before {do!r} was done")
