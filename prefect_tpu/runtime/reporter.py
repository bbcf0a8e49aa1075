"""What `runtime.report` has said, on its way to the agent."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from prefect_tpu.core.errors import ConfigurationError
from prefect_tpu.core.messages import Progress

REPORT_INTERVAL_SECONDS = 0.5
"""`report` sends at most this often; the newest values are never lost, they go with the next sending."""
LAST_VALUES_SECONDS = 1.0
"""How long a function that ends or leaves waits for values that a device still computes; they may follow later."""

MAX_METRICS = 1_000
"""In one report."""
MAX_METRIC_NAME_CHARS = 200
MAX_STEP = 2**63 - 1

Send = Callable[[Progress], None]


def whole_number(name: str, value: Any) -> int | None:
    """A step, as it is now: what it was taken from may be gone a moment later.

    Args:
        name: of the argument.
        value: a whole number, a scalar of numpy or JAX (then its device is waited for), or None.

    Raises:
        ConfigurationError: it is none.
    """
    if value is None:
        return None
    cause: Exception | None = None
    if hasattr(type(value), "__int__") or hasattr(type(value), "__index__"):
        try:
            number = int(value)
        except (TypeError, ValueError, OverflowError) as error:
            cause = error
        else:
            if abs(number) <= MAX_STEP:
                return number
    raise ConfigurationError(
        f"{name} of runtime.report must be a whole number below 2**63 (or a scalar of numpy or JAX), "
        f"got {type(value).__name__}" + ("" if cause is None else f": {cause}")
    ) from cause


@dataclass(frozen=True, slots=True)
class _Said:
    """One report; `metrics` as they were given, `waits` if some of them may have to be waited for."""

    step: int | None
    total_steps: int | None
    metrics: Mapping[str, Any]
    waits: bool


@dataclass(slots=True)
class _Converted:
    """A report whose values are waited for; `told`: that it was made has been sent already, without them."""

    said: _Said
    since: float
    told: bool


class Reporter:
    """Sends the newest report now and then; whatever is left is sent by `flush`.

    Plain numbers are taken at once. Values that may have to be waited for, or whose conversion is the user's own code,
    are converted on a thread of its own: the function does not wait for them, nor does what hears the agent.
    """

    def __init__(self, send: Send, clock: Callable[[], float] = time.monotonic) -> None:
        self._send = send
        self._clock = clock
        self._changed = threading.Condition()
        self._sent_at = -math.inf
        self._first: int | None = None
        self._last: int | None = None
        self._highest: int | None = None
        self._restarts = False
        self._waiting: _Said | None = None
        self._converted: _Converted | None = None
        self._next: _Said | None = None
        self._thread: threading.Thread | None = None
        self._complained: set[str] = set()

    def report(self, step: int | None, metrics: Mapping[str, Any], total_steps: int | None = None) -> None:
        """Keep it; send it, if nothing was sent lately."""
        with self._changed:
            if step is not None:
                self._first = step if self._first is None else self._first
                self._restarts = self._restarts or (self._last is not None and step < self._last)
                self._highest = step if self._highest is None else max(step, self._highest)
                self._last = step
            waits = any(not _is_plain(one) for one in metrics.values())
            self._waiting = _Said(step, total_steps, metrics, waits)
            if self._clock() - self._sent_at < REPORT_INTERVAL_SECONDS:
                return
        self.flush()

    def flush(self, wait_seconds: float = 0.0) -> None:
        """Send what waits; values that are not there yet follow.

        Args:
            wait_seconds: how long they are waited for at most.
        """
        said = self._to_send()
        if said is not None:
            plain = {name: one for name, one in said.metrics.items() if _is_plain(one)}
            self._tell(said, self._numbers(said.step, plain))
        if wait_seconds > 0:
            with self._changed:
                self._changed.wait_for(lambda: self._converted is None, wait_seconds)
            said = self._not_told(0.0)
            if said is not None:
                self._tell(said, {})

    def _to_send(self) -> _Said | None:
        """What is sent now, without the values that are waited for."""
        with self._changed:
            waiting, self._waiting = self._waiting, None
            if waiting is not None:
                self._sent_at = self._clock()
                if waiting.waits and self._converted is None:
                    self._convert_soon(_Converted(waiting, self._clock(), told=False))
                    return None
                if self._converted is not None:
                    self._converted.told = True
                if waiting.waits:
                    self._next = waiting
                return waiting
        return self._not_told(REPORT_INTERVAL_SECONDS)

    def _not_told(self, seconds: float) -> _Said | None:
        """The report whose values have been waited for so long, if nobody knows of it yet."""
        with self._changed:
            one = self._converted
            if one is None or one.told or self._clock() - one.since < seconds:
                return None
            one.told = True
            return one.said

    def _convert_soon(self, one: _Converted) -> None:
        self._converted = one
        self._changed.notify_all()
        if self._thread is None:
            self._thread = threading.Thread(target=self._convert, name="prefect-tpu-reports", daemon=True)
            self._thread.start()

    def _convert(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._converted is not None)
                assert self._converted is not None
                said = self._converted.said
            self._tell(said, self._numbers(said.step, said.metrics))
            del said
            with self._changed:
                following, self._next = self._next, None
                self._converted = None if following is None else _Converted(following, self._clock(), told=True)
                self._changed.notify_all()

    def _tell(self, said: _Said, numbers: dict[str, float]) -> None:
        self._send(Progress(said.step, numbers, said.total_steps, self._first, self._highest, self._restarts))

    def _numbers(self, step: int | None, metrics: Mapping[str, Any]) -> dict[str, float]:
        """Those that have a value; of a metric that has none, a word, once."""
        numbers: dict[str, float] = {}
        for name, value in metrics.items():
            try:
                numbers[name] = float(value)
            except BaseException as error:  # noqa: BLE001 - the user's own code, in a thread of ours
                if name not in self._complained:
                    self._complained.add(name)
                    logging.getLogger("prefect_tpu").warning(
                        "metric %r of step %s has no value and is left out: %s: %s",
                        name, step, type(error).__name__, error,
                    )  # fmt: skip
        return numbers


def _is_plain(value: Any) -> bool:
    """Its value is there already."""
    return type(value) in (int, float, bool) or type(value).__module__ == "numpy"
