"""One attempt on one host: forked from the zygote, runs the function, hands over the result, exits.

Exit code 0 after the result was handed over, 1 after something was raised and reported, 143 after a cancel.
"""

from __future__ import annotations

import asyncio
import atexit
import faulthandler
import inspect
import json
import logging
import os
import pickle
import random
import select
import signal
import socket
import sys
import threading
import time
import traceback
from dataclasses import dataclass, field
from typing import Any, NoReturn

from prefect_tpu import runtime
from prefect_tpu.core.errors import ConfigurationError
from prefect_tpu.core.messages import Event, LogRecord, Phase, Progress, Raised, Returned, Stage
from prefect_tpu.host import stacks
from prefect_tpu.host.process import prefect_context
from prefect_tpu.host.process.result_summary import summarize
from prefect_tpu.host.streams import cut
from prefect_tpu.wire import payload, pickling
from prefect_tpu.wire.channel import receive_command, send_event

CANCEL_SIGNAL = signal.SIGRTMIN + 7
"""Makes a cancel visible to the main thread: JAX takes SIGTERM for itself once it is initialized."""
EXIT_CODE_CANCELLED = 128 + signal.SIGTERM
JAX_SHUTDOWN_TIMEOUT_SECONDS = 8
"""Less than the grace that the agent gives a process that has returned."""
COORDINATOR_CONNECT_SECONDS = 5.0
COORDINATOR_RETRY_SECONDS = 0.01
MAX_TRACEBACK_CHARS = 100_000
MAX_CAUSES = 20

_NOT_THE_USERS = frozenset({__file__, asyncio.runners.__file__, asyncio.base_events.__file__})


def run(channel: int, payload_file: int, result_file: int, stdout: int, stderr: int) -> NoReturn:
    """Run the attempt that the descriptors belong to, then exit."""
    _take_streams(stdout, stderr)
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
    process: runtime._Process | None = None

    def run(self) -> int:
        self.exit_code = EXIT_CODE_CANCELLED
        try:
            returned = self._work()
        except runtime.Cancelled:
            return self.exit_code
        except runtime.Left as error:
            # Others may still save; if JAX's coordinator went now, they would be torn out of it.
            self.exit_code = 1
            self.send(self._raised(error))
            self.finish.wait()
            return self.exit_code
        except BaseException as error:  # noqa: BLE001 - whatever is raised is told to the driver
            self.exit_code = 1
            self.send(self._raised(error))
            return self.exit_code
        try:
            if _jax_is_distributed():
                _mute_native_errors()
            self.send(returned)
            self.finish.wait()
            _shut_down_jax()
            self.exit_code = 0
        except runtime.Cancelled:
            return self.exit_code
        return self.exit_code

    def _leave(self) -> None:
        """After a failure, do not let JAX wait at exit for peers that hang because of it."""
        if self.exit_code != 0 and _jax_is_distributed():
            logging.shutdown()
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
            os._exit(self.exit_code)

    def _work(self) -> Returned:
        buffers = payload.read(self.payload_file, writable=True)
        request = json.loads(bytes(buffers[0]))
        os.environ.update(request["gang_env"])
        os.environ.update(request["user_env"])
        _reseed()
        _log_to(self, request["log_level"])
        prefect_context.install(str(request["context"]["run_id"]))
        self.process = runtime._enter(request["context"], lambda *report: self.send(Progress(*report)))
        threading.Thread(target=self._listen, name="prefect-tpu-control", daemon=True).start()
        if request["jax"] is not None:
            self.stage = "jax"
            _start_jax(request["jax"])
            self.send(Phase("initialized"))
        # Runs after what the function registers, before what JAX did when it was imported.
        atexit.register(self._leave)
        self.stage = "unpickle"
        fn, args, kwargs = pickling.loads(buffers[1:], copy=False)
        self.classes = pickling.ClassesOfDriver()
        self.stage = "function"
        self.send(Phase("entered"))
        result = fn(*args, **kwargs)
        if inspect.iscoroutine(result):
            result = asyncio.run(result)
        _wait_for_arrays(result)
        return self._ship(result)

    def _ship(self, result: Any) -> Returned:
        assert self.process is not None
        self.process.reporter.flush()
        try:
            buffers = pickling.dumps(result, known=self.classes)
        except ConfigurationError as error:
            self.stage = "result"
            raise ConfigurationError(f"the result {error}") from error
        self.stage = "transfer"
        return Returned(payload.write(self.result_file, buffers), summarize(result))

    def _raised(self, error: BaseException) -> Raised:
        stage = self.stage
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        return Raised(
            stage=stage,
            type_name=_type_name(error),
            message=cut(_text(error)),
            traceback=_traceback(error, whole=stage != "function"),
            pickled=self._pickled(error) if stage == "function" else None,
            cause_types=_cause_types(error),
        )

    def _pickled(self, error: BaseException) -> bytes | None:
        """The exception, if the driver will be able to rebuild it."""
        try:
            data = pickling.dumps_inline(error, known=self.classes)
            rebuilt = pickle.loads(data)  # noqa: S301 - our own bytes
        except Exception:  # noqa: BLE001 - the user's class does what it does; its text travels anyway
            return None
        return data if type(rebuilt) is type(error) else None

    def send(self, event: Event) -> None:
        try:
            send_event(self.channel, event, self.result_file)
        except OSError:
            # The agent is gone; the zygote ends this process within the second.
            return

    # -- what the agent tells

    def _listen(self) -> None:
        assert self.process is not None
        while True:
            ready, _, _ = select.select([self.channel], [], [], runtime.REPORT_INTERVAL_SECONDS)
            if not ready:
                self.process.reporter.flush()
                continue
            command = receive_command(self.channel)
            if command is None:
                return
            match command["do"]:
                case "cancel":
                    self._cancel()
                case "drain":
                    runtime._notice(command["deadline_unix_seconds"], command["reason"])
                    if command["tell_jax"]:
                        _tell_jax()
                case "offer":
                    runtime._offer_more_slices(command["there"])
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
            raise runtime.Cancelled("the gang is cancelled; this process is killed when the grace period is over")

    def reset_signals(self) -> None:
        """In what the function forks: SIGTERM ends a process, as everywhere else."""
        if signal.getsignal(signal.SIGTERM) == self.on_cancel_signal:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


