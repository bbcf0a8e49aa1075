"""Everything that runs on one host: warm zygotes, and the attempts forked from them. No Ray here."""

from __future__ import annotations

import logging
import os
import pickle
import signal
import socket
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from prefect_tpu._version import __version__
from prefect_tpu.core.environment import read_at_import
from prefect_tpu.core.errors import ConfigurationError, DeviceBusyError, HostProcessError, PreloadError
from prefect_tpu.core.messages import HostReport, LaunchRequest, LogRecord, Notice, Poll
from prefect_tpu.host import devices, stacks
from prefect_tpu.host.attempt import HostAttempt
from prefect_tpu.host.reactor import Reactor
from prefect_tpu.host.zygote_environment import require_startable
from prefect_tpu.host.zygote_handle import Key, Zygote, key_of
from prefect_tpu.linux import processes
from prefect_tpu.wire import channel, payload

log = logging.getLogger("prefect_tpu.host")

MAX_ZYGOTES = 2
FORK_TIMEOUT_SECONDS = 60.0
CLOSE_TIMEOUT_SECONDS = 5.0
CLOSE_LOOK_SECONDS = 0.01
KILL_REPEAT_SECONDS = 1.0
TELL_AGAIN_SECONDS = 0.5
"""Until a child that does not read its commands (a stopped one) is tried again."""
EXIT_GRACE_SECONDS = 10.0
"""For a process to shut JAX down and exit, once threads and exit hooks of all hosts are done."""
CUT_SECONDS = 2.0
"""For a process whose end is cut to say what it was doing."""
MAX_FORGOTTEN_ATTEMPTS = 1_000


