"""Whichever of prefect, ray, prefect_ray, jax and prefect_tpu comes first: what gangs need of Ray is there, once."""

from __future__ import annotations

import subprocess
import sys

import pytest

NAMES = ("prefect", "ray", "prefect_ray", "jax", "prefect_tpu")
TRIED = """
import os, sys
first, *others = sys.argv[1:]

def check(order):
    import prefect_tpu
    prefect_tpu.task, prefect_tpu.LocalFleet
    import prefect_tpu.leases.lease, prefect_tpu.gang.agents, prefect_tpu.cluster.session
    import ray
    import ray._private.worker, ray._private.accelerators
    assert prefect_tpu.cluster.session.global_worker is ray._private.worker.global_worker
    assert sys.modules["ray._private.worker"] is ray._private.worker
    assert not ray.is_initialized()
    prefect_tpu.LocalFleet().shape

__import__(first)
for second in others:
    if os.fork() == 0:
        code = 1
        try:
            __import__(second)
            check((first, second))
            code = 0
        except BaseException:
            import traceback
            print(first, second, file=sys.stderr)
            traceback.print_exc()
        finally:
            os._exit(code)
codes = [os.waitstatus_to_exitcode(os.wait()[1]) for _ in others]
sys.exit(max(codes))
"""


@pytest.mark.parametrize("first", NAMES)
def test_any_order_of_imports(first: str) -> None:
    """Every ordered pair, in a fresh process each."""
    others = [name for name in NAMES if name != first]
    done = subprocess.run([sys.executable, "-c", TRIED, first, *others], capture_output=True, text=True, timeout=150)
    assert done.returncode == 0, done.stderr
