"""One attempt on one host: forked from the zygote, runs the function, hands over the result, ends as Python does.

Exit code 0 after the result was handed over, 1 after something was raised and reported or the end was cut, 143 after
a cancel.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import os
import pickle
import random
import select
import signal
import socket
import sys
import threading
from dataclasses import dataclass, field
from typing import Any, Literal, NoReturn

from prefect_tpu.core.environment import attempt_environment
from prefect_tpu.core.errors import AlreadyInitializedError
from prefect_tpu.core.messages import Event, LaunchRequest, Phase, Raised, Returned, Stage
from prefect_tpu.core.prefect_run import PrefectRun
from prefect_tpu.host.process import jax_api, jax_notice
from prefect_tpu.host.process.checkpoint_record import Look, tell_finished
from prefect_tpu.host.process.device_watch import DeviceWatch
from prefect_tpu.host.process.endings import PythonEnd
from prefect_tpu.host.process.output import log_to, take_streams
from prefect_tpu.host.process.prefect_context import PrefectContext
from prefect_tpu.host.process.result_summary import summarize
from prefect_tpu.runtime import process
from prefect_tpu.runtime.reporter import LAST_VALUES_SECONDS, REPORT_INTERVAL_SECONDS
from prefect_tpu.wire import failures, host_modules, payload, pickling, unpicklable
from prefect_tpu.wire.channel import receive_command, send_event

log = logging.getLogger("prefect_tpu")

CANCEL_SIGNAL = signal.SIGRTMIN + 7
"""Makes a cancel visible to the main thread: JAX takes SIGTERM for itself once it is initialized."""
EXIT_CODE_CANCELLED = 128 + signal.SIGTERM
EXIT_CODE_CUT = 1

_NOT_THE_USERS = frozenset({__file__, asyncio.runners.__file__, asyncio.base_events.__file__})


def run(channel: int, payload_file: int, result_file: int, stdout: int, stderr: int) -> NoReturn:
    """Run the attempt that the descriptors belong to, then exit."""
    take_streams(stdout, stderr)
    attempt = _Attempt(socket.socket(fileno=channel), payload_file, result_file)
    signal.signal(CANCEL_SIGNAL, attempt.on_cancel_signal)
    signal.signal(signal.SIGTERM, attempt.on_cancel_signal)
    os.register_at_fork(
        before=attempt.hold_sigterm, after_in_parent=attempt.release_sigterm, after_in_child=attempt.reset_signals
    )
    sys.argv = ["prefect-tpu"]
    try:
        code = attempt.run()
    except BaseException:  # noqa: BLE001 - a cancel in the very moment in which the function has ended
        code = attempt.exit_code or 1
    _exit(code)


def _exit(code: int) -> NoReturn:
    """End at once: taking Python's modules apart, with JAX among them, costs 0.2 s, and can hang."""
    with contextlib.suppress(Exception):  # a broken stream
        logging.shutdown()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
    os._exit(code)


