"""Names of checkpoint directories, and what is said of whose they are."""

from __future__ import annotations

import functools
import json
from typing import Any

import pytest

from prefect_tpu.core.checkpoints import (
    MOST_NAMES,
    Checkpoints,
    by_parameters,
    check_key,
    finished,
    origin_of,
    with_dashes,
)


def checkpoints(**given: Any) -> Checkpoints:
    fields: dict[str, Any] = {
        "directory": "/root/run/train-0", "key": "run/train-0", "task": "train", "function": "a.py:train",
        "task_run": "train-abc", "flow_run": "red-fox", "flow_run_id": "run", "parameters": {"rate": "1"},
        "old": "train",
        "old_parent": "/root/run", "above": (), "look_timeout_seconds": 5,
    }  # fmt: skip
    return Checkpoints(**(fields | given))


@pytest.mark.parametrize("key", ["a", "sweep-7/rate-0.1", "0198f/train-it-0", "a..b/_", "x" * 200, "a/" * 400 + "b"])
def test_keys_that_may_be(key: str) -> None:
    """Relative, and the same everywhere."""
    assert check_key(key) == key


@pytest.mark.parametrize(
    "key", ["", "/", "/a", "a/", "a//b", ".", "..", "a/../b", "a b", "ä", "a\n", "a\\b", "~", "gs://a", "x" * 201,
            "/".join(["ab"] * 400), "\udcff", "a\0"]
)  # fmt: skip
def test_keys_that_may_not_be(key: str) -> None:
    """Nothing that leaves checkpoint_root, or that some file system does not take."""
    with pytest.raises(ValueError, match="must be names of letters, digits"):
        check_key(key)


@pytest.mark.parametrize("key", [None, 3, b"a", ["a"]])
def test_a_key_is_a_string(key: Any) -> None:
    """Nothing is made one."""
    with pytest.raises(ValueError, match="must be a string, not"):
        check_key(key)


@pytest.mark.parametrize("name", ["train", "train it", "訓練", "x" * 500, "../etc", "a/b", ".", "~"])
def test_what_names_itself_can_be_a_key(name: str) -> None:
    """An automatic name is a valid key: another flow run can go on from it. Other names have other directories."""
    made = by_parameters(name, "a.py:train", {"rate": "1"})
    assert check_key(f"0198f/{made}-0")
    assert check_key(f"0198f/{with_dashes(name)[:180]}-0")
    assert made != by_parameters(name + "!", "a.py:train", {"rate": "1"})
    assert made != by_parameters(name, "b.py:train", {"rate": "1"})
    assert made != by_parameters(name, "a.py:train", {"rate": "2"})
    assert made != by_parameters(name, "a.py:train", {"rate": "1", "seed": "1"})


def test_a_record_of_the_same_parameters_says_nothing() -> None:
    """Nor does one of a parameter that has no hash."""
    assert checkpoints().say_others(checkpoints(flow_run="other").as_json()) == ""
    assert checkpoints(parameters={"rate": None}).say_others(checkpoints().as_json()) == ""


@pytest.mark.parametrize(
    ("before", "now", "said"),
    [
        ({"rate": "1", "seed": "1"}, {"rate": "2", "seed": "1"}, ": rate differs (task"),
        ({"rate": "1", "seed": "1"}, {"rate": "2", "seed": "2"}, ": rate, seed differ (task"),
        ({"rate": "1"}, {"rate": "1", "seed": "1"}, ": seed differs (task"),
        ({"rate": "1", "seed": None}, {"rate": "1"}, ": seed differs (task"),
    ],
)
def test_a_record_of_other_parameters(before: dict[str, str | None], now: dict[str, str | None], said: str) -> None:
    """Which, whose, and where."""
    text = checkpoints(parameters=now).say_others(checkpoints(parameters=before, flow_run="blue-hen").as_json())
    assert "/root/run/train-0 has been used by others: " in text
    assert "(task 'train', flow run 'blue-hen')" in text
    assert said in text


