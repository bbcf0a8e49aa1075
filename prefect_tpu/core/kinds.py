"""What an attempt can end with, and all that follows from it: one row for each kind."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

Charge = Literal["failures", "preemptions", "infrastructure", "nothing"]
Slices = Literal["kept", "grown", "handed over", "released"]
StateType = Literal["COMPLETED", "CANCELLED", "CRASHED", "FAILED"]
"""Those of Prefect's that an attempt can end with."""
Ending = Literal["finish", "terminate", "kill"]


class Kind(StrEnum):
    """What an attempt ended with."""

    SUCCEEDED = "SUCCEEDED"
    PREEMPTED = "PREEMPTED"
    INFRASTRUCTURE = "INFRASTRUCTURE"
    USER_ERROR = "USER_ERROR"
    CRASHED_PROCESS = "CRASHED_PROCESS"
    UNPROVISIONED = "UNPROVISIONED"
    FATAL = "FATAL"
    CANCELLED = "CANCELLED"
    TIMED_OUT = "TIMED_OUT"
    RESIZED = "RESIZED"


@dataclass(frozen=True, slots=True)
class KindRow:
    """What follows from one kind of end.

    Attributes:
        charge: the budget that pays for the attempt.
        retry: True: yes, as long as that budget lasts; None: as the task's own `retries` say; False: never.
        error: name of what the task run raises in the end, "" for nothing of ours. The user's own exception comes
            before it, and what is known of the hosts may choose a closer one.
        bar: type and name of the state that a slice's bar ends with on Prefect's timeline.
        state: in Prefect's history before the next attempt, "" for none.
        log_level: of the line in the run's logs; None for no line.
        slice_event: name of the event for each slice that is lost, "" for none.
        of_all_slices: each slice's row in the table shows this kind, not only those of the culprits.
        slices: what becomes of those that are not lost. "kept": for the next attempt; "grown": kept, and more are
            taken; "handed over": to the next gang of the process; "released": given back.
        ending: of processes that still run. "finish": they have returned and may take their time; "terminate":
            SIGTERM first, and `cancel_grace_seconds`; "kill": at once.
        resolution: what a person can do, where what happened says no better.
    """

    charge: Charge
    retry: bool | None
    error: str
    bar: tuple[StateType, str]
    state: str = ""
    log_level: int | None = None
    slice_event: str = ""
    of_all_slices: bool = False
    slices: Slices = "kept"
    ending: Ending = "kill"
    resolution: str = ""


KINDS: dict[Kind, KindRow] = {
    Kind.SUCCEEDED: KindRow(
        charge="nothing",
        retry=False,
        error="",
        bar=("COMPLETED", "Completed"),
        of_all_slices=True,
        slices="handed over",
        ending="finish",
    ),
    Kind.PREEMPTED: KindRow(
        charge="preemptions",
        retry=True,
        error="SlicePreemptedError",
        bar=("CRASHED", "Preempted"),
        state="Preempted",
        log_level=logging.WARNING,
        slice_event="slice.preempted",
        resolution="nothing, if the run can go on from its checkpoint: another slice takes its place when one is free",
    ),
    Kind.INFRASTRUCTURE: KindRow(
        charge="infrastructure",
        retry=True,
        error="HostLostError",
        bar=("CRASHED", "HostLost"),
        state="HostLost",
        log_level=logging.WARNING,
        resolution="look at the host's own logs; the slice is replaced for the next attempt",
    ),
    Kind.USER_ERROR: KindRow(
        charge="failures",
        retry=None,
        error="HostProcessError",
        bar=("FAILED", "Failed"),
        log_level=logging.WARNING,
        resolution="mend the function; the traceback is that of the host",
    ),
    Kind.CRASHED_PROCESS: KindRow(
        charge="failures",
        retry=None,
        error="HostProcessError",
        bar=("FAILED", "Failed"),
        log_level=logging.WARNING,
        resolution="look at the last lines that it wrote, above; exit by SIGKILL usually means out of memory",
    ),
    Kind.UNPROVISIONED: KindRow(
        charge="nothing", retry=False, error="SliceUnavailableError", bar=("FAILED", "Failed"), slices="released"
    ),
    Kind.FATAL: KindRow(
        charge="nothing", retry=False, error="HostProcessError", bar=("FAILED", "Failed"), log_level=logging.WARNING
    ),
    Kind.CANCELLED: KindRow(
        charge="nothing",
        retry=False,
        error="",
        bar=("CANCELLED", "Cancelled"),
        of_all_slices=True,
        slices="released",
        ending="terminate",
    ),
    Kind.TIMED_OUT: KindRow(
        charge="failures",
        retry=None,
        error="GangTimeoutError",
        bar=("FAILED", "TimedOut"),
        of_all_slices=True,
        ending="terminate",
    ),
    Kind.RESIZED: KindRow(
        charge="nothing",
        retry=True,
        error="AttemptError",
        bar=("COMPLETED", "Resized"),
        state="Resized",
        log_level=logging.INFO,
        of_all_slices=True,
        slices="grown",
        resolution="nothing: the run goes on with the slices that are free now",
    ),
}
