"""What Ray puts on the import path of an agent: the folders of the driver's script and of its working directory."""

from __future__ import annotations

import sys
from pathlib import Path

import ray  # noqa: F401 - before parts of it: see tests/test_house.py
from ray._private.worker import global_worker


def leave_driver_path() -> None:
    """Take them off again, in an agent.

    They are there on the driver's own machine, where slices are simulated, and not on a real slice: what is imported
    from them works on the one and not on the other. A folder that is on the path for another reason, too, stays.
    """
    home = str(Path(__file__).parents[2])  # of this package
    for entry in global_worker.core_worker.get_job_config().py_driver_sys_path:
        if entry in sys.path and entry != home:
            sys.path.remove(entry)
