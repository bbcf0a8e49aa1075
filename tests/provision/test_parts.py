"""Owners, what may be reaped, causes of problems, startup scripts."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import pytest

from prefect_tpu.core.errors import ConfigurationError
from prefect_tpu.provision import startup
from prefect_tpu.provision.owner import LABEL_VALUE, Owner, clean_label
from prefect_tpu.provision.plan import Resource
from prefect_tpu.provision.problems import Cause, cause_of, explain
from prefect_tpu.provision.reaping import Listener, left_behind

# -- owners


def test_an_owner_fits_a_label() -> None:
    """And is read back."""
    owner = Owner.new()
    assert LABEL_VALUE.fullmatch(str(owner))
    assert Owner.parse(str(owner)) == owner
    assert Owner.parse("somebody") is None
    assert owner.gone is False
    owner.end()
    assert owner.gone is True


def test_an_owner_of_another_process() -> None:
    """Gone with it; a process that got its pid later is another one."""
    code = "import sys; from prefect_tpu.provision.owner import Owner; print(Owner.new(), flush=True); sys.stdin.read()"
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    owner = Owner.parse(process.stdout.readline().strip())
    assert owner is not None
    assert owner.pid == process.pid
    assert owner.gone is False
    assert replace(owner, start=owner.start - 1).gone is True
    process.kill()
    process.wait()
    process.stdin.close()
    process.stdout.close()
    assert owner.gone is True


def test_an_owner_elsewhere_cannot_be_seen() -> None:
    """Whatever its pid is here."""
    owner = Owner("0" * 12, os.getpid(), 1, "12345678")
    assert owner.gone is None


def test_labels_are_cleaned() -> None:
    """As Google allows them."""
    assert clean_label("Nightly run/" + "x" * 80) == "nightly-run-" + "x" * 51


# -- reaping

HERE = Owner.new()
DEAD = replace(HERE, pid=2**22 + 1)
ELSEWHERE = replace(HERE, machine="0" * 12)


@pytest.mark.parametrize(
    ("owner", "state", "age", "rule", "said", "reaped"),
    [
        ("DEAD", "ACTIVE", 0, None, False, True),
        ("DEAD", "FAILED", 0, None, False, True),
        ("DEAD", "DELETING", 0, None, False, False),
        ("HERE", "ACTIVE", 10_000, 60, True, False),
        ("ELSEWHERE", "ACTIVE", 10_000, None, False, False),
        ("ELSEWHERE", "ACTIVE", 10_000, 20_000, False, False),
        ("ELSEWHERE", "ACTIVE", 10_000, 9_000, False, True),
        ("ELSEWHERE", "ACTIVE", 10, None, True, True),
        ("", "FAILED", 10_000, 60, True, False),
        ("a-person", "ACTIVE", 10_000, 60, True, False),
    ],
)
def test_what_may_be_reaped(owner: str, state: str, age: float, rule: float | None, said: bool, reaped: bool) -> None:
    """Only what is certainly left; a living owner's, and what has no owner, never."""
    owner = {"DEAD": str(DEAD), "HERE": str(HERE), "ELSEWHERE": str(ELSEWHERE)}.get(owner, owner)
    one = Resource("us-east5-b", "one", state, "v4-2x2x1", owner, created_unix_seconds=50_000)
    found = left_behind([one], reap_after_seconds=rule, unix_now=50_000 + age, unseen_too=said)
    assert found == ([one] if reaped else [])


def test_silence() -> None:
    """The same sign for so long; no sign at all is no silence, as the cluster may have forgotten."""
    listener = Listener(60)
    assert not listener.silent("one", "a", 0)
    assert not listener.silent("one", "a", 59)
    assert not listener.silent("one", "b", 60)
    assert not listener.silent("one", "b", 119)
    assert listener.silent("one", "b", 120)
    assert not listener.silent("one", None, 500)
    assert not listener.silent("one", "b", 1_000)
    assert not listener.silent("two", None, 1_000)


# -- causes


