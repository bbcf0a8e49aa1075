"""How checkpoint directories are named, and what is written down beside each of them."""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
import os
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
MOST_BEFORE = 8
"""Others that a record remembers."""
MOST_SHOWN = 8

MOST_NAMES = 10_000
"""Of checkpoints in a directory, that are told to the driver."""

_PART = re.compile(r"[A-Za-z0-9_.-]+")
_RECORD = re.compile(r"\.(.+)\.prefect-tpu\.json")


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


def origin_of(function: Any) -> str:
    """Which function it is, the same in every process: "FILE.py:NAME", without the folder, which may be another."""
    while isinstance(function, functools.partial):
        function = function.func
    function = inspect.unwrap(function)
    named = function if hasattr(function, "__qualname__") else type(function)
    code = getattr(getattr(function, "__func__", function), "__code__", None)
    return f"{'' if code is None else os.path.basename(code.co_filename)}:{named.__qualname__}"


def by_parameters(name: str, function: str, parameters: Mapping[str, str]) -> str:
    """What the directory of a call begins with: its name, and a hash of that, its function and its parameters.

    Args:
        name: of the task or flow.
        function: see `origin_of`.
        parameters: their hashes by name.
    """
    text = json.dumps([name, function, sorted(parameters.items())])
    return f"{with_dashes(name)[:NAME_CHARACTERS]}-{hashlib.sha256(text.encode()).hexdigest()[:HASH_DIGITS]}"


@dataclass(frozen=True, slots=True)
class Checkpoints:
    """What process 0 of a gang looks at, and writes down, before the function is entered.

    Attributes:
        directory: `checkpoint_dir`.
        key: its name below `checkpoint_root`.
        task, task_run, flow_run: their names.
        function: see `origin_of`.
        flow_run_id: "" outside a flow.
        parameters: their hashes by name; None for one that has none.
        old: name that release 0.1.0 gave the directories of this task, without the number; "" if it does not matter.
        old_parent: where it put them.
        above: of a key that was given, the records of directories that this one would lie in.
        look_timeout_seconds: the function does not wait longer for it.
    """

    directory: str
    key: str
    task: str
    function: str
    task_run: str
    flow_run: str
    flow_run_id: str
    parameters: dict[str, str | None]
    old: str
    old_parent: str
    above: tuple[str, ...]
    look_timeout_seconds: float

    @property
    def record(self) -> str:
        """Name of the file, beside the directory: in it, others would find it in place of a checkpoint."""
        return record_of(self.directory.rpartition("/")[2])

    @property
    def parent(self) -> str:
        """The directory of the record."""
        return self.directory.rpartition("/")[0]

    def as_json(self, written: str | None = None) -> str:
        """What is written down, after what was `written` before, of whose checkpoints some may still be there."""
        kept = ("key", "task", "function", "task_run", "flow_run", "flow_run_id", "parameters")
        ours = {name: value for name, value in asdict(self).items() if name in kept}
        before = [one for one in _entries(written) or [] if self._differs(one)][:MOST_BEFORE]
        return json.dumps(ours | ({"before": before} if before else {}), indent=1)

    def old_directories(self, names: list[str]) -> list[str]:
        """Those of release 0.1.0 among the names of directories and records."""
        found = [one for one in names if self.old and re.fullmatch(rf"{re.escape(self.old)}-\d+", one)]
        return sorted(one for one in found if record_of(one) not in names)

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
        """That what was written down is of another task or other parameters; "" if it is not."""
        entries = _entries(written)
        if entries is None:
            return f"{self.parent}/{self.record} cannot be read: whose checkpoints are in {self.directory} is not known"
        said = [
            f"{', '.join(differ)} {'differs' if len(differ) == 1 else 'differ'} "
            f"(task {one['task']!r}, flow run {one['flow_run']!r})"
            for one in entries
            if (differ := self._differs(one))
        ]
        if not said:
            return ""
        return (
            f"checkpoint_dir {self.directory} has been used by others: {'; '.join(said)}. What is there may be theirs; "
            "another checkpoint_key= starts anew"
        )

    def say_unknown(self) -> str:
        """That there is no record of what is there."""
        return f"{self.directory} has something in it, and no record says whose it is: the function may go on from it"

    def say_nested(self, names: Iterable[str], above: Iterable[str]) -> str:
        """That directories of other keys are in this one, or it is in one of theirs; "" if none is.

        Args:
            names: of what is in the directory.
            above: of `self.above`, those that are there.
        """
        inside = [one.groups()[0] for name in sorted(names) if (one := _RECORD.fullmatch(name))]
        outside = [os.path.basename(one) for one in above]
        text = ""
        if inside:
            text = f"directories of other keys are in it: {', '.join(inside[:MOST_SHOWN])}"
        if outside:
            text += ("; " if text else "") + f"it is in the directory of another key (record {', '.join(outside)})"
        if not text:
            return ""
        return (
            f"checkpoint_dir {self.directory}: {text}. Who looks for the latest step may take one for the other; no "
            "checkpoint_key should begin with another one and a '/'"
        )

    def _differs(self, other: Mapping[str, Any]) -> list[str]:
        """In what: the names of parameters, "task" or "the function"."""
        ours, theirs = self.parameters, other["parameters"]
        found = [] if other["task"] == self.task else ["task"]
        if not found and other.get("function", self.function) != self.function:
            found = ["the function"]
        return found + [
            name
            for name in sorted({*ours, *theirs})
            if name not in ours or name not in theirs or (ours[name] != theirs[name] and ours[name] and theirs[name])
        ]


def record_of(name: str) -> str:
    """The file's name, beside a directory of that name."""
    return f".{name}.prefect-tpu.json"


def _entries(written: str | None) -> list[dict[str, Any]] | None:
    """Who is written down, the last one first; None if that cannot be read."""
    if written is None:
        return []
    try:
        last = dict(json.loads(written))
        found = [last, *(dict(one) for one in last.pop("before", ()))]
        return [one | {"parameters": dict(one["parameters"])} for one in found if one["task"] + one["flow_run"]]
    except (ValueError, TypeError, KeyError):
        return None
