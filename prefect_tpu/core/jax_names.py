"""Names in JAX's own code and messages that tell what a host is doing."""

from __future__ import annotations

COMPILING = ("backend_compile", "compile_or_get_cached", "_compile_and_write_cache")
"""Functions of JAX that are on the stack while XLA compiles."""


def compiles(stacks: str) -> bool:
    """Whether XLA compiles there, which may take minutes without any progress."""
    return any(name in stacks for name in COMPILING)