@pytest.mark.parametrize(
    ("code", "reason", "violations", "of_resource", "cause"),
    [
        ("RESOURCE_EXHAUSTED", "", ["limit 0"], False, Cause.QUOTA),
        ("RESOURCE_EXHAUSTED", "", [], True, Cause.QUOTA),
        ("RESOURCE_EXHAUSTED", "RESOURCE_QUOTA_EXCEEDED", None, False, Cause.QUOTA),
        ("RESOURCE_EXHAUSTED", "RATE_LIMIT_EXCEEDED", ["per minute"], False, Cause.BUSY),
        ("RESOURCE_EXHAUSTED", "", None, False, Cause.BUSY),
        ("RESOURCE_EXHAUSTED", "", None, True, Cause.CAPACITY),
        ("PERMISSION_DENIED", "", None, False, Cause.PERMISSION),
        ("PERMISSION_DENIED", "SERVICE_DISABLED", None, False, Cause.DISABLED),
        ("UNAUTHENTICATED", "", None, False, Cause.PERMISSION),
        ("NOT_FOUND", "", None, False, Cause.INVALID),
        ("INVALID_ARGUMENT", "", None, True, Cause.INVALID),
        ("UNAVAILABLE", "", None, False, Cause.AWAY),
        ("INTERNAL", "", None, True, Cause.CAPACITY),
        ("DEADLINE_EXCEEDED", "", None, True, Cause.CAPACITY),
    ],
)
def test_causes(code: str, reason: str, violations: list[str] | None, of_resource: bool, cause: Cause) -> None:
    """From codes and typed details."""
    assert cause_of(code, reason, violations, of_resource=of_resource) is cause


@pytest.mark.parametrize("code", ["RESOURCE_EXHAUSTED", "PERMISSION_DENIED", "NOT_FOUND", "UNAVAILABLE"])
def test_every_explanation_quotes_and_says_what_to_do(code: str) -> None:
    """On one line, with project and zone."""
    text = explain(code, "in their words", project="my-project", zone="us-east5-b", doing="create it").text
    assert text.startswith("create it in us-east5-b of project my-project: ")
    assert text.endswith(f"The service said: {code}: in their words")
    assert "\n" not in text


# -- startup scripts


def render(script: str) -> str:
    return startup.render(
        script, slice_name="training-1", ray_address="10.0.0.2:6379", python_version="3.11.7",
        packages=("ray[default]==2.60.0", "prefect-tpu==0.1.0; python_version > '3'"),
    )  # fmt: skip


def test_the_scripts_own_template() -> None:
    """A shell reads it, and it says where, under which name, and with what."""
    startup.check(startup.template())
    script = render(startup.template())
    assert "{{" not in script
    assert "export TPU_NAME=training-1 " in script
    assert "ray start --address=10.0.0.2:6379 --block" in script
    assert "'ray[default]==2.60.0' 'prefect-tpu==0.1.0; python_version > '\"'\"'3'\"'\"''" in script
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)


def test_values_cannot_leave_their_place() -> None:
    """They are quoted for a shell."""
    script = startup.render(
        "#!/bin/bash\necho {{ray_address}}",
        slice_name="a",
        ray_address="$(touch /tmp/no)",
        python_version="3",
        packages=(),
    )
    assert (
        subprocess.run(["bash"], input=script, text=True, capture_output=True, check=True).stdout
        == "$(touch /tmp/no)\n"
    )


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("echo", "begins with '#!'"),
        (
            "#!/bin/bash\nray start --address={{ray_adress}}",
            "{{ray_adress}}; there are: {{slice_name}}, {{ray_address}}",
        ),
        ("#!/bin/bash\nray start", "no {{ray_address}}"),
        ("#!/bin/bash\n{{ray_address}}" + "#" * 300_000, "takes 262144"),
    ],
)
def test_scripts_that_cannot_work(script: str, words: str) -> None:
    """What is wrong, and what there is."""
    with pytest.raises(ConfigurationError) as caught:
        startup.check(script)
    assert words in str(caught.value)
