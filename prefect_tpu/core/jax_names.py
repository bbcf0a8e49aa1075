"""Names in JAX's own code and messages that tell what a host is doing."""

from __future__ import annotations

COMPILING = ("backend_compile", "compile_or_get_cached", "_compile_and_write_cache")
"""Functions of JAX that are on the stack while XLA compiles."""
NO_FIRST_COLLECTIVE = "Gloo context initialization failed"
"""In the message of an error on simulated slices: hosts did not come to a first collective together."""
MEET_FIRST = (
    "on simulated slices hosts must come to their first collective over the same devices within 30 s of each other, "
    "which is fixed in JAX's CPU collectives; later ones wait for half an hour. Let all hosts meet before one of them "
    "works alone for long: call there what they call afterwards, such as multihost_utils.sync_global_devices('start')"
)


def compiles(stacks: str) -> bool:
    """Whether XLA compiles there, which may take minutes without any progress."""
    return any(name in stacks for name in COMPILING)
