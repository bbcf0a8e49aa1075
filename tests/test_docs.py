"""Every code block of the README and of docs/ is run, or says which test runs it; what the pages quote is there."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import importlib.util
import io
import json
import linecache
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cyclopts
import pytest
import yaml
from prefect.cli.deploy._models import DeploymentConfig, PrefectYamlModel, WorkPoolConfig

from prefect_tpu import LocalFleet, RayFleetBlock, TpuSlicePool, cli
from prefect_tpu.core import errors
from prefect_tpu.core.kinds import KINDS
from prefect_tpu.settings import TpuSettings, describe_settings
from prefect_tpu.task_run.arguments import RunnerOptions

ROOT = Path(__file__).parents[1]
SETTINGS = "PREFECT_INTEGRATIONS_TPU_"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SLICES = {"slices": 2, "topology": "2x2x1"}
"""Of the fleet that the pages' own gangs run on: what docs/getting-started.md starts."""

RUN_ELSEWHERE = {
    ("README.md", "python", 0): "tests/e2e/test_readme.py::test_the_flow_of_the_readme",
    ("operating.md", "python", 0): "tests/e2e/test_ui.py::watched",
}
"""(page, language, number among its blocks of that language): the test, or the fixture of tests, that runs it."""


@dataclasses.dataclass(frozen=True)
class Block:
    """A fenced block: where it is, and what is in it."""

    page: str
    language: str
    number: int
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks_of(page: Path) -> list[Block]:
    """In order. `number` counts blocks of one language."""
    found: list[Block] = []
    text = page.read_text()
    for match in re.finditer(r"^```([^\n]*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
        language = match.group(1).strip()
        number = sum(one.language == language for one in found)
        line = text.count("\n", 0, match.start()) + 2
        found.append(Block(page.name, language, number, line, match.group(2)))
    assert text.count("```") == 2 * len(found), f"{page.name}: a fence that does not close, or is indented"
    return found


ALL = [block for page in PAGES for block in blocks_of(page)]


def of(language: str) -> list[Block]:
    return [block for block in ALL if block.language == language]


def test_every_block_is_of_a_language_that_is_checked() -> None:
    """A new language, or none, has no check here yet."""
    for block in ALL:
        assert block.language in ("python", "bash", "yaml", "text", "diff"), f"{block}: {block.language!r}"


def test_blocks_that_run_elsewhere_do() -> None:
    """The test, or the fixture, is there, and the block too."""
    there = {(block.page, block.language, block.number) for block in ALL}
    for key, where in RUN_ELSEWHERE.items():
        assert key in there, key
        path, _, name = where.partition("::")
        tree = ast.parse((ROOT / path).read_text())
        assert name in {one.name for one in tree.body if isinstance(one, ast.FunctionDef)}, where


# -- python


@pytest.fixture(scope="module")
def fleet() -> Iterator[LocalFleet]:
    """Started when the first gang needs it."""
    one = LocalFleet(**SLICES)  # type: ignore[arg-type]
    yield one
    one.close()


@pytest.fixture(scope="module")
def site(prefect_server: None, fleet: LocalFleet) -> Iterator[None]:
    """Prefect's own server."""
    from prefect_tpu import artifacts

    yield
    artifacts.flush(5)


def _pool_on(fleet: LocalFleet) -> None:
    """What docs/pools.md has saved, on slices that are there."""
    saved: Any = TpuSlicePool.load("v6e-spot", _sync=True)  # type: ignore[call-arg]
    assert (saved.accelerator_type, saved.topology, saved.num_slices, saved.preemptible) == ("v6e", "4x4", 2, True)
    assert (type(saved.fleet), saved.fleet.address) == (RayFleetBlock, "auto")
    fleet.connect()
    on = TpuSlicePool(fleet=RayFleetBlock(address=fleet.address), topology="2x2x1", num_slices=2)
    on.save("v6e-spot", overwrite=True)


def _after_pools(names: dict[str, Any], fleet: LocalFleet) -> None:
    assert names["nightly"](5) == [2, 2]


def _after_sized(names: dict[str, Any], fleet: LocalFleet) -> None:
    assert names["sized"](num_slices=1) == [1]


AFTER: dict[tuple[str, int], Callable[[dict[str, Any], LocalFleet], None]] = {
    ("pools.md", 0): lambda _, fleet: _pool_on(fleet),
    ("pools.md", 1): _after_pools,
    ("pools.md", 2): _after_sized,
}
"""Done after a Python block: what the page promises of it, and what the next one needs."""


def pages_with_python() -> list[str]:
    return list(dict.fromkeys(block.page for block in of("python")))


@pytest.mark.slow
@pytest.mark.parametrize("page", pages_with_python())
def test_python(page: str, site: None, fleet: LocalFleet) -> None:
    """All blocks of a page in order, in one namespace, as one program; what a comment behind a print says comes."""
    names: dict[str, Any] = {"__name__": "__main__", "__file__": str(ROOT / page)}
    for block in [one for one in of("python") if one.page == page]:
        if (page, "python", block.number) in RUN_ELSEWHERE:
            compile(block.text, str(block), "exec")
            continue
        printed = run(block, names)
        for wanted in re.findall(r"^ *print\(.*\)  # (.+)$", block.text, re.MULTILINE):
            assert wanted in printed, f"{block}: {wanted!r} is not in {printed!r}"
        AFTER.get((page, block.number), lambda *_: None)(names, fleet)


def run(block: Block, names: dict[str, Any]) -> str:
    """What it prints."""
    name = f"<{block}>"
    linecache.cache[name] = (len(block.text), None, block.text.splitlines(keepends=True), name)
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(block.text, name, "exec"), names)
    return out.getvalue()


