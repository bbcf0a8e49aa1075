"""What the package promises from outside: light imports, settings, links, names."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from importlib.metadata import entry_points, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import prefect_tpu
from prefect_tpu import ConfigurationError
from prefect_tpu.settings import TpuSettings, current_settings

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    "statement",
    [
        "from prefect_tpu import runtime",
        "import prefect_tpu.cluster",
        "import prefect_tpu.core.verdict",
        "import prefect_tpu.host.process.zygote",
        "import prefect_tpu.host.process.child",
    ],
)
def test_what_hosts_import_is_light(statement: str) -> None:
    """Neither Prefect nor Ray nor JAX comes with it."""
    code = f"{statement}\nimport sys\nprint([m for m in ('prefect', 'ray', 'jax', 'pydantic') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


def test_every_public_name_is_there() -> None:
    """`__all__` is what can be imported."""
    for name in prefect_tpu.__all__:
        assert getattr(prefect_tpu, name) is not None
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = prefect_tpu.no_such_name


def test_the_artifacts_module_is_there() -> None:
    """Flows that end their own process write what waits with it."""
    assert callable(prefect_tpu.artifacts.flush)


def test_every_folder_says_where_its_code_runs() -> None:
    """In the last words of the first line of its `__init__`."""
    for path in (ROOT / "prefect_tpu").rglob("__init__.py"):
        first = str(compile(path.read_text(), "", "exec").co_consts[0]).partition("\n")[0]
        assert re.search(r"[.:)] Runs: [^.]+\.$", first), f"{path}: {first!r}"


def test_installed_as_a_prefect_collection() -> None:
    """The version, Prefect's entry point and the command."""
    assert version("prefect-tpu") == prefect_tpu.__version__
    assert any(one.name == "prefect_tpu" for one in entry_points(group="prefect.collections"))
    done = subprocess.run(
        [str(Path(sys.executable).with_name("prefect-tpu")), "--version"], capture_output=True, text=True, check=True
    )
    assert prefect_tpu.__version__ in done.stdout


def test_settings_come_from_prefects_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """PREFECT_INTEGRATIONS_TPU_*, read when a gang starts."""
    assert current_settings().ray_address is None
    monkeypatch.setenv("PREFECT_INTEGRATIONS_TPU_RAY_ADDRESS", "10.0.0.1:6379")
    monkeypatch.setenv("PREFECT_INTEGRATIONS_TPU_LEASE_TIMEOUT_SECONDS", "7.5")
    assert current_settings().ray_address == "10.0.0.1:6379"
    assert current_settings().lease_timeout_seconds == 7.5


def test_every_setting_is_described_with_its_unit() -> None:
    """A time ends in _seconds, a size in _bytes, a rate in _per_second, a count starts as one; each has a sentence."""
    for name, field in TpuSettings.model_fields.items():
        assert field.description, name
        assert field.description.endswith("."), name
        if field.annotation in (int, float):
            assert name.endswith(("_seconds", "_bytes", "_per_second")) or name.startswith(("num_", "max_")), name


def test_a_setting_that_cannot_be_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not when the first gang has waited for slices."""
    monkeypatch.setenv("PREFECT_INTEGRATIONS_TPU_LEASE_TIMEOUT_SECONDS", "-1")
    with pytest.raises(ConfigurationError, match=r"_TPU_LEASE_TIMEOUT_SECONDS='-1': must be .* seconds, 0 or more"):
        current_settings()
    monkeypatch.setenv("PREFECT_INTEGRATIONS_TPU_LEASE_TIMEOUT_SECONDS", "1")
    monkeypatch.setenv("PREFECT_INTEGRATIONS_TPU_ENV", "{")
    with pytest.raises(ConfigurationError, match=r"_TPU_ENV=\.\.\.: must be JSON, .*Expecting"):
        current_settings()


def third_parties(paths: Iterable[Path]) -> set[str]:
    """Packages outside Python and this project that the files import, at the top or inside functions."""
    found = set()
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found.add(node.module.partition(".")[0])
    return found - sys.stdlib_module_names - {"prefect_tpu"}


def test_core_imports_only_python() -> None:
    """Whatever else there is: import-linter can forbid only what it is told of."""
    assert third_parties((ROOT / "prefect_tpu" / "core").rglob("*.py")) == set()


def test_dependencies_are_those_imported_and_bounded_above() -> None:
    """None that comes only by way of another package, none that nothing uses, each explained in docs/design.md."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = [Requirement(line) for line in project["dependencies"]]
    only_bounded = {"fastapi"}  # Prefect's server; its upper bound is why it is listed
    if_there = {"etils"}  # comes with the user's own Orbax, else nothing is asked of it
    of_extras = {ROOT / "prefect_tpu" / name for name in ("provision/cloud_tpu.py", "blocks/queued.py")}
    assert {one.name.replace("-", "_") for one in needed} - only_bounded == third_parties(
        path for path in (ROOT / "prefect_tpu").rglob("*.py") if path not in of_extras
    ) - if_there
    gcp = {Requirement(line).name for line in project["optional-dependencies"]["gcp"]}
    assert gcp == {"google-cloud-tpu", "prefect-gcp"}
    assert third_parties(of_extras) == {"google", "grpc", "prefect_gcp", "prefect", "pydantic"}
    table = (ROOT / "docs" / "design.md").read_text().rpartition("## Dependencies")[2]
    for one in needed + [Requirement(line) for line in project["optional-dependencies"]["gcp"]]:
        assert any(part.operator == "<" for part in one.specifier), one
        assert re.search(rf"^\| .*\b{one.name}\b.* \|", table, re.MULTILINE), one


