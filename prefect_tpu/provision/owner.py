"""Whose a resource is, in labels; and whether that owner is certainly gone."""

from __future__ import annotations

import os
import re
import uuid
from dataclasses import dataclass

from prefect_tpu.linux.processes import machine, start_of

FLEET_LABEL = "prefect-tpu-fleet"
OWNER_LABEL = "prefect-tpu-owner"
KIND_LABEL = "prefect-tpu-kind"
FLOW_RUN_LABEL = "prefect-tpu-flow-run"
TASK_RUN_LABEL = "prefect-tpu-task-run"
LABEL_LENGTH = 63
NAME = re.compile(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?")
"""Of a fleet: begins the ids of its resources, which end at 63 characters."""
LABEL_KEY = re.compile(r"[a-z][-_a-z0-9]{0,62}")
LABEL_VALUE = re.compile(r"[-_a-z0-9]{0,63}")

_living: set[str] = set()


@dataclass(frozen=True, slots=True)
class Owner:
    """One keeper of one process.

    Attributes:
        machine: of the boot and the pid namespace; pids mean something only inside it.
        pid, start: of the process; a pid alone is used again.
        token: of the keeper.
    """

    machine: str
    pid: int
    start: int
    token: str

    @classmethod
    def new(cls) -> Owner:
        """A keeper of this process, which lives until `end`."""
        owner = cls(machine(), os.getpid(), start_of(os.getpid()), uuid.uuid4().hex[:8])
        _living.add(owner.token)
        return owner

    @classmethod
    def parse(cls, label: str) -> Owner | None:
        """From a label; None if it is none of ours."""
        match = re.fullmatch(r"([0-9a-f]{12})-(\d+)-(\d+)-([0-9a-f]{8})", label)
        return None if match is None else cls(match[1], int(match[2]), int(match[3]), match[4])

    def __str__(self) -> str:
        return f"{self.machine}-{self.pid}-{self.start}-{self.token}"

    def end(self) -> None:
        """It keeps nothing any more: what it has left behind may be reaped."""
        _living.discard(self.token)

    @property
    def gone(self) -> bool | None:
        """True if it is certain, None if it cannot be seen from here: another machine or container."""
        if self.machine != machine():
            return None
        if self.pid == os.getpid() and self.start == start_of(self.pid):
            return self.token not in _living
        return start_of(self.pid) != self.start


def clean_label(text: str) -> str:
    """As a label's value may be: lower case, digits, dashes, underscores, 63 characters."""
    return re.sub(r"[^-_a-z0-9]", "-", text.lower())[:LABEL_LENGTH]
