"""What a log record carries beside its text: the `extra=` of its call, as far as it travels."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from prefect_tpu.core.text import clean, cut

MAX_EXTRAS = 50
"""Of one record."""
MAX_EXTRA_CHARS = 2_000
"""Of one text."""

_OF_RUNS = frozenset({"task_run_id", "task_run_name", "task_name", "flow_run_id", "flow_run_name", "flow_name"})
"""Prefect's own; the driver's logger has them, and no line may pass for another run's."""
_OF_RECORDS = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}


def extra_of(record: logging.LogRecord) -> dict[str, Any]:
    """Numbers, texts, True, False and None that a call has added to its record."""
    return usable(
        {name: one for name, one in record.__dict__.items() if type(one) in (bool, int, float, str, type(None))}
    )


def usable(extra: Mapping[str, Any]) -> dict[str, Any]:
    """What of it can be given to a run's logger."""
    kept: dict[str, Any] = {}
    for name, value in extra.items():
        if name in _OF_RECORDS or name in _OF_RUNS or not isinstance(name, str) or len(kept) == MAX_EXTRAS:
            continue
        kept[clean(name)] = cut(value, limit=MAX_EXTRA_CHARS) if isinstance(value, str) else value
    return kept