def test_every_dependency_is_bounded_below_and_above() -> None:
    """Those of extras too; and what was last green is within the bounds, none of them missing."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"], *(line for lines in project["optional-dependencies"].values() for line in lines)]
    tried = dict(line.split("==") for line in (ROOT / ".ci" / "tried.txt").read_text().split() if "==" in line)
    versions = {name.lower().replace("_", "-"): found for name, found in tried.items()}
    for needed in (Requirement(line) for line in lines):
        if needed.name == "prefect-tpu":
            continue
        assert {part.operator for part in needed.specifier} == {">=", "<"}, needed
        assert needed.specifier.contains(versions[needed.name.lower()], prereleases=True), needed


BASE_ALONE = """
import importlib, importlib.metadata as metadata, pkgutil, sys
from packaging.requirements import Requirement

def named(text):
    return text.lower().replace("_", "-").replace(".", "-")

base, wanted = set(), [Requirement("prefect-tpu")]
while wanted:
    one = wanted.pop()
    try:
        found = metadata.distribution(one.name)
    except metadata.PackageNotFoundError:
        continue
    key = (named(one.name), frozenset(one.extras))
    if key not in base:
        base.add(key)
        needed = [Requirement(line) for line in found.requires or ()]
        extras = one.extras or {""}
        wanted += [n for n in needed if n.marker is None or any(n.marker.evaluate({"extra": e}) for e in extras)]
allowed = {name for name, _ in base}
owners = metadata.packages_distributions()

class OnlyBase:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        shared = top in ("google", "psutil")  # the first has parts of many packages; of the second Ray has its own
        if not shared and owners.get(top) and not {named(one) for one in owners[top]} & allowed:
            raise ModuleNotFoundError(f"{name} is not in the base closure", name=name)

sys.meta_path.insert(0, OnlyBase())
import prefect_tpu
for module in pkgutil.walk_packages(prefect_tpu.__path__, "prefect_tpu."):
    if module.name not in ("prefect_tpu.provision.cloud_tpu", "prefect_tpu.blocks.queued", "prefect_tpu.cli.__main__"):
        importlib.import_module(module.name)
for name in prefect_tpu.__all__:
    getattr(prefect_tpu, name)
print("prefect_gcp" in sys.modules, "matplotlib" in sys.modules, len(allowed))
"""


def test_without_extras_everything_imports() -> None:
    """Only what the dependencies of the package bring; and nobody pays for matplotlib before there is a picture."""
    done = subprocess.run([sys.executable, "-c", BASE_ALONE], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    gcp, matplotlib, packages = done.stdout.split()
    assert (gcp, matplotlib) == ("False", "False")
    assert 60 < int(packages) < 200


@pytest.mark.parametrize("page", sorted(ROOT.glob("*.md")) + sorted(ROOT.glob("docs/**/*.md")), ids=lambda p: p.name)
def test_links_in_markdown_lead_somewhere(page: Path) -> None:
    """Relative links and pictures exist."""
    for target in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
        if not target.startswith(("http://", "https://")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_readmes_flow_is_python() -> None:
    """Its first flow is short, and all of it compiles; tests/e2e runs the flow."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert "TpuMultisliceRunner(num_slices=2)" in blocks[0]
    assert len(blocks[0].splitlines()) <= 20
    for block in blocks:
        compile(block, "README.md", "exec")