# -- bash


COMMANDS = [
    pytest.param(block, line, id=f"{block}: {line[:40]}")
    for block in of("bash")
    for line in block.text.replace("\\\n", " ").splitlines()
    if line.strip() and not line.lstrip().startswith("#")
]
HARMLESS = (["settings"], ["doctor"], ["fleet", "status"])
"""Commands of prefect-tpu that are run as they stand: they look, and no cluster need be there."""


@pytest.mark.parametrize(("block", "line"), COMMANDS)
def test_bash(block: Block, line: str, prefect_server: None) -> None:
    """Subcommands, options and files are there; what only looks is run."""
    for program, *arguments in commands(line):
        check = PROGRAMS.get(Path(program).name)
        assert check is not None, f"{block}: {program!r} has no check in tests/test_docs.py"
        check(block, arguments)


def commands(line: str) -> list[list[str]]:
    """The commands of a line, without comments and assignments in front."""
    found: list[list[str]] = [[]]
    for word in shlex.split(line, comments=True):
        if word in ("&&", ";", "|"):
            found.append([])
        elif found[-1] or not re.match(r"[A-Z_]+=", word):
            found[-1].append(word)
    return [one for one in found if one]


def _parses(app: Any, block: Block, arguments: list[str]) -> None:
    try:
        app.parse_args(arguments, exit_on_error=False, print_error=False)
    except cyclopts.CycloptsError as error:
        pytest.fail(f"{block}: {shlex.join(arguments)}: {error}")


def _prefect_tpu(block: Block, arguments: list[str]) -> None:
    _parses(cli.app, block, arguments)
    if [one for one in arguments if one != "--json"] in HARMLESS:
        assert cli.run(arguments) in (cli.EXIT_OK, cli.EXIT_FAILED)


def _prefect(block: Block, arguments: list[str]) -> None:
    from prefect.cli._app import _app  # its public name only runs it

    _parses(_app, block, arguments)


