"""Log records and printed lines of a host process, on their way to the agent."""

from __future__ import annotations

import faulthandler
import logging
import os
import sys
from collections.abc import Callable

from prefect_tpu.core.log_extra import extra_of
from prefect_tpu.core.messages import LogRecord
from prefect_tpu.core.text import cut
from prefect_tpu.host.process import stack_signal

Send = Callable[[LogRecord], None]


class ChannelHandler(logging.Handler):
    """Sends log records to the driver, with their level.

    Prefect leaves the root logger alone if it has a handler with a formatter.
    """

    def __init__(self, send: Send) -> None:
        super().__init__()
        self._send = send
        self.setFormatter(logging.Formatter("%(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = self.format(record)
        except Exception:  # noqa: BLE001 - as logging's own handlers do for a bad format
            self.handleError(record)
            return
        self._send(LogRecord(record.levelno, cut(record.name), cut(text), extra_of(record)))


def log_to(send: Send, level: int) -> None:
    """Have every record of at least `level` sent."""
    root = logging.getLogger()
    root.handlers[:] = [ChannelHandler(send)]
    root.setLevel(level)
    jax_logger = logging.getLogger("jax")
    if jax_logger.level == logging.NOTSET:  # it tells every backend that it does not find
        jax_logger.setLevel(max(level, logging.WARNING))


def take_streams(stdout: int, stderr: int) -> None:
    """Make these descriptors the process's output; its input is empty."""
    null = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((null, 0), (stdout, 1), (stderr, 2)):
        os.dup2(source, target)
        os.close(source)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True, errors="backslashreplace")  # type: ignore[union-attr]
    faulthandler.enable(file=2)
    stack_signal.answer_signals()
