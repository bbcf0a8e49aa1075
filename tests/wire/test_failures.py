"""What is told of an exception on its way to the driver, and what is made of it there."""

from __future__ import annotations

import asyncio

import pytest

from prefect_tpu import runtime
from prefect_tpu.wire import failures


class OwnInterruption(BaseException):
    """No Exception, and nobody's but the user's."""


class OwnExit(SystemExit):
    """Ends a process, under another name."""


SIGNALS = [
    SystemExit(4),
    SystemExit(),
    OwnExit(4),
    KeyboardInterrupt(),
    GeneratorExit(),
    asyncio.CancelledError(),
    BaseExceptionGroup("several", [KeyboardInterrupt()]),
    runtime.Cancelled("raised by hand"),
]


@pytest.mark.parametrize("error", SIGNALS, ids=lambda one: type(one).__name__)
def test_what_steers_a_process_is_told_but_does_not_travel(error: BaseException) -> None:
    """Raised in the driver it would end, interrupt or cancel that."""
    told = failures.describe(error, "function")
    assert told.crash
    assert told.type_name.endswith(type(error).__name__)
    assert failures.rebuild(told) is None


@pytest.mark.parametrize("error", [OwnInterruption("mine"), ValueError("x")], ids=lambda one: type(one).__name__)
def test_what_is_the_users_own_travels(error: BaseException) -> None:
    told = failures.describe(error, "function")
    assert told.crash == (not isinstance(error, Exception))
    again = failures.rebuild(told)
    assert type(again) is type(error)
    assert again.args == error.args


def test_whoever_leaves_has_not_crashed() -> None:
    told = failures.describe(runtime.Left("left"), "function", left="drain")
    assert not told.crash
    assert failures.rebuild(told) is None