def _python(block: Block, arguments: list[str]) -> None:
    if arguments[:2] == ["-m", "venv"]:
        return
    if arguments[0] == "-m" and arguments[1].startswith("prefect_tpu."):
        assert importlib.util.find_spec(arguments[1]) is not None, f"{block}: there is no {arguments[1]}"
        return
    if arguments[:2] == ["-m", "pytest"]:
        assert shlex.join(["python", *arguments]) in (ROOT / ".ci" / "run").read_text(), f"{block}: not what CI runs"
        return
    (script,) = arguments
    assert (ROOT / script).exists() or f"`{script}`" in page_text(block.page), f"{block}: there is no {script}"


def _pip(block: Block, arguments: list[str]) -> None:
    assert arguments[0] == "install"
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for one in arguments[1:]:
        named = re.fullmatch(r"(?:\.|prefect-tpu)(?:\[(.+)\])?", one)
        assert one in ("-q", "-e", "-U") or named, f"{block}: {one}"
        for extra in named.group(1).split(",") if named and named.group(1) else ():
            assert extra in extras, f"{block}: no extra {extra!r}"


def _foreign(block: Block, arguments: list[str]) -> None:
    """Programs that need not be here: the line parses, and files of the project that it names are there."""
    for one in arguments:
        if re.fullmatch(r"[a-z][\w./-]*/[\w.-]+\.(ya?ml|py|sh)", one):
            assert (ROOT / one).exists(), f"{block}: there is no {one}"


PROGRAMS: dict[str, Callable[[Block, list[str]], None]] = {
    "prefect-tpu": _prefect_tpu,
    "prefect": _prefect,
    "python": _python,
    "python3": _python,
    "pip": _pip,
    **dict.fromkeys(("apt-get", "docker", "export", "gcloud", "helm", "kubectl", "ray"), _foreign),
}


# -- yaml


@pytest.mark.parametrize("block", of("yaml"), ids=str)
def test_yaml(block: Block) -> None:
    """Manifests have what makes them such; fragments of prefect.yaml only keys and settings that are there."""
    for found in yaml.safe_load_all(block.text):
        assert isinstance(found, dict), f"{block}: no mapping"
        if "apiVersion" in found or "kind" in found:
            assert {"apiVersion", "kind", "metadata"} <= set(found), f"{block}: no whole manifest"
        else:
            _of_prefect(block, found, PREFECT_YAML)


PREFECT_YAML: dict[str, Any] = dict.fromkeys(PrefectYamlModel.model_fields) | {
    "prefect-version": None,
    "deployments": dict.fromkeys(DeploymentConfig.model_fields),
    "work_pool": dict.fromkeys(WorkPoolConfig.model_fields),
    "job_variables": None,
}


def _of_prefect(block: Block, found: dict[str, Any], known: dict[str, Any]) -> None:
    for name, value in found.items():
        assert name in known, f"{block}: {name!r} is not one of {sorted(known)}"
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, dict) and known[name]:
                _of_prefect(block, one, known[name])
    variables = found.get("job_variables") or found.get("work_pool", {}).get("job_variables", {})
    for name, value in variables.get("env", {}).items():
        assert isinstance(value, str), f"{block}: {name} must be a string"
        assert not name.startswith(SETTINGS) or name in {one["name"] for one in describe_settings()}, f"{block}: {name}"


# -- diff


OPTION_IS_EVERYWHERE = """
import os
from pydantic import ValidationError
from prefect_tpu import ConfigurationError, TpuMultisliceRunner, TpuSlicePool
from prefect_tpu.settings import current_settings

name, variable = "lease_linger_seconds", "PREFECT_INTEGRATIONS_TPU_LEASE_LINGER_SECONDS"
words = "must be a number of seconds, 0 or more"
pool = TpuSlicePool(lease_linger_seconds=7)
assert pool.runner().resolve().options.lease_linger_seconds == 7
os.environ[variable] = "8"
assert pool.runner().resolve().options.lease_linger_seconds == 8
assert pool.runner(lease_linger_seconds=9).resolve().options.lease_linger_seconds == 9
os.environ[variable] = "-1"
for given, error in (
    (lambda: TpuMultisliceRunner(lease_linger_seconds=-1), ConfigurationError),
    (lambda: TpuSlicePool(lease_linger_seconds=-1), ValidationError),
    (current_settings, ConfigurationError),
):
    try:
        given()
    except error as caught:
        assert words in str(caught), caught
    else:
        raise AssertionError(given)
"""