@pytest.mark.parametrize(
    ("before", "said"),
    [
        ({"task": "other"}, ": task differs (task 'other', flow run 'red-fox')."),
        ({"function": "b.py:train"}, ": the function differs (task 'train', flow run 'red-fox')."),
        ({"task": "other", "function": "b.py:train"}, ": task differs (task 'other', flow run 'red-fox')."),
    ],
)
def test_a_record_of_another_task(before: dict[str, str], said: str) -> None:
    """With equal parameters, too."""
    assert said in checkpoints().say_others(checkpoints(**before).as_json())


def test_others_are_not_forgotten() -> None:
    """What they made may still be there: whoever comes next is told again; eight of them at most."""
    first = checkpoints().as_json()
    second = checkpoints(parameters={"rate": "2"}).as_json(first)
    third = checkpoints(parameters={"rate": "2"}, flow_run="blue-hen").as_json(second)
    assert checkpoints(parameters={"rate": "2"}).say_others(third).count("rate differs") == 1
    assert "rate differs (task 'train', flow run 'red-fox')" in checkpoints(parameters={"rate": "2"}).say_others(third)
    assert checkpoints(parameters={"rate": "2"}).as_json() == second.replace(
        second[second.index(',\n "before"') :], "\n}"
    )
    many = ""
    for number in range(20):
        many = checkpoints(parameters={"rate": str(number)}).as_json(many)
    assert len(json.loads(many)["before"]) == 8


def test_keys_inside_of_each_other() -> None:
    """Who looks for the latest step would take the key "one/7" for step 7 of "one"."""
    names = ["3", ".7.prefect-tpu.json", "7", ".other"]
    assert "directories of other keys are in it: 7. Who" in checkpoints().say_nested(names, [])
    said = checkpoints().say_nested([], ["/root/.run.prefect-tpu.json"])
    assert "it is in the directory of another key (record .run.prefect-tpu.json)" in said
    assert checkpoints().say_nested(["3"], []) == ""


class _Model:
    def fit(self) -> None: ...

    def __call__(self) -> None: ...


@pytest.mark.parametrize(
    ("function", "origin"),
    [
        (checkpoints, "test_checkpoints.py:checkpoints"),
        (functools.partial(checkpoints, a=1), "test_checkpoints.py:checkpoints"),
        (functools.wraps(checkpoints)(lambda: None), "test_checkpoints.py:checkpoints"),
        (_Model().fit, "test_checkpoints.py:_Model.fit"),
        (_Model(), ":_Model"),
        (len, ":len"),
    ],
)
def test_which_function_it_is(function: Any, origin: str) -> None:
    """By file and name, without the folder: another process may have it elsewhere."""
    assert origin_of(function) == origin


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"parameters": 3}', '{"parameters": {}}', "\0"])
def test_a_record_that_is_none(text: str) -> None:
    """Somebody has written to it: that is said, and nothing else happens."""
    assert "/root/run/.train-0.prefect-tpu.json cannot be read" in checkpoints().say_others(text)


def test_a_record_has_names_and_hashes_and_no_values() -> None:
    """And no path. The hashes are those of the call: tests/task_run/test_checkpoints.py."""
    written = json.loads(checkpoints(parameters={"rate": "abc", "seed": None}).as_json())
    assert written == {
        "key": "run/train-0", "task": "train", "function": "a.py:train", "task_run": "train-abc", "flow_run": "red-fox",
        "flow_run_id": "run", "parameters": {"rate": "abc", "seed": None},
    }  # fmt: skip


def test_directories_of_the_release_before() -> None:
    """By their names, where nobody has written a record since."""
    names = ["train-0", "train-1", ".train-1.prefect-tpu.json", "train-it-0", "train-0123456789abcdef-0", "x", "train-"]
    assert checkpoints().old_directories(names) == ["train-0"]
    assert checkpoints(old="").old_directories(names) == []


def test_what_is_finished_is_told_by_names() -> None:
    """Numbers by their size; no temporary and no hidden names; the newest, if there are very many."""
    names = ["10", "9", ".hidden", "11.orbax-checkpoint-tmp", "state.TMP", "best"]
    assert finished(names) == ("9", "10", "best")
    many = finished(str(number) for number in range(MOST_NAMES + 5))
    assert len(many) == MOST_NAMES
    assert many[-1] == str(MOST_NAMES + 4)
