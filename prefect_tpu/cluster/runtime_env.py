"""Ray's `runtime_env` for the hosts of a gang: what of it may be used, and what is brought to the cluster first."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from prefect_tpu.core.errors import ConfigurationError
from prefect_tpu.core.secrets import shown, without_credentials
from prefect_tpu.linux.places import current_directory

ALLOWED = ("pip", "uv", "conda", "py_modules", "working_dir", "excludes", "env_vars", "config")
"""Keys that fit processes which share their host with an agent; others start containers or replace Python."""

ADDED_BY_RAY = ("_ray_commit", "_ray_release")
"""Keys that ray.runtime_env.RuntimeEnv puts beside what the user said; they are left out."""


def check(given: object, where: str = "runtime_env") -> dict[str, Any]:
    """What was given, if Ray takes it and a gang can use it. Reads no files and connects to nothing.

    Args:
        given: the user's value.
        where: how messages call it.

    Raises:
        ConfigurationError: what is wrong, and what is allowed.
    """
    if not isinstance(given, Mapping) or not all(isinstance(key, str) for key in given):
        raise ConfigurationError(
            f'{where}={shown(given, where)}: must be a mapping such as {{"pip": ["einops==0.8.1"]}}'
        )
    given = {key: value for key, value in given.items() if key not in ADDED_BY_RAY}
    unknown = sorted(set(given) - set(ALLOWED))
    if unknown:
        raise ConfigurationError(f"{where} has the key {unknown[0]!r}; a gang's hosts take {', '.join(ALLOWED)}")
    for key in ("pip", "uv"):
        if isinstance(given.get(key), str):
            raise ConfigurationError(
                f"{where}[{key!r}]={shown(given[key])}: must be a list of packages; a file would have to be on every "
                "machine that reads this"
            )
    if str(given.get("conda", "")).endswith((".yaml", ".yml")):
        raise ConfigurationError(f"{where}['conda']: must be a conda environment's name, or its specification")
    try:
        plain: dict[str, Any] = json.loads(json.dumps(dict(given)))
    except (TypeError, ValueError) as error:
        raise ConfigurationError(f"{where}: must be plain texts, numbers, lists and mappings: {error}") from None
    import ray  # noqa: F401 - before parts of it: see tests/test_house.py
    from ray.runtime_env import RuntimeEnv

    # Ray also looks for directories, but they are of the machine that runs the flow, not of any that reads this.
    away = plain | {"py_modules": [one for one in plain.get("py_modules") or [] if not _is_local(one)]}
    if _is_local(plain.get("working_dir")):
        del away["working_dir"]
    try:
        RuntimeEnv(**away)
    except (TypeError, ValueError, OSError) as error:
        raise ConfigurationError(f"{where}: Ray does not take it: {without_credentials(str(error))}") from None
    return plain


def upload(runtime_env: Mapping[str, Any]) -> dict[str, Any]:
    """The same with directories of this machine in Ray's store, by addresses that change with what is in them.

    Raises:
        ConfigurationError: one of them cannot be brought there.
    """
    if not runtime_env:
        return {}
    import ray
    from ray._private.ray_constants import RAY_RUNTIME_ENV_IGNORE_GITIGNORE
    from ray._private.runtime_env.py_modules import upload_py_modules_if_needed
    from ray._private.runtime_env.working_dir import upload_working_dir_if_needed

    node: Any = ray._private.worker.global_worker.node
    ready = json.loads(json.dumps(dict(runtime_env)))
    _look_for_directories(ready)
    with_ignored = os.environ.get(RAY_RUNTIME_ENV_IGNORE_GITIGNORE, "0") != "1"
    try:
        for bring in (upload_py_modules_if_needed, upload_working_dir_if_needed):
            ready = bring(ready, include_gitignore=with_ignored, scratch_dir=node.get_runtime_env_dir_path())
    except (TypeError, ValueError, OSError, RuntimeError) as error:
        says = without_credentials(str(error))
        raise ConfigurationError(f"runtime_env: it cannot be brought to the cluster: {says}") from None
    ready.pop("excludes", None)
    return dict(ready)


BY_UV = "RAY_ENABLE_UV_RUN_RUNTIME_ENV"
"""Ray's own variable: whether workers of a driver that some `uv run` has started are started by uv, too."""


@contextlib.contextmanager
def whatever_started_us() -> Iterator[None]:
    """While it is open, Ray connects as it does for `python flow.py`, also if the driver is below a `uv run`.

    Ray would have every host unpack the current directory and start its workers by `uv run`, with what uv finds there.
    A gang brings its code itself, and hosts have their packages. Who sets the variable to 1 has asked for Ray's way.
    """
    import ray  # noqa: F401 - before parts of it: see tests/test_house.py
    from ray._private import ray_constants

    before = ray_constants.RAY_ENABLE_UV_RUN_RUNTIME_ENV
    ray_constants.RAY_ENABLE_UV_RUN_RUNTIME_ENV = before and BY_UV in os.environ
    try:
        yield
    finally:
        ray_constants.RAY_ENABLE_UV_RUN_RUNTIME_ENV = before


def key_of(runtime_env: Mapping[str, Any]) -> str:
    """Two of the same key are the same."""
    return json.dumps(runtime_env, sort_keys=True) if runtime_env else ""


def setup_seconds(runtime_env: Mapping[str, Any]) -> float:
    """How long Ray may take to set it up on a host, before it gives up itself."""
    if not runtime_env:
        return 0.0
    import ray  # noqa: F401 - before parts of it: see tests/test_house.py
    from ray._private.ray_constants import DEFAULT_RUNTIME_ENV_TIMEOUT_SECONDS

    seconds = (runtime_env.get("config") or {}).get("setup_timeout_seconds", DEFAULT_RUNTIME_ENV_TIMEOUT_SECONDS)
    return float(seconds) if seconds > 0 else float(DEFAULT_RUNTIME_ENV_TIMEOUT_SECONDS)


def _is_local(path: object) -> bool:
    return isinstance(path, str) and "://" not in path


def _look_for_directories(runtime_env: Mapping[str, Any]) -> None:
    """Ray's own words for one that is not there are about addresses."""
    local = [("py_modules", one) for one in runtime_env.get("py_modules") or []]
    local += [("working_dir", one) for one in [runtime_env.get("working_dir")] if one]
    for key, path in local:
        if _is_local(path) and not Path(path).exists():
            raise ConfigurationError(
                f"runtime_env[{key!r}]: there is no {path!r} on the machine that runs the flow "
                f"({current_directory()}); give a path that is there, or an address such as gs://BUCKET/code.zip"
            )
