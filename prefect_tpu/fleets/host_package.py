"""What TPU VMs install: Ray and JAX in the driver's versions, and prefect_tpu from where its user has it."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from importlib import metadata
from typing import Any

DISTRIBUTION = "prefect-tpu"


def of(given: str | None) -> str | None:
    """What was given, or where this installation came from, if TPU VMs can get the very same there; else None.

    The name alone is no default: who owns it in an index could run code on every TPU VM.
    """
    return given or from_direct_url(_direct_url())


def packages(given: str | None, others: Sequence[str], lock: str | None) -> tuple[str, ...]:
    """What is installed, as for pip; with a lock file only the wheel that it may name.

    Args:
        given: the fleet's `host_package`.
        others: its `host_packages`.
        lock: its `host_lock`.
    """
    if lock is not None:
        return () if given is None else (given,)
    ours = of(given)
    versions = (f"ray=={metadata.version('ray')}", f"jax[tpu]=={metadata.version('jax')}")
    return (*versions, *(() if ours is None else (ours,)), *others)


def from_direct_url(found: dict[str, Any] | None) -> str | None:
    """A requirement of an installation's `direct_url.json` (PEP 610): a commit, or a wheel with its hash, by https."""
    url = str((found or {}).get("url", ""))
    if found is None or not url.startswith("https://") or "@" in url.partition("://")[2].partition("/")[0]:
        return None
    commit = found.get("vcs_info", {}).get("commit_id", "")
    if found.get("vcs_info", {}).get("vcs") == "git" and re.fullmatch(r"[0-9a-f]{40}", commit):
        below = f"#subdirectory={found['subdirectory']}" if found.get("subdirectory") else ""
        return f"{DISTRIBUTION} @ git+{url}@{commit}{below}"
    sha = found.get("archive_info", {}).get("hashes", {}).get("sha256", "")
    if sha and url.partition("#")[0].endswith(".whl"):
        return f"{DISTRIBUTION} @ {url.partition('#')[0]}#sha256={sha}"
    return None


def _direct_url() -> dict[str, Any] | None:
    try:
        text = metadata.distribution(DISTRIBUTION).read_text("direct_url.json")
        found = json.loads(text) if text else None
    except (metadata.PackageNotFoundError, ValueError):
        return None
    return found if isinstance(found, dict) else None