class HostSupervisor:
    """Prepares, launches, watches and ends host processes. Every method may be called from any thread."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._zygotes: dict[Key, Zygote] = {}
        self._looked_up: dict[tuple[str, ...], frozenset[str]] = {}
        self._attempts: dict[str, HostAttempt] = {}
        self._notices: dict[str, tuple[Notice, float]] = {}
        self._appeared = threading.Condition(self._lock)
        self._forgotten: deque[str] = deque(maxlen=MAX_FORGOTTEN_ATTEMPTS)
        self._all_dead = threading.Condition(self._lock)
        self._living: set[Zygote] = set()
        self._closed = False
        self._reactor = Reactor("prefect-tpu-host", self._do_what_is_due)

    # -- before an attempt

    def prepare(self, preload: Sequence[str], user_env: dict[str, str]) -> HostReport:
        """Have a warm zygote with these imports and variables; returns when it can fork.

        Raises:
            PreloadError: a module of `preload` cannot be imported here.
            ConfigurationError: Python does not start with the user's variables.
            HostProcessError: the zygote died or hangs while it imports.
        """
        started = time.monotonic()
        zygote = self._ready_zygote(preload, user_env, None)
        return HostReport(__version__, os.getpid(), zygote.pid, time.monotonic() - started)

    # -- an attempt

    def launch(
        self, request: LaunchRequest, buffers: Sequence[Any], secret_env: Mapping[str, str] | None = None
    ) -> int:
        """Fork a process that runs what is pickled in `buffers`; returns its process id.

        Args:
            request: what to start.
            buffers: function and arguments.
            secret_env: variables that only the forked process gets: not in the request, which is kept and told.

        Raises:
            PreloadError, HostProcessError: as `prepare`; or the process could not be forked.
            DeviceBusyError: somebody else has the accelerator and does not let go.
            ConfigurationError: there is such an attempt already.
        """
        attempt = self._new_attempt(request.attempt_id)
        attempt.events.limit(request.log_lines_per_second, request.log_burst_lines)
        try:
            zygote = self._ready_zygote(request.preload, request.user_env, attempt)
            self._wait_for_devices(attempt, request)
            there = dict(zygote.key[1])
            late = {name: value for name, value in request.user_env.items() if name not in there}
            self._fork(attempt, zygote, (request, late | dict(secret_env or {})), buffers)
        except BaseException:
            self._reactor.call(partial(self._end_attempt, attempt, None, None))
            raise
        return attempt.pid

    def poll(self, attempt_id: str, after: int, timeout_seconds: float) -> Poll:
        """Events from cursor `after` on; waits up to `timeout_seconds` while there are none."""
        deadline = time.monotonic() + timeout_seconds
        with self._appeared:
            if not self._appeared.wait_for(lambda: attempt_id in self._attempts, timeout_seconds):
                return Poll(cursor=after)
            attempt = self._attempts[attempt_id]
        return attempt.events.poll(after, max(0.0, deadline - time.monotonic()))

    def result(self, attempt_id: str) -> memoryview:
        """The pickled result as `payload.parse` takes it, mapped, not copied. Only after `Returned`."""
        attempt = self._get(attempt_id)
        if attempt is None or not attempt.returned or attempt.result_file < 0:
            raise HostProcessError(f"attempt {attempt_id} has no result on this host")
        return payload.content(attempt.result_file)

    def finish(self, attempt_id: str) -> None:
        """Threads and exit hooks are done: let the process shut JAX down and exit, for at most `EXIT_GRACE_SECONDS`."""
        attempt = self._get(attempt_id)
        if attempt is not None:
            self._command(attempt, "finish")
            self._kill_after(attempt, EXIT_GRACE_SECONDS)

    def cut(self, attempt_id: str, why: str) -> None:
        """End a process whose function has ended, but not its threads and exit hooks; it says which, in a warning."""
        attempt = self._get(attempt_id)
        if attempt is not None:
            attempt.cut_as = why
            self._command(attempt, "cut", why=why)
            self._kill_after(attempt, CUT_SECONDS)

    def tell(self, notice: Notice) -> None:
        """Every attempt here hears of the notice; of those that stand, every later one does at its start."""
        with self._lock:
            if notice.withdrawn:
                self._notices.pop(notice.kind, None)
            else:
                self._notices[notice.kind] = notice, time.monotonic()
            for attempt in self._attempts.values():
                attempt.events.add(notice)

    def notify_drain(
        self, attempt_id: str, draining_slices: Sequence[int], seconds_left: float | None, tell_jax: bool = False
    ) -> None:
        """Tell the function which slices of its gang are about to be taken away.

        Args:
            attempt_id: what runs.
            draining_slices: their indices; none: all notices are taken back.
            seconds_left: until the first of them goes, if it is known.
            tell_jax: tell JAX's preemption service, too; on one host of the gang. That cannot be taken back.
        """
        attempt = self._get(attempt_id)
        if attempt is not None:
            self._command(
                attempt,
                "drain",
                draining_slices=list(draining_slices),
                seconds_left=seconds_left,
                tell_jax=tell_jax,
            )

    def offer(self, attempt_id: str, there: bool) -> None:
        """Tell the function that more slices are free, or not any more."""
        attempt = self._get(attempt_id)
        if attempt is not None:
            self._command(attempt, "offer", there=there)

    def stacks(self, attempt_id: str) -> str:
        """What the attempt's process is doing, for people to read."""
        attempt = self._get(attempt_id)
        if attempt is None or attempt.signal is None or not attempt.pid or attempt.over.is_set():
            return "it has no process"
        return stacks.dump(attempt.pid, attempt.signal)

    def stop(self, attempt_id: str, grace_seconds: float) -> None:
        """End an attempt: a cancel that the function can see, SIGKILL to all of it after `grace_seconds`.

        Returns at once; `Exited` tells when all is dead. An attempt that is not there yet will not start.
        """
        with self._lock:
            attempt = self._attempts.get(attempt_id)
            if attempt is None and attempt_id in self._forgotten:
                return
            if attempt is None:
                attempt = self._attempts[attempt_id] = HostAttempt(attempt_id)
                self._appeared.notify_all()
            first, attempt.stopped = not attempt.stopped, True
            if attempt.control is None:  # nothing of it has been forked, and nothing will be
                attempt.end(None, signal.SIGKILL)
                return
        if first and grace_seconds > 0:
            self._command(attempt, "cancel")
            if attempt.signal is not None and attempt.pid:
                attempt.signal(attempt.pid, signal.SIGTERM)
        self._kill_after(attempt, grace_seconds)

    def forget(self, attempt_id: str) -> None:
        """Drop what is kept of an attempt; ends it, should it still run."""
        with self._lock:
            attempt = self._attempts.pop(attempt_id, None)
            self._forgotten.append(attempt_id)
        if attempt is None:
            return
        attempt.forgotten = True
        if attempt.over.is_set():
            attempt.close_result()
        else:
            self._kill_after(attempt, 0)

    def close(self) -> None:
        """End everything that was started here; nothing of it lives when this returns."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            living = list(self._living)
        for zygote in living:
            zygote.end()
        with self._all_dead:
            gone = self._all_dead.wait_for(lambda: not self._living, CLOSE_TIMEOUT_SECONDS)
        if not gone:
            for zygote in living:
                zygote.die()
        give_up = time.monotonic() + CLOSE_TIMEOUT_SECONDS
        # Its end is seen by its pipes, which the kernel closes a moment before the process is gone.
        while any(processes.is_alive(zygote.pid) for zygote in living if zygote.pid) and time.monotonic() < give_up:
            time.sleep(CLOSE_LOOK_SECONDS)
        self._reactor.close()

    # -- inside

    def _get(self, attempt_id: str) -> HostAttempt | None:
        with self._lock:
            return self._attempts.get(attempt_id)

    def _new_attempt(self, attempt_id: str) -> HostAttempt:
        with self._lock:
            known = self._attempts.get(attempt_id)
            if attempt_id in self._forgotten or (known is not None and known.stopped):
                raise HostProcessError(f"attempt {attempt_id} was stopped before it was launched here")
            if known is not None:
                raise ConfigurationError(f"attempt {attempt_id} was launched here already; use a new attempt id")
            attempt = self._attempts[attempt_id] = HostAttempt(attempt_id)
            for notice, told_at in self._notices.values():
                left = notice.seconds_left
                if left is not None:
                    left = max(0.0, left - (time.monotonic() - told_at))
                attempt.events.add(replace(notice, seconds_left=left))
            self._appeared.notify_all()
            return attempt

    def _ready_zygote(self, preload: Sequence[str], user_env: Mapping[str, str], attempt: HostAttempt | None) -> Zygote:
        """A zygote that has what its modules look up when they are imported; what that is shows at its first start."""
        require_startable(user_env)
        while True:
            looked_up = self._looked_up.get(tuple(preload), frozenset())
            key = key_of(preload, read_at_import(preload, user_env, looked_up))
            zygote, failed = self._zygote(key, attempt), None
            try:
                self._wait_ready(zygote)
            except PreloadError as error:  # perhaps for want of a variable
                failed = error
            with self._lock:
                known = self._looked_up.get(tuple(preload), frozenset()) | zygote.looked_up
                self._looked_up[tuple(preload)] = known
                if key != key_of(preload, read_at_import(preload, user_env, known)):
                    if attempt is not None:
                        zygote.attempts.pop(attempt.id, None)
                    continue
            if failed is not None:
                raise failed
            return zygote

    def _zygote(self, key: Key, attempt: HostAttempt | None) -> Zygote:
        """The zygote for `key`, started if there is none; kept from being ended while `attempt` has it."""
        with self._lock:
            if self._closed:
                raise HostProcessError("this host's supervisor is closed")
            zygote = self._zygotes.get(key)
            if zygote is None or not zygote.usable:
                zygote = self._zygotes[key] = Zygote(key)
                self._living.add(zygote)
                self._watch(zygote)
            zygote.used_at = time.monotonic()
            if attempt is not None:
                attempt.signal, attempt.kill = zygote.signal, zygote.kill
                zygote.attempts[attempt.id] = attempt
            self._end_surplus(keep=zygote)
            return zygote

    def _end_surplus(self, keep: Zygote | None = None) -> None:
        idle = [one for one in self._zygotes.values() if not one.attempts and one.state == "ready" and one is not keep]
        idle.sort(key=lambda one: one.used_at)
        for one in idle[: max(0, len(self._zygotes) - MAX_ZYGOTES)]:
            del self._zygotes[one.key]
            one.end()

    def _wait_ready(self, zygote: Zygote) -> None:
        try:
            zygote.wait_ready()
        except BaseException:
            with self._lock:
                if self._zygotes.get(zygote.key) is zygote:
                    del self._zygotes[zygote.key]
            zygote.end()
            raise

    def _wait_for_devices(self, attempt: HostAttempt, request: LaunchRequest) -> None:
        check = request.devices
        if check is None or not devices.uses_accelerator(
            request.user_env.get(devices.PLATFORMS, os.environ.get(devices.PLATFORMS))
        ):
            return

        def say(text: str) -> None:
            attempt.events.add(LogRecord(logging.INFO, log.name, text))

        reason = devices.wait_until_free(check, attempt.over.wait, time.monotonic, say)
        if reason:
            raise DeviceBusyError(
                f"the accelerator of host {socket.gethostname()} is not free after {check.wait_seconds:g} s "
                f"(device_wait_seconds): {reason}. prefect_tpu ends no process and removes no file that is not its own"
            )

    def _fork(
        self,
        attempt: HostAttempt,
        zygote: Zygote,
        request: tuple[LaunchRequest, dict[str, str]],
        buffers: Sequence[Any],
    ) -> None:
        with self._lock:
            if attempt.stopped:
                raise HostProcessError(f"attempt {attempt.id} was stopped before it was launched here")
            theirs, write_ends = attempt.open()
        payload_file = payload.create("prefect-tpu-payload")
        try:
            payload.write(payload_file, [pickle.dumps(request, protocol=5), *buffers])
            for descriptor, read in attempt.readers():
                self._reactor.add(descriptor, read)
            zygote.fork(attempt.id, [theirs.fileno(), payload_file, attempt.result_file, *write_ends])
        finally:
            theirs.close()
            for descriptor in (payload_file, *write_ends):
                os.close(descriptor)
        if not attempt.forked.wait(FORK_TIMEOUT_SECONDS):
            raise HostProcessError(f"zygote {zygote.pid} did not fork within {FORK_TIMEOUT_SECONDS:g} s")
        if not attempt.pid:
            raise HostProcessError(f"zygote {zygote.pid} could not fork: {attempt.fork_error or 'it is gone'}")

    # -- on the reactor's thread

    def _watch(self, zygote: Zygote) -> None:
        def read_output() -> bool | None:
            try:
                data = os.read(zygote.output, channel.MAX_MESSAGE_BYTES)
            except BlockingIOError:
                return None
            zygote.take_output(data)
            if not data:
                os.close(zygote.output)
            return bool(data)

        def read_answer() -> bool | None:
            answer = channel.receive_command(zygote.control)
            if answer is None:
                self._zygote_died(zygote)
                return False
            self._take(zygote, answer)
            return True

        self._reactor.add(zygote.output, read_output)
        self._reactor.add(zygote.control.fileno(), read_answer)

    def _take(self, zygote: Zygote, answer: dict[str, Any]) -> None:
        if answer["event"] in ("ready", "failed"):
            zygote.take(answer)
            return
        attempt = zygote.attempts[answer["attempt"]]
        match answer["event"]:
            case "forked":
                attempt.take_forked(answer["pid"])
            case "not forked":
                attempt.fork_error = answer["error"]
                self._end_attempt(attempt, None, None)
            case "exited":
                self._end_attempt(attempt, answer["exit_code"], answer["signal"], answer["left"])

    def _zygote_died(self, zygote: Zygote) -> None:
        zygote.die()
        with self._lock:
            if self._zygotes.get(zygote.key) is zygote:
                del self._zygotes[zygote.key]
            attempts = list(zygote.attempts.values())
            self._living.discard(zygote)
            self._all_dead.notify_all()
        for attempt in attempts:
            self._end_attempt(attempt, None, signal.SIGKILL)

    def _end_attempt(
        self, attempt: HostAttempt, exit_code: int | None, signal_number: int | None, left: Sequence[str] = ()
    ) -> None:
        for descriptor, _ in attempt.readers():
            self._reactor.remove(descriptor)
        attempt.end(exit_code, signal_number, left)
        with self._lock:
            for zygote in self._living:
                zygote.attempts.pop(attempt.id, None)
            self._end_surplus()

    def _command(self, attempt: HostAttempt, do: str, **details: object) -> None:
        if not attempt.command(do, **details):
            self._reactor.wake()  # which tries again

    def _kill_after(self, attempt: HostAttempt, seconds: float) -> None:
        attempt.kill_before(time.monotonic() + seconds)
        self._reactor.wake()

    def _do_what_is_due(self) -> float | None:
        with self._lock:
            attempts = [one for zygote in self._living for one in zygote.attempts.values()]
        now, waits = time.monotonic(), []
        for attempt in attempts:
            if not attempt.tell():
                waits.append(TELL_AGAIN_SECONDS)
            if attempt.kill_at is None or not attempt.pid or attempt.kill is None:
                continue
            if attempt.kill_at <= now:
                attempt.kill(attempt.pid)
                attempt.kill_at = now + KILL_REPEAT_SECONDS
            waits.append(attempt.kill_at - now)
        return min(waits, default=None)
