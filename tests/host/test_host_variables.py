"""Variables of host processes: secret ones come after the fork, and what no process can start with is the user's."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from prefect_tpu.core.errors import ConfigurationError
from prefect_tpu.host.supervisor import HostSupervisor
from prefect_tpu.linux import processes
from tests.host.host_support import PRELOAD, Run, supervisor

pytestmark = pytest.mark.timeout(120)
PLAIN = {"A": "1"}


@pytest.fixture(scope="module")
def host() -> Iterator[HostSupervisor]:
    with supervisor() as one:
        yield one


def test_secret_variables_are_set_after_the_fork(host: HostSupervisor) -> None:
    """The function and what it starts have them; the zygote does not, and goes on for whoever has others."""

    def fn() -> tuple[str | None, str, int]:
        import os
        import subprocess

        started = subprocess.run(["env"], capture_output=True, text=True, check=True).stdout
        return os.environ.get("HUSH"), started, os.getppid()

    mine, started, zygote = Run(host, fn, user_env=PLAIN, preload=("cloudpickle",), secret_env={"HUSH": "4711"}).value()
    assert mine == "4711"
    assert "HUSH=4711\n" in started
    assert not [one for one in processes.environment_of(zygote) if b"4711" in one or one.startswith(b"HUSH")]
    assert Run(host, fn, user_env=PLAIN, preload=("cloudpickle",), secret_env={"HUSH": "other"}).value()[::2] == (
        "other",
        zygote,
    )
    assert Run(host, fn, user_env=PLAIN, preload=("cloudpickle",)).value()[::2] == (None, zygote)


@pytest.mark.parametrize(
    ("env", "says"),
    [
        ({"PYTHONHASHSEED": "hush"}, r"PYTHONHASHSEED must be"),
        ({"PYTHONMALLOC": "hush"}, r"PYTHONMALLOC"),
        ({f"V{number}": "hush" * 30_000 for number in range(60)}, r"Argument list too long"),
    ],
    ids=["PYTHONHASHSEED", "PYTHONMALLOC", "7 MB"],
)
def test_variables_that_no_python_starts_with(host: HostSupervisor, env: dict[str, str], says: str) -> None:
    """A ConfigurationError, so that the run ends at once; by the names of the variables, and with what Python said."""
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(
        ConfigurationError, match=rf"(?s)no Python starts on host .*{next(iter(env))}.*{says}"
    ) as caught:
        host.prepare(PRELOAD, env)
    assert "hush" not in str(caught.value)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_host_whose_python_does_not_start_is_no_fault_of_the_user(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without variables of the user's it is the host that is broken."""
    from prefect_tpu.core.errors import HostProcessError

    monkeypatch.setenv("PYTHONHASHSEED", "nothing")
    with supervisor() as one, pytest.raises(HostProcessError):
        one.prepare(("cloudpickle",), {})
