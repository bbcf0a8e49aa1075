"""The agent's side of one zygote: start it, know its state, tell it what to do."""

from __future__ import annotations

import errno
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, Literal
from uuid import uuid4

from prefect_tpu.core.errors import HostProcessError, PreloadError
from prefect_tpu.host.attempt import HostAttempt
from prefect_tpu.host.streams import LineSplitter
from prefect_tpu.host.zygote_environment import cannot_start, parent_environment, zygote_environment, zygote_path
from prefect_tpu.linux import processes
from prefect_tpu.wire import channel

START_TIMEOUT_SECONDS = 600.0
"""For the imports; the gang has a shorter limit of its own for all that happens before a launch."""
KEPT_OUTPUT_LINES = 30
MAX_SAID_CHARS = 2_000

Key = tuple[tuple[str, ...], tuple[tuple[str, str], ...]]

_BOOTSTRAP = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[3]); "
    "from prefect_tpu.host.process.zygote import main; main(int(sys.argv[2]))"
)


def key_of(preload: Sequence[str], early: Mapping[str, str]) -> Key:
    """What a zygote is for: modules, and the variables that have to be there when they are imported."""
    return tuple(preload), tuple(sorted(early.items()))


class Zygote:
    """One zygote. Its answers are read by the owner, who calls `take` and `take_output`."""

    def __init__(self, key: Key) -> None:
        preload, user_env = key
        self.key = key
        self.mark = uuid4().hex
        self.state: Literal["starting", "ready", "failed", "dead"] = "starting"
        self.pid = 0
        self.looked_up: frozenset[str] = frozenset()  # variables, while it imported
        self.attempts: dict[str, HostAttempt] = {}
        self.used_at = time.monotonic()
        self._failure: dict[str, str] = {}
        self._output: deque[str] = deque(maxlen=KEPT_OUTPUT_LINES)
        self._lines = LineSplitter()
        self._changed = threading.Condition()
        self.control, theirs = channel.pair()
        self.output, write_end = os.pipe()
        os.set_blocking(self.output, False)
        env = zygote_environment(os.environ, parent_environment(), dict(user_env))
        env[processes.ZYGOTE_MARK] = self.mark
        try:
            with theirs:
                starter = subprocess.Popen(
                    [
                        *(sys.executable, "-P", "-c", _BOOTSTRAP),
                        *("prefect-tpu-zygote", str(theirs.fileno()), json.dumps(zygote_path(dict(user_env)))),
                    ],
                    env=env,
                    stdin=subprocess.DEVNULL,
                    stdout=write_end,
                    stderr=write_end,
                    pass_fds=[theirs.fileno()],
                )
        except (OSError, ValueError) as error:
            self._close_pipes()
            if isinstance(error, OSError) and error.errno != errno.E2BIG:
                raise
            raise cannot_start((name for name, _ in key[1]), str(error)) from None
        finally:
            os.close(write_end)
        code = starter.wait()  # it forks the zygote at once and exits
        if code > 0 and user_env:
            # Python did not get as far as our own code, and without these variables it would have.
            said = os.read(self.output, channel.MAX_MESSAGE_BYTES).decode(errors="replace").strip()
            self._close_pipes()
            raise cannot_start((name for name, _ in key[1]), said[-MAX_SAID_CHARS:])
        channel.send_command(self.control, preload=list(preload))

    def _close_pipes(self) -> None:
        self.control.close()
        os.close(self.output)

    def wait_ready(self, timeout_seconds: float = START_TIMEOUT_SECONDS) -> None:
        """Return when it can fork.

        Raises:
            PreloadError: a module cannot be imported.
            HostProcessError: it ended or hangs; the text has the last lines that it wrote.
        """
        with self._changed:
            done = self._changed.wait_for(lambda: self.state != "starting", timeout_seconds)
        if self.state == "ready":
            return
        if self._failure:
            raise PreloadError(
                f"preload: module {self._failure['module']!r} cannot be imported on host {socket.gethostname()}: "
                f"{self._failure['error']}. Install it there, or take it out of `preload`."
            )
        what = "ended while it imported" if done else f"did not import within {timeout_seconds:g} s"
        output = "".join(f"\n  {line}" for line in self._output)
        raise HostProcessError(f"zygote on host {socket.gethostname()} {what} {', '.join(self.key[0])}{output}")

    @property
    def usable(self) -> bool:
        return self.state in ("starting", "ready")

    def take(self, answer: dict[str, Any]) -> None:
        """Note an answer that concerns the zygote itself."""
        with self._changed:
            self.looked_up = frozenset(answer["looked_up"])
            if answer["event"] == "ready":
                self.state, self.pid = "ready", answer["pid"]
            elif answer["event"] == "failed":
                self.state, self._failure = "failed", answer
            self._changed.notify_all()

    def take_output(self, data: bytes) -> None:
        """Keep the last lines that it wrote: why it died, perhaps."""
        self._output.extend(self._lines.feed(data) if data else self._lines.close())

    def die(self) -> None:
        """It is gone: nothing of it may live on, in whatever session."""
        processes.kill_all(lambda table: processes.marked(table, processes.ZYGOTE_MARK, self.mark))
        with self._changed:
            if self.state != "failed":
                self.state = "dead"
            self._changed.notify_all()

    def fork(self, attempt: str, descriptors: Sequence[int]) -> None:
        """Ask for a child; the answer is "forked" or "not forked"."""
        try:
            order = json.dumps({"do": "fork", "attempt": attempt}).encode()
            channel.send(self.control, order, tuple(descriptors), socket.MSG_DONTWAIT)
        except BlockingIOError as error:
            raise HostProcessError(f"zygote on host {socket.gethostname()} takes no orders: is it stopped?") from error
        except OSError as error:
            raise HostProcessError(f"zygote on host {socket.gethostname()} is gone: {error}") from error

    def signal(self, pid: int, number: int) -> None:
        """Send a signal to a child of it, if that is alive."""
        channel.offer_command(self.control, do="signal", pid=pid, signal=int(number))

    def kill(self, pid: int) -> None:
        """SIGKILL a child and everything that it has started."""
        channel.offer_command(self.control, do="kill", pid=pid)

    def end(self) -> None:
        """Let it kill what it has forked, and exit."""
        try:
            self.control.shutdown(socket.SHUT_WR)
        except OSError:  # it is gone already
            return
