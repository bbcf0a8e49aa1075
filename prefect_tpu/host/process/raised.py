"""What is told of an exception that the function raised."""

from __future__ import annotations

import traceback
from collections.abc import Set

MAX_TRACEBACK_CHARS = 100_000
MAX_CAUSES = 20


def cause_types(error: BaseException) -> tuple[str, ...]:
    """What it was raised from, or while that was handled; bounded, for a chain may be a ring."""
    names: list[str] = []
    cause = error.__cause__ or error.__context__
    while cause is not None and len(names) < MAX_CAUSES:
        names.append(type_name(cause))
        cause = cause.__cause__ or cause.__context__
    return tuple(names)


def type_name(error: BaseException) -> str:
    """Of its class: with the module, unless that is `builtins` or `__main__`."""
    cls = type(error)
    return cls.__qualname__ if cls.__module__ in ("builtins", "__main__") else f"{cls.__module__}.{cls.__qualname__}"


def text_of(error: BaseException) -> str:
    """Its message, also if its own `__str__` fails."""
    try:
        return str(error)
    except Exception as failure:  # noqa: BLE001 - the user's __str__
        return f"<its __str__ raised {type(failure).__name__}>"


def traceback_of(error: BaseException, not_the_users: Set[str]) -> str:
    """Its text, without the first frames that are in files of `not_the_users`; bounded."""
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename in not_the_users:
        trace = trace.tb_next
    text = "".join(traceback.TracebackException(type(error), error, trace, compact=True).format())
    return text[-MAX_TRACEBACK_CHARS:]