@dataclass(slots=True, eq=False)
class _Attempt:
    channel: socket.socket
    payload_file: int
    result_file: int
    stage: Stage = "environment"
    exit_code: int = 0
    cancel_raised: bool = False
    cancelled: bool = False
    end: PythonEnd = field(default_factory=PythonEnd)
    ends: threading.Event = field(default_factory=threading.Event)
    finish: threading.Event = field(default_factory=threading.Event)
    at_fork: threading.local = field(default_factory=threading.local)
    classes: pickling.ClassesOfDriver | None = None
    gang: process.HostProcess | None = None
    devices: DeviceWatch | None = None

    def run(self) -> int:
        """Call the function, tell what came of it, end as Python does. Returns the exit code."""
        told = self._call()
        self.ends.set()
        if self.gang is not None:
            self.gang.reporter.flush()
        if told is not None:
            self.send(told)
        jax_api.keep_until_the_end()
        self.end.run()
        distributed = jax_api.is_distributed()
        if told is None and distributed:
            jax_api.mute_native_errors()  # nothing is left to say
        if told is not None or self._has_peers():
            self.send(Phase("ended"))
            # Threads of other hosts may still need JAX's coordinator, and who left holds up nobody.
            if distributed or isinstance(told, Returned) or (told is not None and told.left):
                self.finish.wait()
        if self.exit_code == 0 and not self.cancelled:
            if distributed:
                jax_api.mute_native_errors()
            jax_api.shut_down()
        elif distributed:
            return self.exit_code  # or JAX would wait for peers that hang because of what happened here
        jax_api.clean_up()
        return self.exit_code

    def _has_peers(self) -> bool:
        """Other hosts need this process, as long as it is there."""
        return self.gang is not None and self.gang.context.num_processes > 1 and jax_api.is_distributed()

    def _call(self) -> Returned | Raised | None:
        """What the driver is told; None after a cancel."""
        self.exit_code = EXIT_CODE_CANCELLED
        try:
            told: Returned | Raised = self._work()
            self.exit_code = 0
        except process.Cancelled:
            return None
        except process.Left as error:
            self.exit_code = 1
            return self._raised(error, left="resize" if isinstance(error, process.Resizing) else "drain")
        except BaseException as error:  # noqa: BLE001 - whatever is raised is told to the driver
            self.exit_code = 1
            return self._raised(error)
        return told

    def _work(self) -> Returned:
        buffers = payload.read(self.payload_file, writable=True)
        request: LaunchRequest
        request, after_fork = pickle.loads(buffers[0])  # noqa: S301 - from our own agent
        os.environ.update(attempt_environment(os.environ, request.gang_env, request.user_env, after_fork))
        _reseed()
        log_to(self.send, request.log_level)
        prefect = PrefectContext(request.prefect or PrefectRun.unknown(request.context.run_id), self.send)
        prefect.install()
        self.gang = process.enter(request.context, self.send)
        self.devices = DeviceWatch(request.chips)
        threading.Thread(target=self._listen, name="prefect-tpu-control", daemon=True).start()
        look = None if request.checkpoints is None else Look(request.checkpoints, attempt=request.context.attempt)
        if request.context.process_id == 0 and request.context.checkpoint_dir is not None:
            tell_finished(request.context.checkpoint_dir, self.send)
        if request.jax is not None:
            self.stage = "jax"
            jax_api.start(request.jax)
            self.send(Phase("initialized"))
        if look is not None:
            self.stage = "checkpoints"
            look.finish()
        self.stage = "unpickle"
        host_modules.become_host()
        fn, args, kwargs = pickling.loads(buffers[1:], copy=False)
        host_modules.share(f"/proc/{os.getpid()}/fd/{self.payload_file}")
        self.classes = pickling.ClassesOfDriver()
        prefect.called(fn, args, kwargs)
        self.stage = "function"
        self.send(Phase("entered"))
        result = fn(*args, **kwargs)
        if inspect.iscoroutine(result):
            result = asyncio.run(result)
        jax_api.wait_for_arrays(result)
        self.devices.conclude()
        if look is not None:
            look.forget_unused()
        return self._ship(result)

    def _ship(self, result: Any) -> Returned:
        assert self.gang is not None
        self.gang.reporter.flush(LAST_VALUES_SECONDS)
        try:
            buffers = pickling.dumps(result, known=self.classes)
        except unpicklable.CannotPickleError as error:
            self.stage = "result"
            raise unpicklable.CannotPickleError(f"the result {error.what}", error.advice) from None
        self.stage = "transfer"
        size = payload.write(self.result_file, buffers)
        payload.seal(self.result_file)
        return Returned(size, summarize(result))

    def _raised(self, error: BaseException, left: Literal["", "drain", "resize"] = "") -> Raised:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        if self.stage == "function" and isinstance(error, AlreadyInitializedError):
            self.stage = "program"
        return failures.describe(error, self.stage, classes=self.classes, not_the_users=_NOT_THE_USERS, left=left)

    def send(self, event: Event) -> None:
        try:
            send_event(self.channel, event)
        except ConnectionError:
            # The agent is gone; the zygote ends this process within the second.
            return
        except OSError as error:
            # No descriptor, or no memory: said where that needs none.
            os.write(2, f"prefect_tpu: one {type(event).__name__} was lost: {error}\n".encode())

    # -- what the agent tells

    def _listen(self) -> None:
        """Hear the agent until it is gone. Whatever fails meanwhile is told, and the next command is heard."""
        while True:
            try:
                if not self._hear():
                    return
            except Exception:
                log.exception("what this host was told could not be done")

    def _hear(self) -> bool:
        """One command, or what is due now and then; False if nothing will be heard any more."""
        assert self.gang is not None
        assert self.devices is not None
        try:
            ready, _, _ = select.select([self.channel], [], [], REPORT_INTERVAL_SECONDS)
        except (OSError, ValueError):  # the function has closed descriptors that are not its own
            return False
        command: dict[str, Any] | None = receive_command(self.channel) if ready else {"do": ""}
        if command is None:
            return False
        self.devices.look()
        match command["do"]:
            case "":
                self.gang.reporter.flush()
                self.end.say_what_it_waits_for()
            case "cancel":
                self._cancel()
            case "drain":
                process.tell_drain(command["draining_slices"], command["seconds_left"])
                if command["tell_jax"]:
                    told = (self.gang.context, self.ends, self._has_sigterm_handler)
                    threading.Thread(
                        target=jax_notice.tell, args=told, name="prefect-tpu-preemption", daemon=True
                    ).start()
            case "offer":
                process.offer_more_slices(command["there"])
            case "finish":
                self.finish.set()
            case "cut":
                self._cut(command["why"])
        return True

    def _cancel(self) -> None:
        if self.stage in ("environment", "jax"):
            os._exit(EXIT_CODE_CANCELLED)  # no user code has run; JAX may block for minutes
        if self.ends.is_set():  # threads and exit hooks have the grace for themselves
            self.cancelled = True
            if not self._has_peers():
                self.finish.set()
            return
        if not self._has_sigterm_handler():
            signal.pthread_kill(threading.main_thread().ident or 0, CANCEL_SIGNAL)

    def _cut(self, why: str) -> NoReturn:
        """Name what has not ended, and end it."""
        running = self.end.what_runs()
        if running:
            log.warning("its end was cut, as %s: %s had not ended; what it had not finished is lost", why, running)
        os._exit(self.exit_code or EXIT_CODE_CUT)

    def _has_sigterm_handler(self) -> bool:
        """The function handles SIGTERM itself."""
        return signal.getsignal(signal.SIGTERM) != self.on_cancel_signal

    def on_cancel_signal(self, *_: Any) -> None:
        if not self.cancel_raised and not self.ends.is_set():
            self.cancel_raised = True
            raise process.Cancelled("the gang is cancelled; this process is killed when the grace period is over")

    def hold_sigterm(self) -> None:
        """Around a fork: Python forgets what comes to a child before `reset_signals`; so it has to wait until then."""
        self.at_fork.mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})

    def release_sigterm(self) -> None:
        """As it was before."""
        signal.pthread_sigmask(signal.SIG_SETMASK, self.at_fork.mask)

    def reset_signals(self) -> None:
        """In what the function forks: SIGTERM ends a process, as everywhere else."""
        if not self._has_sigterm_handler():
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        self.release_sigterm()


def _reseed() -> None:
    random.seed()
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is not None:
        numpy_random.seed()