class ChannelHandler(logging.Handler):
    """Sends log records to the driver, with their level.

    Prefect leaves the root logger alone if it has a handler with a formatter.
    """

    def __init__(self, attempt: _Attempt) -> None:
        super().__init__()
        self._attempt = attempt
        self.setFormatter(logging.Formatter("%(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = self.format(record)
        except Exception:  # noqa: BLE001 - as logging's own handlers do for a bad format
            self.handleError(record)
            return
        self._attempt.send(LogRecord(record.levelno, record.name, cut(text)))


def _log_to(attempt: _Attempt, level: int) -> None:
    root = logging.getLogger()
    root.handlers[:] = [ChannelHandler(attempt)]
    root.setLevel(level)
    jax_logger = logging.getLogger("jax")
    if jax_logger.level == logging.NOTSET:  # it tells every backend that it does not find
        jax_logger.setLevel(max(level, logging.WARNING))


def _take_streams(stdout: int, stderr: int) -> None:
    null = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((null, 0), (stdout, 1), (stderr, 2)):
        os.dup2(source, target)
        os.close(source)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True, errors="backslashreplace")  # type: ignore[union-attr]
    faulthandler.enable(file=2)
    stacks.answer_signals()


def _reseed() -> None:
    random.seed()
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is not None:
        numpy_random.seed()


def _start_jax(init: dict[str, Any]) -> None:
    import jax

    if init["process_id"] != 0:
        _wait_for_coordinator(init["coordinator_address"], init["initialization_timeout_seconds"])
    jax.distributed.initialize(
        coordinator_address=init["coordinator_address"],
        num_processes=init["num_processes"],
        process_id=init["process_id"],
        initialization_timeout=init["initialization_timeout_seconds"],
        shutdown_timeout_seconds=JAX_SHUTDOWN_TIMEOUT_SECONDS,
        cluster_detection_method="deactivate",  # we know it all; asking the cloud's metadata costs seconds
    )


def _wait_for_coordinator(address: str, timeout_seconds: float) -> None:
    """JAX's client, if it comes before the coordinator listens, tries again only after a second."""
    host, _, port = address.rpartition(":")
    give_up = time.monotonic() + timeout_seconds
    while time.monotonic() < give_up:
        try:
            socket.create_connection((host.strip("[]"), int(port)), COORDINATOR_CONNECT_SECONDS).close()
        except OSError:
            time.sleep(COORDINATOR_RETRY_SECONDS)
        else:
            return


def _wait_for_arrays(result: Any) -> None:
    """So that what JAX still computes fails as the function's own error."""
    jax = sys.modules.get("jax")
    if jax is not None:
        jax.block_until_ready(result)


def _jax_is_distributed() -> bool:
    jax = sys.modules.get("jax")
    return jax is not None and jax.distributed.is_initialized()


def _mute_native_errors() -> None:
    """The function is done: what jaxlib's C++ side says of peers that end now is noise. Python is still heard."""
    heard = os.fdopen(os.dup(2), "w", buffering=1, errors="backslashreplace")
    sys.stderr.flush()
    sys.stderr = heard
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    os.close(null)


def _tell_jax() -> None:
    """JAX takes SIGTERM as the notice: `reached_preemption_sync_point` then agrees on a step among all hosts."""
    jax = sys.modules.get("jax")
    if jax is None or not jax.distributed.is_initialized():
        return
    from jax._src import distributed

    if distributed.global_state.preemption_sync_manager is not None:  # else SIGTERM is a cancel
        os.kill(os.getpid(), signal.SIGTERM)


def _shut_down_jax() -> None:
    if not _jax_is_distributed():
        return
    try:
        sys.modules["jax"].distributed.shutdown()
    except Exception:
        logging.getLogger("prefect_tpu").debug("jax.distributed.shutdown failed", exc_info=True)


def _cause_types(error: BaseException) -> tuple[str, ...]:
    """What it was raised from, or while that was handled; bounded, for a chain may be a ring."""
    names: list[str] = []
    cause = error.__cause__ or error.__context__
    while cause is not None and len(names) < MAX_CAUSES:
        names.append(_type_name(cause))
        cause = cause.__cause__ or cause.__context__
    return tuple(names)


def _type_name(error: BaseException) -> str:
    cls = type(error)
    return cls.__qualname__ if cls.__module__ in ("builtins", "__main__") else f"{cls.__module__}.{cls.__qualname__}"


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception as failure:  # noqa: BLE001 - the user's __str__
        return f"<its __str__ raised {type(failure).__name__}>"


def _traceback(error: BaseException, *, whole: bool) -> str:
    trace = error.__traceback__
    while not whole and trace is not None and trace.tb_frame.f_code.co_filename in _NOT_THE_USERS:
        trace = trace.tb_next
    text = "".join(traceback.TracebackException(type(error), error, trace, compact=True).format())
    return text[-MAX_TRACEBACK_CHARS:]
