"""One attempt on one host: forked from the zygote, runs the function, hands over the result, exits.

Exit code 0 after the result was handed over, 1 after something was raised and reported, 143 after a cancel.
"""

from __future__ import annotations

import asyncio
import atexit
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

from prefect_tpu.core.errors import ConfigurationError
from prefect_tpu.core.messages import Event, LaunchRequest, Phase, Progress, Raised, Returned, Stage
from prefect_tpu.host.process import jax_api, prefect_context
from prefect_tpu.host.process.checkpoint_record import Look
from prefect_tpu.host.process.output import log_to, take_streams
from prefect_tpu.host.process.result_summary import summarize
from prefect_tpu.runtime import process
from prefect_tpu.runtime.reporter import REPORT_INTERVAL_SECONDS
from prefect_tpu.wire import failures, payload, pickling
from prefect_tpu.wire.channel import receive_command, send_event

CANCEL_SIGNAL = signal.SIGRTMIN + 7
"""Makes a cancel visible to the main thread: JAX takes SIGTERM for itself once it is initialized."""
EXIT_CODE_CANCELLED = 128 + signal.SIGTERM

_NOT_THE_USERS = frozenset({__file__, asyncio.runners.__file__, asyncio.base_events.__file__})


def run(channel: int, payload_file: int, result_file: int, stdout: int, stderr: int) -> NoReturn:
    """Run the attempt that the descriptors belong to, then exit."""
    take_streams(stdout, stderr)
    attempt = _Attempt(socket.socket(fileno=channel), payload_file, result_file)
    signal.signal(CANCEL_SIGNAL, attempt.on_cancel_signal)
    signal.signal(signal.SIGTERM, attempt.on_cancel_signal)
    os.register_at_fork(after_in_child=attempt.reset_signals)
    sys.argv = ["prefect-tpu"]
    _exit(attempt.run())


def _exit(code: int) -> NoReturn:
    """End as Python does, without taking its modules apart: with JAX among them that costs 0.2 s, and can hang."""
    try:
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        logging.shutdown()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
    except BaseException:  # noqa: BLE001 - a stop in the middle, or a broken stream
        os._exit(code or 1)
    os._exit(code)


@dataclass(slots=True, eq=False)
class _Attempt:
    channel: socket.socket
    payload_file: int
    result_file: int
    stage: Stage = "environment"
    exit_code: int = 0
    cancel_raised: bool = False
    finish: threading.Event = field(default_factory=threading.Event)
    classes: pickling.ClassesOfDriver | None = None
    gang: process.HostProcess | None = None

    def run(self) -> int:
        self.exit_code = EXIT_CODE_CANCELLED
        try:
            returned = self._work()
        except process.Cancelled:
            return self.exit_code
        except process.Left as error:
            # Others may still save; if JAX's coordinator went now, they would be torn out of it.
            self.exit_code = 1
            self.send(self._raised(error, left="resize" if isinstance(error, process.Resizing) else "drain"))
            self.finish.wait()
            return self.exit_code
        except BaseException as error:  # noqa: BLE001 - whatever is raised is told to the driver
            self.exit_code = 1
            self.send(self._raised(error))
            return self.exit_code
        try:
            if jax_api.is_distributed():
                jax_api.mute_native_errors()
            self.send(returned)
            self.finish.wait()
            jax_api.shut_down()
            self.exit_code = 0
        except process.Cancelled:
            return self.exit_code
        return self.exit_code

    def _leave(self) -> None:
        """After a failure, do not let JAX wait at exit for peers that hang because of it."""
        if self.exit_code != 0 and jax_api.is_distributed():
            logging.shutdown()
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
            os._exit(self.exit_code)

    def _work(self) -> Returned:
        buffers = payload.read(self.payload_file, writable=True)
        request: LaunchRequest = pickle.loads(buffers[0])  # noqa: S301 - from our own agent
        os.environ.update(request.gang_env)
        os.environ.update(request.user_env)
        _reseed()
        log_to(self.send, request.log_level)
        prefect_context.install(request.context.run_id)
        self.gang = process.enter(request.context, lambda *report: self.send(Progress(*report)))
        threading.Thread(target=self._listen, name="prefect-tpu-control", daemon=True).start()
        look = None if request.checkpoints is None else Look(request.checkpoints, attempt=request.context.attempt)
        if request.jax is not None:
            self.stage = "jax"
            jax_api.start(request.jax)
            self.send(Phase("initialized"))
        # Runs after what the function registers, before what JAX did when it was imported.
        atexit.register(self._leave)
        if look is not None:
            self.stage = "checkpoints"
            look.finish()
        self.stage = "unpickle"
        fn, args, kwargs = pickling.loads(buffers[1:], copy=False)
        self.classes = pickling.ClassesOfDriver()
        self.stage = "function"
        self.send(Phase("entered"))
        result = fn(*args, **kwargs)
        if inspect.iscoroutine(result):
            result = asyncio.run(result)
        jax_api.wait_for_arrays(result)
        if look is not None:
            look.forget_unused()
        return self._ship(result)

    def _ship(self, result: Any) -> Returned:
        assert self.gang is not None
        self.gang.reporter.flush()
        try:
            buffers = pickling.dumps(result, known=self.classes)
        except ConfigurationError as error:
            self.stage = "result"
            raise ConfigurationError(f"the result {error}") from error
        self.stage = "transfer"
        return Returned(payload.write(self.result_file, buffers), summarize(result))

    def _raised(self, error: BaseException, left: Literal["", "drain", "resize"] = "") -> Raised:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        return failures.describe(error, self.stage, classes=self.classes, not_the_users=_NOT_THE_USERS, left=left)

    def send(self, event: Event) -> None:
        try:
            send_event(self.channel, event, self.result_file)
        except OSError:
            # The agent is gone; the zygote ends this process within the second.
            return

    # -- what the agent tells

    def _listen(self) -> None:
        assert self.gang is not None
        while True:
            ready, _, _ = select.select([self.channel], [], [], REPORT_INTERVAL_SECONDS)
            if not ready:
                self.gang.reporter.flush()
                continue
            command = receive_command(self.channel)
            if command is None:
                return
            match command["do"]:
                case "cancel":
                    self._cancel()
                case "drain":
                    process.tell_drain(command["draining"], command["deadline_unix_seconds"])
                    if command["tell_jax"]:
                        jax_api.tell_of_preemption()
                case "offer":
                    process.offer_more_slices(command["there"])
                case "finish":
                    self.finish.set()

    def _cancel(self) -> None:
        if self.stage in ("environment", "jax"):
            os._exit(EXIT_CODE_CANCELLED)  # no user code has run; JAX may block for minutes
        if signal.getsignal(signal.SIGTERM) == self.on_cancel_signal:  # else the function handles it itself
            signal.pthread_kill(threading.main_thread().ident or 0, CANCEL_SIGNAL)

    def on_cancel_signal(self, *_: Any) -> None:
        if not self.cancel_raised:
            self.cancel_raised = True
            raise process.Cancelled("the gang is cancelled; this process is killed when the grace period is over")

    def reset_signals(self) -> None:
        """In what the function forks: SIGTERM ends a process, as everywhere else."""
        if signal.getsignal(signal.SIGTERM) == self.on_cancel_signal:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _reseed() -> None:
    random.seed()
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is not None:
        numpy_random.seed()
