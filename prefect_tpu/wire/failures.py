"""Exceptions of the function on their way from a host process to the driver: both ends."""

from __future__ import annotations

import pickle
import traceback
from collections.abc import Set
from typing import Any, Literal

from prefect_tpu.core.errors import RemoteTraceback
from prefect_tpu.core.messages import Raised, Stage
from prefect_tpu.core.text import MAX_TEXT_CHARS, clean, cut
from prefect_tpu.wire import pickling
from prefect_tpu.wire.exceptions import Bare
from prefect_tpu.wire.unpicklable import CannotPickleError

MAX_CAUSES = 20
STEERING = frozenset({"builtins", "asyncio", "concurrent", "prefect", "prefect_tpu"})
"""Who defines what is no Exception and means something to the process, thread or loop that it is raised in."""


def describe(
    error: BaseException,
    stage: Stage,
    *,
    classes: pickling.ClassesOfDriver | None = None,
    not_the_users: Set[str] = frozenset(),
    left: Literal["", "drain", "resize"] = "",
) -> Raised:
    """On the host: what is told of an exception. What the function raised travels itself, if it can.

    Args:
        error: what was raised.
        stage: where.
        classes: that the driver has.
        not_the_users: files whose frames are left out at the beginning of the traceback of the function.
        left: whether the function left, and why.
    """
    in_function = stage == "function"
    of_the_users = stage in ("function", "program")
    travels = in_function and not left and not _steers(error)
    return Raised(
        stage=stage,
        type_name=_type_name(error),
        message=cut(error.what if isinstance(error, CannotPickleError) else _text_of(error)),
        traceback=_traceback_of(error, not_the_users if of_the_users else frozenset()),
        pickled=_pickled(error, classes) if travels else None,
        cause_types=_cause_types(error),
        left=left,
        advice=error.advice if isinstance(error, CannotPickleError) else "",
        crash=in_function and not left and not isinstance(error, Exception),
    )


def rebuild(raised: Raised | None) -> BaseException | None:
    """In the driver: the exception with the host's traceback as its cause; None if it did not travel."""
    if raised is None or raised.pickled is None:
        return None
    try:
        error = pickle.loads(raised.pickled)  # noqa: S301 - from a host process of ours
    except Exception:  # noqa: BLE001 - whatever the user's class does when it is rebuilt here
        return None
    if not isinstance(error, BaseException):
        return None
    if not _speaks(error, raised.message):
        return None
    error.__cause__ = RemoteTraceback(raised.traceback)
    return error


def _speaks(error: BaseException, message: str) -> bool:
    """Whether it can be shown; it gets the text that it had on its host, if its class asks what did not travel."""
    cls: Any = type(error)
    try:
        str(error)
        repr(error)
    except Exception:  # noqa: BLE001 - the user's class
        own = {
            "__module__": cls.__module__,
            "__qualname__": cls.__qualname__,
            "__slots__": (),
            "__str__": lambda _: message,
            "__repr__": lambda _: f"{cls.__name__}({message!r})",
        }
        try:
            error.__class__ = type(cls)(cls.__name__, (cls,), own)
        except Exception:  # noqa: BLE001 - a metaclass, or a layout of its own
            return False
    return True


def _steers(error: BaseException) -> bool:
    """Whether it would end, interrupt or cancel the driver, were it raised there: SystemExit, KeyboardInterrupt, ..."""
    theirs = [cls.__module__.partition(".")[0] for cls in type(error).__mro__ if cls not in (BaseException, object)]
    return not isinstance(error, Exception) and not STEERING.isdisjoint(theirs)


def _pickled(error: BaseException, classes: pickling.ClassesOfDriver | None) -> bytes | None:
    """The exception, if the driver will be able to rebuild it; without attributes and arguments that do not pickle."""
    data = _try(error, type(error), classes)
    if data is not None:
        return data
    attributes = {name: value for name, value in vars(error).items() if _try(value, type(value), classes)}
    arguments = tuple(one if _try(one, type(one), classes) else cut(_text_of(one)) for one in error.args)
    return _try(Bare(error, arguments, attributes), type(error), classes)


def _try(value: Any, becomes: type, classes: pickling.ClassesOfDriver | None) -> bytes | None:
    """Its pickle, if something of that type comes out again."""
    try:
        data = pickling.dumps_inline(value, known=classes)
        rebuilt = pickle.loads(data)  # noqa: S301 - our own bytes
    except Exception:  # noqa: BLE001 - the user's class does what it does; its text travels anyway
        return None
    return data if type(rebuilt) is becomes else None


def _cause_types(error: BaseException) -> tuple[str, ...]:
    """What it was raised from, or while that was handled; bounded, for a chain may be a ring."""
    names: list[str] = []
    cause = error.__cause__ or error.__context__
    while cause is not None and len(names) < MAX_CAUSES:
        names.append(_type_name(cause))
        cause = cause.__cause__ or cause.__context__
    return tuple(names)


def _type_name(error: BaseException) -> str:
    """Of its class: with the module, unless that is `builtins` or `__main__`."""
    cls = type(error)
    return cls.__qualname__ if cls.__module__ in ("builtins", "__main__") else f"{cls.__module__}.{cls.__qualname__}"


def _text_of(error: object) -> str:
    """Its message, also if its own `__str__` fails."""
    try:
        return str(error)
    except Exception as failure:  # noqa: BLE001 - the user's __str__
        return f"<its __str__ raised {type(failure).__name__}>"


def _traceback_of(error: BaseException, not_the_users: Set[str]) -> str:
    """Its text, without the first frames that are in files of `not_the_users`; bounded."""
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename in not_the_users:
        trace = trace.tb_next
    text = "".join(traceback.TracebackException(type(error), error, trace, compact=True).format())
    return clean(text[-MAX_TEXT_CHARS:])
