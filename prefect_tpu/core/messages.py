"""What driver and host say to each other about one attempt: one request, a stream of events."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from prefect_tpu.core.checkpoints import Checkpoints
from prefect_tpu.core.prefect_run import PrefectRun
from prefect_tpu.core.text import CleanText

Stage = Literal[
    "runtime_env",
    "environment",
    "preload",
    "device",
    "jax",
    "checkpoints",
    "transfer",
    "unpickle",
    "function",
    "program",
    "result",
]
"""Where on the host something was raised. "function" is the user's own code running; "program" is what it asked for
that no gang can do, whatever it is given."""


@dataclass(frozen=True, slots=True)
class GangContext:
    """Who a host process is in its gang; `prefect_tpu.runtime.Context` says what each of them means."""

    slice_index: int
    num_slices: int
    host_index: int
    hosts_per_slice: int
    process_id: int
    num_processes: int
    attempt: int
    run_id: str
    slice_name: str
    checkpoint_dir: str | None = None
    can_grow: bool = False
    jax_distributed: bool = False


@dataclass(frozen=True, slots=True)
class JaxInit:
    """Arguments of `jax.distributed.initialize` for one host process."""

    coordinator_address: str
    num_processes: int
    process_id: int
    initialization_timeout_seconds: int


@dataclass(frozen=True, slots=True)
class DeviceCheck:
    """What must be held by nobody before a process is forked that may use the accelerator.

    Attributes:
        device_globs: patterns of the accelerator's device files.
        lock_file: libtpu's.
        wait_seconds: how long whoever holds one of them has to let go.
    """

    device_globs: tuple[str, ...]
    lock_file: str
    wait_seconds: float


@dataclass(frozen=True, slots=True)
class LaunchRequest:
    """Everything a host needs, beside function and arguments, to run one attempt.

    Attributes:
        attempt_id: unique for each attempt; the name in every later call.
        context: who the process is in its gang.
        gang_env: variables that the child sets after the fork (MEGASCALE_*, TPU_*, EXECUTOR_*).
        user_env: the user's variables; a zygote is started with those that are read when modules are imported.
        preload: modules that the zygote imports ahead.
        jax: how to initialize JAX's distributed runtime, or None for not at all.
        devices: looked at before the fork; None for not at all.
        chips: of the host; JAX is expected to have a device for each, and it is told if it has not. 0: not known.
        log_level: lowest level of `logging` records that travel to the driver.
        log_lines_per_second, log_burst_lines: how many lines and records travel; the others are counted.
        checkpoints: looked at before the function is entered, by process 0; None for not at all.
        prefect: the task run, for `get_run_logger`, `prefect.runtime` and the like.
    """

    attempt_id: str
    context: GangContext
    gang_env: dict[str, str]
    user_env: dict[str, str]
    preload: tuple[str, ...]
    jax: JaxInit | None
    devices: DeviceCheck | None = None
    chips: int = 0
    log_level: int = 20
    log_lines_per_second: float = float("inf")
    log_burst_lines: float = float("inf")
    checkpoints: Checkpoints | None = None
    prefect: PrefectRun | None = None


@dataclass(frozen=True, slots=True)
class HostReport(CleanText):
    """What `prepare` found on a host: version of prefect_tpu there, process ids, seconds it took.

    `lifeline_port` is where the agent's heartbeat can be heard, 0 if nowhere.
    """

    version: str
    agent_pid: int
    zygote_pid: int
    seconds: float
    lifeline_port: int = 0


@dataclass(frozen=True, slots=True)
class LogLine(CleanText):
    """One line that the function (or a library below Python) wrote."""

    stream: Literal["stdout", "stderr"]
    text: str


@dataclass(frozen=True, slots=True)
class LogRecord(CleanText):
    """One `logging` record of the function; `extra` is what it carries beside its text, see core/log_extra.py."""

    level: int
    logger: str
    message: str
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Carried:
    """What the function gave to Prefect and the driver is to hand over.

    Attributes:
        kind: "event"; "artifact", new or a newer version; "asset": metadata of one.
        body: JSON.
    """

    kind: Literal["event", "artifact", "asset"]
    body: str


@dataclass(frozen=True, slots=True)
class Phase:
    """The child got this far: "forked", "initialized" (JAX is up), "entered" (the function runs), "ended" (its threads
    and exit hooks, too; it waits for `finish`)."""

    name: Literal["forked", "initialized", "entered", "ended"]


@dataclass(frozen=True, slots=True)
class Progress(CleanText):
    """`runtime.report(step=..., **metrics)`; only the newest of each poll is kept.

    Attributes:
        step: how many steps are done.
        metrics: the newest numbers by name.
        total_steps: how many there will be, None if the function does not say.
        first_step: the first that this process has reported.
        highest_step: the highest.
        restarts: it has reported a step below the one before: steps are counted anew, in each epoch perhaps.
    """

    step: int | None
    metrics: dict[str, float]
    total_steps: int | None = None
    first_step: int | None = None
    highest_step: int | None = None
    restarts: bool = False


@dataclass(frozen=True, slots=True)
class CheckpointsFound(CleanText):
    """What process 0 has found in `checkpoint_dir` when its attempt began: names of what is finished."""

    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Returned(CleanText):
    """The function returned and its result lies ready; the child ends its threads and exit hooks."""

    result_bytes: int
    summary: str


@dataclass(frozen=True, slots=True)
class Raised(CleanText):
    """Something was raised.

    Attributes:
        pickled: the exception by cloudpickle, None if it does not pickle.
        cause_types: names of the types of what it was raised from, by `__cause__` and `__context__`.
        left: the function left by `runtime.leave()` ("drain") or at a `runtime.resize_point()` ("resize"), saved.
        advice: what a person can do, where it is known better than by the stage.
        crash: it is no Exception: Prefect shows such a task run as Crashed, and repeats nothing.
    """

    stage: Stage
    type_name: str
    message: str
    traceback: str
    pickled: bytes | None = None
    cause_types: tuple[str, ...] = ()
    left: Literal["", "drain", "resize"] = ""
    advice: str = ""
    crash: bool = False


@dataclass(frozen=True, slots=True)
class Exited(CleanText):
    """The child and its whole session are dead. Last event of an attempt on a host."""

    exit_code: int | None
    signal: int | None
    last_stderr: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Notice(CleanText):
    """The cloud says that a host will be taken away, or that it will not after all.

    Attributes:
        kind: what is to happen; a host has one notice of each kind at a time.
        reason: who says so, in words.
        seconds_left: until then, from when it is told; None if that is not known. No time of day, as hosts' clocks
            differ.
        withdrawn: the earlier notice of this kind does not hold any more.
    """

    kind: Literal["preemption", "maintenance"]
    reason: str
    seconds_left: float | None = None
    withdrawn: bool = False


Event = LogLine | LogRecord | Carried | Phase | Progress | CheckpointsFound | Returned | Raised | Notice | Exited


@dataclass(frozen=True, slots=True)
class Poll:
    """Answer to one long poll: new events, the cursor for the next one, lines dropped so far."""

    events: tuple[Event, ...] = ()
    cursor: int = 0
    dropped_lines: int = 0
