"""What the hosts say, in the task run's own logs."""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from collections import Counter
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass, field
from typing import Any

from prefect_tpu.core.gang import Member
from prefect_tpu.core.log_extra import usable
from prefect_tpu.core.messages import LogLine, LogRecord, Progress
from prefect_tpu.core.rate import RateLimit
from prefect_tpu.core.text import clean, cut

Logger = logging.Logger | logging.LoggerAdapter[Any]

NOISE = ("[Gloo] Rank ", "Expected number of connected peer ranks is")
"""What the simulation's collectives print at every start; goes to DEBUG."""
PROGRESS_LOG_INTERVAL_SECONDS = 5.0
DROPPED_LOG_INTERVAL_SECONDS = 10.0
"""Between two words on how many lines were dropped; the last comes when the attempt is over."""
MAX_METRICS_CHARS = 2_000
"""Of one line of progress."""
RUN_LOGGERS = ("prefect.task_runs", "prefect.flow_runs")
"""What `prefect.get_run_logger` gives, by the names in Prefect's own logging.yml."""


OWN_HOOK = "prefect_tpu_ends_gangs"
"""A hook that flows have while a gang of theirs runs; that Prefect calls it interests nobody."""


class CleanRecords(logging.Filter):
    """Lets every record of a user's pass, clean, with the traceback of the user's own exception.

    Prefect's handler cannot send what is not: the line would be lost.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        try:
            text = record.getMessage()
        except Exception:  # noqa: BLE001 - arguments that do not fit: the handlers say so, as always
            return True
        if OWN_HOOK in text:
            return record.levelno >= logging.WARNING
        if (said := clean(text)) != text:
            record.msg, record.args = said, None
        if record.exc_info and not record.exc_text:
            trace = _FORMATTER.formatException(record.exc_info)
            if (said := clean(trace)) != trace:
                record.exc_text = said  # what formatters take, if it is there
        return True


_FORMATTER = logging.Formatter()
_CLEAN = CleanRecords()


def keep_lines_clean() -> None:
    """No line of a run's logger is lost by its text; once for the process, however often it is called."""
    for name in RUN_LOGGERS:
        logging.getLogger(name).addFilter(_CLEAN)


@dataclass(slots=True)
class RunLog:
    """Forwards lines, records and progress of every host to one logger. Never raises.

    Attributes:
        logger: the task run's.
        rate: for the lines of all hosts together; each host has a limit of its own before.
        extra_of: by slice index, what a record of one of its hosts carries beside the logger's own.
        prints: whether printed lines are log lines; else they go to this process's own stdout and stderr, as Prefect's
            `log_prints=False` has it.
    """

    logger: Logger
    rate: RateLimit
    extra_of: Callable[[int], dict[str, str] | None] = lambda _: None
    prints: bool = True
    _last_progress: MutableMapping[int, float] = field(default_factory=dict)
    _dropped: Counter[tuple[str, str]] = field(default_factory=Counter)
    _dropped_said_at: float = 0.0

    def log(self, member: Member, entry: LogLine | LogRecord, *, collateral: bool) -> None:
        """One line of a host. What a host says after another one failed is noise: DEBUG."""
        if isinstance(entry, LogRecord):
            level, text = entry.level, entry.message
        else:
            level, text = logging.INFO, entry.text
        if collateral or any(noise in text for noise in NOISE):
            level = logging.DEBUG
        if not self.logger.isEnabledFor(level):
            return
        if level < logging.WARNING and not self.rate.take(time.monotonic()):
            self._drop("all hosts", 1, "gang_log_lines_per_second")
            return
        if isinstance(entry, LogLine) and not self.prints:
            _print(f"[{member.label}] {text}\n", sys.stderr if entry.stream == "stderr" else sys.stdout)
            return
        extra = usable(entry.extra) if isinstance(entry, LogRecord) else {}
        self.logger.log(
            level, "[%s] %s", member.label, text, extra={**extra, **(self.extra_of(member.slice_index) or {})}
        )

    def dropped(self, member: Member, lines: int) -> None:
        """Lines that did not leave the host."""
        self._drop(member.label, lines, "host_log_lines_per_second")

    def _drop(self, who: str, lines: int, setting: str) -> None:
        self._dropped[who, setting] += lines
        if time.monotonic() - self._dropped_said_at >= DROPPED_LOG_INTERVAL_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Say how many lines were dropped since the last time."""
        dropped, self._dropped = self._dropped, Counter()
        for (who, setting), lines in dropped.items():
            self._dropped_said_at = time.monotonic()
            self.logger.warning(
                "[%s] %d log lines dropped: more than %s lets through. Log less, or raise PREFECT_INTEGRATIONS_TPU_%s.",
                who, lines, setting, setting.upper(),
            )  # fmt: skip

    def progress(self, member: Member, report: Progress) -> None:
        """Progress of process 0, now and then; every host reports much the same."""
        step, metrics = report.step, report.metrics
        now = time.monotonic()
        if member.process_id != 0 or now - self._last_progress.get(0, -1e9) < PROGRESS_LOG_INTERVAL_SECONDS:
            return
        self._last_progress[0] = now
        values = ", ".join(f"{name}={value:.6g}" for name, value in metrics.items())
        values = cut(values, limit=MAX_METRICS_CHARS)
        self.logger.info("[%s] step %s%s", member.label, step, f": {values}" if values else "")

    def say(self, text: str) -> None:
        """Something about the gang as a whole."""
        self.logger.info("%s", cut(text))


def _print(line: str, stream: Any) -> None:
    """Not by `print`: a flow that logs prints has replaced it."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    with contextlib.suppress(OSError, ValueError, AttributeError):  # closed, nobody reads, or there is none
        stream.write(line.encode(encoding, "backslashreplace").decode(encoding))
        stream.flush()
