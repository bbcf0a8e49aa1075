"""Tells the slices of a Ray cluster to a process that is connected to another one.

Usage: python -m prefect_tpu.sidecars.fleet_look HOST:PORT. The token is in the environment; the output is a pickle.
"""

from __future__ import annotations

import pickle
import sys

from prefect_tpu.cluster import auth, inventory
from prefect_tpu.core.errors import ConfigurationError


def main(address: str) -> int:
    """Look, and write what was seen to standard output."""
    try:
        with auth.at(address):
            seen = inventory.summary_at(address)
    except ConfigurationError as error:
        print(error, file=sys.stderr)
        return 1
    sys.stdout.buffer.write(pickle.dumps(seen))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