def test_an_option_is_added_as_the_page_says(tmp_path: Path) -> None:
    """docs/contributing.md: the diff applies; after the command runner, setting and pool have the option."""
    (block,) = [one for one in of("diff") if one.page == "contributing.md"]
    shutil.copytree(ROOT / "prefect_tpu", tmp_path / "prefect_tpu", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "tests" / "options", tmp_path / "tests" / "options")

    def run_there(*command: str, given: str | None = None) -> int:
        env = os.environ | {"PYTHONPATH": str(tmp_path), "PREFECT_API_URL": "http://127.0.0.1:9/api"}
        done = subprocess.run(command, cwd=tmp_path, env=env, input=given, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0 or "--check" in command, done.stderr
        return done.returncode

    generate = (sys.executable, "-m", "prefect_tpu.options.generate")
    run_there("git", "init", "--quiet", ".")
    run_there("git", "apply", given=block.text)
    assert run_there(*generate, "--check") == 1
    run_there(*generate)
    assert run_there(*generate, "--check") == 0
    run_there(sys.executable, "-c", OPTION_IS_EVERYWHERE)
    ruff = Path(sys.executable).with_name("ruff")
    run_there(str(ruff), "format", "--config", str(ROOT / "pyproject.toml"), "--diff", "prefect_tpu/options")


# -- what the pages quote


def page_text(name: str) -> str:
    return next(page for page in PAGES if page.name == name).read_text()


def strings() -> list[str]:
    """Every string of the package, a placeholder for each value in it."""
    found = []
    for path in (ROOT / "prefect_tpu").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
            elif isinstance(node, ast.JoinedStr):
                found.append("".join(str(one.value) if isinstance(one, ast.Constant) else "..." for one in node.values))
    return [" ".join(one.split()) for one in found]


def rows(text: str) -> list[list[str]]:
    """Cells of the tables in Markdown, without heads."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    heads = {index - 1 for index, line in enumerate(lines) if set(line) <= set("|- ")}
    return [
        [cell.strip() for cell in line.strip("|").split("|")]
        for index, line in enumerate(lines)
        if index not in heads and not set(line) <= set("|- ")
    ]


def test_quoted_messages_are_those_of_the_code() -> None:
    """docs/operating.md: each message is one that the package has, and each kind of error is named."""
    page = page_text("operating.md").partition("## Troubleshooting by error message")[2]
    have = strings()
    messages = [message for row in rows(page) for message in re.findall(r"`([^`]+)`", row[0])]
    assert len(messages) > 50
    patterns = {one: r".*?".join(re.escape(part) for part in one.strip(". ").split("...")) for one in messages}
    assert [one for one in messages if not any(re.search(patterns[one], text) for text in have)] == []
    for name, kind in vars(errors).items():
        if isinstance(kind, type) and kind.__module__ == errors.__name__ and name != "RemoteTraceback":
            assert name in page, f"docs/operating.md says nothing of {name}"


def test_every_kind_of_end_is_in_the_table() -> None:
    """docs/retries.md: with what it is charged to."""
    found: dict[str, set[str]] = {}
    for row in rows(page_text("retries.md")):
        if row[0].isupper():
            found.setdefault(row[0], set()).add(row[2])
    assert found == {kind.value: {row.charge} for kind, row in KINDS.items()}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_numbers_behind_settings_are_their_defaults(page: Path) -> None:
    """`heartbeat_timeout_seconds` (10) and the like; and no setting is named that is none."""
    text = page.read_text()
    for name, number in re.findall(r"`(\w+)` \(([\d_.]*\d)", text):
        if name in TpuSettings.model_fields:
            assert TpuSettings.model_fields[name].default == float(number), f"{name} ({number})"
    for name in re.findall(rf"{SETTINGS}([A-Z_]*[A-Z])", text):
        assert name.lower() in TpuSettings.model_fields, f"{page.name}: {SETTINGS}{name}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_arguments_that_pages_name_are_there(page: Path) -> None:
    """`TpuMultisliceRunner(name=...)`, also outside of blocks."""
    known = {"flatten", "returns", *RunnerOptions.__annotations__}
    for given in re.findall(r"TpuMultisliceRunner\(([^()]*)\)", page.read_text()):
        assert set(re.findall(r"(\w+)=", given)) <= known, f"{page.name}: {given}"


def test_the_command_lines_page_is_the_command_line() -> None:
    """docs/cli.md: all commands, each with exactly its options."""
    documented = {}
    for row in rows(page_text("cli.md")):
        if row[0].startswith("`prefect-tpu "):
            words = row[0].strip("`").removeprefix("prefect-tpu ").split()
            documented[tuple(one for one in words if not one.isupper())] = set(re.findall(r"`(--[\w-]+)`", row[1]))
    assert documented == dict(leaves(cli.app, ()))
    assert all("--json" in options for options in documented.values())


@pytest.mark.parametrize("command", ["settings", "doctor"])
def test_json_has_the_keys_that_the_page_says(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """One object on stdout, nothing else."""
    (row,) = [one for one in rows(page_text("cli.md")) if one[0] == f"`{command}`" and "`" in one[1]]
    cli.run([command, "--json"])
    found = json.loads(capsys.readouterr().out)
    (rows_of,) = [value for value in found.values() if isinstance(value, list)]
    assert {*found, *rows_of[0]} == set(re.findall(r"`(\w+)`", row[1]))


def leaves(app: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], set[str]]]:
    """Commands that do something, with their options."""
    names = [name for name in app if not name.startswith("-")]
    for name in names:
        yield from leaves(app[name], (*path, name))
    if not names:
        arguments = app.assemble_argument_collection(parse_docstring=False)
        yield path, {name for one in arguments for name in one.names if name.startswith("--")}


@pytest.mark.parametrize(
    ("page", "begin", "end", "count"),
    [
        ("security.md", "## What listens", "## What is not promised", 40),
        ("your-code.md", "## How what travels", "## Modules that the hosts have", 20),
        ("prefect-on-hosts.md", "| of Prefect |", "## The same answers", 12),
        ("prefect-on-hosts.md", "## The same answers", "Different on purpose", 7),
    ],
)
def test_each_row_is_shown_by_something(page: str, begin: str, end: str, count: int) -> None:
    """A test that is there, or a command; but for what is not promised."""
    part = page_text(page).partition(begin)[2].partition(end)[0]
    rows = [line for line in part.splitlines() if line.startswith("| ") and not line.endswith("| shown by |")]
    assert len(rows) > count
    for row in rows:
        shown_by = row.rstrip("| ").rpartition(" | ")[2]
        assert "`" in shown_by, row
        for path, _, name in re.findall(r"`(tests/[\w/]+\.py)(::(\w+))?`", shown_by):
            assert f"def {name}(" in (ROOT / path).read_text() if name else (ROOT / path).exists(), shown_by


def test_every_page_is_found_from_the_readme() -> None:
    """By one link or two."""
    linked = set(re.findall(r"\]\(docs/([\w-]+\.md)\)", page_text("README.md")))
    for name in list(linked):
        linked |= set(re.findall(r"\]\(([\w-]+\.md)[)#]", page_text(name)))
    assert {page.name for page in PAGES if page.name != "README.md"} <= linked


def test_pictures_bring_their_background() -> None:
    """Legible on a dark page too, and nothing is fetched."""
    for picture in (ROOT / "docs" / "images").glob("*.svg"):
        text = picture.read_text()
        width = re.findall(r'viewBox="0 0 (\d+)', text)[0]
        assert re.search(rf'<rect width="{width}"[^>]* fill="#', text), picture.name
        assert "href=" not in text
