"""A user's project on a fleet: simulated hosts see of it what hosts of a real slice would see."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from prefect.settings import get_current_settings

from prefect_tpu import LocalFleet

pytestmark = pytest.mark.timeout(120)

FLOW = """
    import dataclasses
    import enum
    import functools

    from prefect import flow
    from prefect_tpu import RayFleet, TpuMultisliceRunner, task

    FLEET = RayFleet(address="ADDRESS")

    @functools.cache
    def table(n):
        return list(range(n))

    class Planet(enum.Enum):
        EARTH = 6

        def __init__(self, mass):
            self.mass = mass

    class Diverged(Exception):
        def __init__(self, step, planet):
            super().__init__(f"at step {step}")
            self.step, self.planet = step, planet

    @task
    def helper(n):
        return table(n)[-1]

    def runner(**options):
        return TpuMultisliceRunner(pool=FLEET, jax_distributed=False, **options)

    @task(task_runner=runner())
    def train(planet):
        import sys
        import late
        assert planet is Planet.EARTH
        try:
            __import__("un" + "named")
        except ModuleNotFoundError as error:
            said = str(error)
        return helper(3), late.Late().number, planet.mass, "prefect" in sys.modules, said

    @task(task_runner=runner())
    def diverges():
        raise Diverged(3, Planet.EARTH)

    @task(task_runner=runner(by_name=("mine",)), retries=3)
    def by_name():
        return mine.X

    import mine

    @flow
    def main():
        (number, late, mass, has_prefect, said), _ = train(Planet.EARTH)
        assert (number, late, mass, has_prefect) == (2, 7, 6, False)
        assert "Name it in" in said, said
        try:
            diverges()
        except Diverged as error:
            assert (str(error), error.step, error.planet) == ("at step 3", 3, Planet.EARTH)
        state = by_name(return_state=True)
        assert state.is_failed(), state
        print(state.message)
        return "all of it"

    if __name__ == "__main__":
        print(main())
"""


def test_a_script_on_simulated_hosts(fleet: LocalFleet, prefect_server: None, tmp_path: Path) -> None:
    """Started as people start it, in its folder, which no host has on its path; by_name is not tried again."""
    fleet.connect()
    (tmp_path / "flow.py").write_text(textwrap.dedent(FLOW).replace("ADDRESS", fleet.address))
    (tmp_path / "late.py").write_text("class Late:\n    number = 7\n")
    (tmp_path / "unnamed.py").write_text("")
    (tmp_path / "mine.py").write_text("X = 1\n")
    api = {"PREFECT_API_URL": str(get_current_settings().api.url), "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "flow.py"],
        cwd=tmp_path, env=os.environ | fleet.access() | api, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "all of it" in done.stdout
    assert "by_name: module 'mine' is not installed on host" in done.stdout
    assert "attempt 1 FATAL" in done.stderr
    assert "attempt 2" not in done.stderr
