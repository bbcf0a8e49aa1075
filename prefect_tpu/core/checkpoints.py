"""How checkpoint directories are named, and what is written down beside each of them."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

MOST_KEY_CHARACTERS = 1_000
MOST_PART_CHARACTERS = 200
"""Of a part of a key between two "/": names of files may have 255 bytes, and a record's is a little longer."""
NAME_CHARACTERS = 80
"""Of a task's or flow's name in the name of a directory."""
HASH_DIGITS = 16

MOST_NAMES = 10_000
"""Of checkpoints in a directory, that are told to the driver."""

_PART = re.compile(r"[A-Za-z0-9_.-]+")


def check_key(key: Any) -> str:
    """A `checkpoint_key`: where below `checkpoint_root` a run keeps its checkpoints.

    Raises:
        ValueError: it cannot be; what is allowed.
    """
    if not isinstance(key, str):
        raise ValueError(f"must be a string, not {type(key).__name__}")  # noqa: TRY004 - one kind for all that is wrong
    parts = key.split("/")
    if len(key) > MOST_KEY_CHARACTERS or any(
        not _PART.fullmatch(part) or part in (".", "..") or len(part) > MOST_PART_CHARACTERS for part in parts
    ):
        raise ValueError(
            'must be names of letters, digits, "_", "." and "-", with "/" between them, such as "sweep-7/rate-0.1"; '
            f'none of them empty, "." or "..", each of at most {MOST_PART_CHARACTERS} characters and all together of '
            f"at most {MOST_KEY_CHARACTERS}"
        )
    return key


def finished(names: Iterable[str]) -> tuple[str, ...]:
    """Of what is in a checkpoint directory: checkpoints that are whole, as far as names tell.

    Orbax writes into a directory with "tmp" in its name and renames that when all hosts are done; whoever writes files
    with care does the same.
    """
    whole = [name for name in names if not name.startswith(".") and "tmp" not in name.lower()]
    whole.sort(key=lambda name: (len(name), name))  # numbers by their size
    return tuple(whole[-MOST_NAMES:])


def with_dashes(name: str) -> str:
    """A task's name as a name of a directory; release 0.1.0 did the same."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", name)


def by_parameters(name: str, parameters: Mapping[str, str]) -> str:
    """What the directory of a call begins with: its name, and a hash of that and of its parameters' hashes."""
    text = json.dumps([name, sorted(parameters.items())])
    return f"{with_dashes(name)[:NAME_CHARACTERS]}-{hashlib.sha256(text.encode()).hexdigest()[:HASH_DIGITS]}"


@dataclass(frozen=True, slots=True)
class Checkpoints:
    """What process 0 of a gang looks at, and writes down, before the function is entered.

    Attributes:
        directory: `checkpoint_dir`.
        key: its name below `checkpoint_root`.
        task, task_run, flow_run: their names.
        flow_run_id: "" outside a flow.
        parameters: their hashes by name; None for one that has none.
        old: name that release 0.1.0 gave the directories of this task, without the number; "" if it does not matter.
        old_parent: where it put them.
        look_timeout_seconds: the function does not wait longer for it.
    """

    directory: str
    key: str
    task: str
    task_run: str
    flow_run: str
    flow_run_id: str
    parameters: dict[str, str | None]
    old: str
    old_parent: str
    look_timeout_seconds: float

    @property
    def record(self) -> str:
        """Name of the file, beside the directory: in it, others would find it in place of a checkpoint."""
        return f".{self.directory.rpartition('/')[2]}.prefect-tpu.json"

    @property
    def parent(self) -> str:
        """The directory of the record."""
        return self.directory.rpartition("/")[0]

    def as_json(self) -> str:
        """What is written down."""
        kept = ("key", "task", "task_run", "flow_run", "flow_run_id", "parameters")
        return json.dumps({name: value for name, value in asdict(self).items() if name in kept}, indent=1)

    def old_directories(self, names: list[str]) -> list[str]:
        """Those of release 0.1.0 among the names of directories and records."""
        found = [one for one in names if self.old and re.fullmatch(rf"{re.escape(self.old)}-\d+", one)]
        return sorted(one for one in found if f".{one}.prefect-tpu.json" not in names)

    def say_old(self, found: list[str]) -> str:
        """What to do about them."""
        keys = " or ".join(f'checkpoint_key="{self.flow_run_id}/{one}"' for one in found)
        return (
            f"{self.directory} is not there, but release 0.1.0 of prefect_tpu has left checkpoints of task "
            f"{self.task!r} of this flow run in {self.old_parent}: {', '.join(found)}. It named them by the order of "
            f"calls, so nobody knows which of them is this call's. To go on from one: {keys} (or a function of the "
            "parameters that says which); to start anew, rename or delete them"
        )

    def say_others(self, written: str) -> str:
        """That what was written down is of other parameters; "" if it is not."""
        try:
            before = json.loads(written)
            theirs, who = dict(before["parameters"]), f"task {before['task']!r}, flow run {before['flow_run']!r}"
        except (ValueError, TypeError, KeyError):
            return f"{self.parent}/{self.record} cannot be read: whose checkpoints are in {self.directory} is not known"
        ours = self.parameters
        differ = [
            name
            for name in sorted({*ours, *theirs})
            if name not in ours or name not in theirs or (ours[name] != theirs[name] and ours[name] and theirs[name])
        ]
        if not differ:
            return ""
        return (
            f"checkpoint_dir {self.directory} has been used with other parameters ({who}): {', '.join(differ)} "
            f"{'differs' if len(differ) == 1 else 'differ'}. What is there was not made with these; another "
            "checkpoint_key= starts anew"
        )
