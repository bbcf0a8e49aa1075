"""What a TPU VM runs when it starts, so that it becomes a host of the Ray cluster."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from importlib import resources

from prefect_tpu.core.errors import ConfigurationError

LONGEST_BYTES = 256 * 1024
"""Of one value of an instance's metadata: https://cloud.google.com/compute/docs/metadata/setting-custom-metadata."""
PLACEHOLDERS = ("slice_name", "ray_address", "python_version", "packages", "host_lock", "token_secret")
OWN_TOKEN = "RAY_AUTH_MODE=token"  # noqa: S105 - no secret: how a script says that it brings one
"""In a script that has Ray ask for a token without our help."""
_PLACEHOLDER = re.compile(r"\{\{\s*(\w+)\s*\}\}")


def template() -> str:
    """The script that is used where no other is given, with its placeholders."""
    here = resources.files("prefect_tpu.provision")
    reads = here.joinpath("tpu_vm.py").read_text()
    return here.joinpath("startup.sh").read_text().replace("# include tpu_vm.py\n", reads)


def placeholders(script: str) -> set[str]:
    """Those that a script has."""
    return set(_PLACEHOLDER.findall(script))


def check(script: str) -> None:
    """See that a script can be used.

    Raises:
        ConfigurationError: it is empty or too long, does not say where Ray's head is, or has unknown placeholders.
    """
    if not script.startswith("#!"):
        raise ConfigurationError("startup_script must be a script that begins with '#!', such as '#!/bin/bash'")
    if len(script.encode()) > LONGEST_BYTES:
        raise ConfigurationError(
            f"startup_script has {len(script.encode())} bytes, and a VM's metadata takes {LONGEST_BYTES}: "
            "fetch what is big from a bucket"
        )
    names = _PLACEHOLDER.findall(script)
    unknown = sorted(set(names) - set(PLACEHOLDERS))
    if unknown:
        raise ConfigurationError(
            f"startup_script has the placeholder {{{{{unknown[0]}}}}}; there are: "
            + ", ".join(f"{{{{{name}}}}}" for name in PLACEHOLDERS)
        )
    if "ray_address" not in names:
        raise ConfigurationError(
            "startup_script has no {{ray_address}}, so its hosts cannot know which Ray cluster to join"
        )


def render(
    script: str,
    *,
    slice_name: str,
    ray_address: str,
    python_version: str,
    packages: Sequence[str],
    host_lock: str = "",
    token_secret: str = "",
) -> str:
    """The script with everything filled in, each value quoted for a shell.

    Raises:
        ConfigurationError: a value has a line break or another character that is not printed.
    """
    values: Mapping[str, str] = {
        "slice_name": _quoted(slice_name),
        "ray_address": _quoted(ray_address),
        "python_version": _quoted(python_version),
        "packages": " ".join(map(_quoted, packages)),
        "host_lock": _quoted(host_lock),
        "token_secret": _quoted(token_secret),
    }
    return _PLACEHOLDER.sub(lambda match: values[match[1]], script)


def _quoted(value: str) -> str:
    if not value.isprintable():  # a line break could end the text that it stands in
        raise ConfigurationError(f"the startup script cannot have {value!r} filled in: it must be printable")
    return shlex.quote(value)
