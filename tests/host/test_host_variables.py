"""Variables of host processes: secret ones come after the fork, and what no process can start with is the user's."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from prefect_tpu.core.errors import ConfigurationError
from prefect_tpu.host.supervisor import HostSupervisor
from prefect_tpu.linux import processes
from tests.host.host_support import PRELOAD, Run, supervisor

pytestmark = pytest.mark.timeout(120)
PLAIN = {"A": "1"}
BARE = ("cloudpickle",)


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


def test_a_sweep_over_a_variable_needs_one_zygote(host: HostSupervisor) -> None:
    """Each process has its own value, also in what it starts; none has that of the one before."""

    def fn(name: str) -> tuple[str | None, bool, int]:
        import os
        import subprocess

        started = subprocess.run(["env"], capture_output=True, text=True, check=True).stdout
        return os.environ.get(name), f"{name}=" in started, os.getppid()

    found = [Run(host, fn, "TRIAL", preload=BARE, user_env={"TRIAL": str(seed)}).value() for seed in range(3)]
    assert [one[:2] for one in found] == [("0", True), ("1", True), ("2", True)]
    assert len({one[2] for one in found}) == 1
    assert Run(host, fn, "TRIAL", preload=BARE, user_env={}).value() == (None, False, found[0][2])


@pytest.mark.parametrize(
    "reads",
    [
        "os.environ.get('HOME_OF_MODELS')",
        "os.getenv('HOME_OF_MODELS')",
        "os.environ['HOME_OF_MODELS']",
        "'HOME_OF_MODELS' in os.environ and os.environ.setdefault('HOME_OF_MODELS', '')",
        "{k: v for k, v in os.environ.items() if k.startswith('HOME_OF')}.get('HOME_OF_MODELS')",
    ],
)
def test_what_a_module_of_preload_looks_up_is_there_when_it_is_imported(
    tmp_path: Path, reads: str, host: HostSupervisor
) -> None:
    """However it does; the first time too, and with another value the next time."""
    (tmp_path / "models.py").write_text(f"import os\nHOME = {reads}\n")

    def fn() -> str:
        import models  # type: ignore[import-not-found]

        return str(models.HOME)

    for home in ("/first", "/second"):
        env = {"PYTHONPATH": str(tmp_path), "HOME_OF_MODELS": home, "SEED": home}
        assert Run(host, fn, preload=("models", "cloudpickle"), user_env=env).value() == home


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
