"""Where on a host something can be raised, and what follows from it: one row for each stage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from prefect_tpu.core.messages import Stage


@dataclass(frozen=True, slots=True)
class StageRow:
    """What follows from an exception at one stage.

    Attributes:
        blames: "setup": what the user wrote, or what hosts have installed, and no repetition mends it; "host": it is
            in the way of the function; "start": the host, or the network, or a peer; "function": the function.
        resolution: what a person can do.
        what: "host": what happened, in words; "{}" is the host.
        configuration: it is raised in the driver as a ConfigurationError.
        drops: what is not used again at once: the agent of the host, or its slice.
    """

    blames: Literal["setup", "host", "start", "function"]
    resolution: str = ""
    what: str = ""
    configuration: bool = False
    drops: Literal["", "agent", "slice"] = ""


STAGES: dict[Stage, StageRow] = {
    "runtime_env": StageRow(
        "setup",
        "mend the `runtime_env` of pool or runner; hosts without network need an index that they reach",
        drops="agent",
    ),
    "environment": StageRow("setup", "mend the `env` of runner, pool or setting"),
    "preload": StageRow("setup", "install the module on the hosts or take it out of `preload`", configuration=True),
    "device": StageRow(
        "host", "end that process, or let the next attempt take another slice", "{} could not start", drops="slice"
    ),
    "jax": StageRow("start", "a new attempt gets new ports; if it repeats, look at the network between the hosts"),
    "checkpoints": StageRow("setup", "say which by `checkpoint_key`, or take them out of the way", configuration=True),
    "transfer": StageRow(
        "host", "make room; the next attempt starts afresh", "arguments or result of {} could not be moved"
    ),
    "unpickle": StageRow("setup", "install on the hosts what the function needs, with the versions of the driver"),
    "function": StageRow("function"),
    "program": StageRow("setup", "mend the line of the function that the traceback names", configuration=True),
    "result": StageRow("setup", "return something that pickles: arrays, numbers, strings, plain classes"),
}
"""In the order in which a host gets there."""
