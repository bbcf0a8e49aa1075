"""The slices of a fleet that this process need not be connected to."""

from __future__ import annotations

import pickle
import subprocess

from prefect_tpu.cluster import auth, inventory
from prefect_tpu.core.errors import ConfigurationError
from prefect_tpu.fleets.local_environment import supervisor_environment
from prefect_tpu.fleets.tokens import token_of
from prefect_tpu.linux.programs import start_program

LOOK_SECONDS = 30.0
"""How long a process that looks may take."""
MAX_SHOWN_CHARS = 2000


def summary_of(address: str) -> inventory.FleetSummary:
    """What the cluster at "host:port" has now, whatever this process is connected to.

    While it is connected to another cluster, a process of its own looks: Ray has one token for a process.

    Raises:
        ConfigurationError: it does not answer, or asks for a token that is not here.
    """
    try:
        with auth.at(address, token_of):
            return inventory.summary_at(address)
    except auth.OtherTokenError:
        return _looked_at_by_another(address, auth.access_to(address, token_of))


def _looked_at_by_another(address: str, access: auth.Access) -> inventory.FleetSummary:
    process = start_program(
        "prefect_tpu.sidecars.fleet_look",
        [address],
        environment=supervisor_environment() | access.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    with process:
        try:
            seen, said = process.communicate(timeout=LOOK_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            raise ConfigurationError(f"Ray at {address} did not tell its slices within {LOOK_SECONDS:g} s.") from None
    if process.returncode != 0:
        raise ConfigurationError(
            f"Ray at {address} does not tell its slices: {said.decode(errors='replace').strip()[-MAX_SHOWN_CHARS:]}"
        )
    found: inventory.FleetSummary = pickle.loads(seen)  # noqa: S301 - of a process of ours
    return found
