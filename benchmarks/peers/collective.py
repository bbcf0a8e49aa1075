"""What every host process does in every system: a sum over all devices of the gang, and a note of when it was done."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

DEVICES = 16
"""Two slices of two hosts with four devices each."""
HOSTS = 4

Marks = dict[str, float]
"""What a host process has passed, in order, with the time (seconds since 1970): one clock, as it is one machine."""


def process_started(pid: int) -> float:
    """When a process was started or forked; the kernel knows it to a hundredth of a second."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    started = int(fields[19]) / os.sysconf("SC_CLK_TCK")
    return time.time() - (time.clock_gettime(time.CLOCK_BOOTTIME) - started)


def first_marks() -> Marks:
    """To be called first of all in a host process."""
    return {"process": process_started(os.getpid()), "function": time.time()}


def add_up(directory: str, process_id: int, marks: Marks) -> None:
    """The first collective of this process, and the note that it is done.

    Args:
        directory: where every host process leaves its note.
        process_id: of this host process.
        marks: what it has passed before; JAX is initialised.

    Raises:
        RuntimeError: the sum, or the number of devices, is not what it must be.
    """
    import jax
    import numpy
    from jax.sharding import NamedSharding, PartitionSpec

    split = PartitionSpec("all")
    mesh = jax.sharding.Mesh(numpy.asarray(jax.devices()), ("all",))
    ones = numpy.ones(mesh.size, numpy.float32)
    spread = jax.make_array_from_callback(ones.shape, NamedSharding(mesh, split), lambda index: ones[index])
    total = jax.jit(
        jax.shard_map(lambda x: jax.lax.psum(x, "all"), mesh=mesh, in_specs=split, out_specs=PartitionSpec())
    )(spread)
    value = float(numpy.asarray(total.addressable_data(0))[0])
    if value != DEVICES or mesh.size != DEVICES:
        raise RuntimeError(f"process {process_id}: the sum over {mesh.size} devices is {value:g}, not {DEVICES}")
    leave_note(directory, process_id, marks | {"collective": time.time()})


def leave_note(directory: str, process_id: int, marks: Marks) -> None:
    """A file with this process's marks; it is there as a whole or not at all."""
    note = Path(directory, f"{process_id}.json")
    half = note.with_suffix(".half")
    half.write_text(json.dumps(marks))
    half.rename(note)


def read_notes(directory: str) -> list[Marks]:
    """The notes of all hosts.

    Raises:
        RuntimeError: a host has left none.
    """
    notes = [json.loads(path.read_text()) for path in sorted(Path(directory).glob("*.json"))]
    if len(notes) != HOSTS:
        raise RuntimeError(f"{len(notes)} of {HOSTS} host processes have left a note in {directory}")
    return notes


def durations(begin: float, notes: list[Marks]) -> dict[str, float]:
    """From each mark to the next, by the last host that passed it; they add up to the whole.

    A process that stood ready before the call began counts from the beginning of the call.
    """
    passed, before = {}, begin
    for name in notes[0]:
        at = max(before, *(note[name] for note in notes))
        passed[name], before = at - before, at
    return passed
