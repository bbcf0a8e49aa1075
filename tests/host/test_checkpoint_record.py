"""What process 0 looks at and writes beside checkpoint_dir before the function is entered."""

from __future__ import annotations

import json
import os
import queue
from pathlib import Path
from typing import Any

import pytest

from prefect_tpu.core.checkpoints import Checkpoints
from prefect_tpu.core.errors import ConfigurationError
from prefect_tpu.core.messages import CheckpointsFound
from prefect_tpu.host.process.checkpoint_record import Look, files_of, tell_finished


def checkpoints(root: Path | str, name: str = "run/train-abc-0", **given: Any) -> Checkpoints:
    fields: dict[str, Any] = {
        "directory": f"{root}/{name}", "key": name, "task": "train", "function": "a.py:train", "above": (),
        "task_run": "train-abc", "flow_run": "red-fox",
        "flow_run_id": "run", "parameters": {"rate": "1"}, "old": "train", "old_parent": f"{root}/run",
        "look_timeout_seconds": 20.0,
    }  # fmt: skip
    return Checkpoints(**(fields | given))


def looked(one: Checkpoints) -> Look:
    look = Look(one)
    look.finish()
    return look


@pytest.fixture(params=["here", "memory"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A directory of this machine, and one behind a URL, which fsspec reads."""
    return str(tmp_path / "root") if request.param == "here" else f"memory://{tmp_path.name}"


def test_it_is_written_down_beside_the_directory(root: str, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing is in the directory, not even the directory itself: functions ask whether it is there."""
    looked(checkpoints(root))
    files = files_of(root)
    assert files.names(f"{root}/run/train-abc-0") is None
    assert files.names(f"{root}/run") == [".train-abc-0.prefect-tpu.json"]
    written = json.loads(files.read(f"{root}/run/.train-abc-0.prefect-tpu.json"))
    assert written == {
        "key": "run/train-abc-0", "task": "train", "function": "a.py:train", "task_run": "train-abc",
        "flow_run": "red-fox", "flow_run_id": "run", "parameters": {"rate": "1"},
    }  # fmt: skip
    assert caplog.text == ""


def test_checkpoints_of_other_parameters_are_a_warning(root: str, caplog: pytest.LogCaptureFixture) -> None:
    """Once there are some; and again for what goes on from there, as long as something is there."""
    looked(checkpoints(root))
    looked(checkpoints(root, parameters={"rate": "2"}, flow_run="blue-hen"))
    assert caplog.text == ""
    files_of(root).write(f"{root}/run/train-abc-0/7/params", "x")
    looked(checkpoints(root, parameters={"rate": "3"}))
    others = f"{root}/run/train-abc-0 has been used by others: rate differs (task 'train', flow run 'blue-hen')."
    assert others in caplog.text
    caplog.clear()
    looked(checkpoints(root, parameters={"rate": "3"}, flow_run="red-fox"))
    assert others in caplog.text
    caplog.clear()
    Look(checkpoints(root, parameters={"rate": "3"}), attempt=2).finish()  # the first attempt has said it
    assert caplog.text == ""


def test_what_nobody_has_written_down_is_told(root: str, caplog: pytest.LogCaptureFixture) -> None:
    """Checkpoints from elsewhere: they may be meant, and may not."""
    files_of(root).write(f"{root}/run/train-abc-0/7/params", "x")
    looked(checkpoints(root))
    assert f"{root}/run/train-abc-0 has something in it, and no record says whose it is" in caplog.text
    caplog.clear()
    looked(checkpoints(root))
    assert caplog.text == ""


def test_keys_inside_of_each_other_are_told(root: str, caplog: pytest.LogCaptureFixture) -> None:
    """Whichever comes first."""
    looked(checkpoints(root, "one/7", old=""))
    files_of(root).write(f"{root}/one/7/params", "x")
    looked(checkpoints(root, "one", old="", old_parent=""))
    assert f"checkpoint_dir {root}/one: directories of other keys are in it: 7." in caplog.text
    caplog.clear()
    looked(checkpoints(root, "one/8", old="", above=(f"{root}/.one.prefect-tpu.json",)))
    assert "it is in the directory of another key (record .one.prefect-tpu.json)" in caplog.text


def test_checkpoints_of_the_release_before_are_not_passed_by(root: str) -> None:
    """An error that names them and says how to go on; nothing where they are this call's own, or known already."""
    files = files_of(root)
    for name in ("train-0", "train-1", "train-it-0"):
        files.write(f"{root}/run/{name}/7/params", "x")
    with pytest.raises(ConfigurationError) as caught:
        looked(checkpoints(root))
    text = str(caught.value)
    assert f"{root}/run/train-abc-0 is not there" in text
    assert f"in {root}/run: train-0, train-1." in text
    assert 'checkpoint_key="run/train-0" or checkpoint_key="run/train-1"' in text
    looked(checkpoints(root, "run/train-0", old=""))  # by its key, or by the order of calls
    with pytest.raises(ConfigurationError, match=r"run: train-1\. "):
        looked(checkpoints(root))
    with pytest.raises(ConfigurationError, match=r"run: train-1\. "):
        looked(checkpoints(root, "root/sub-0/train-abc-0"))  # called in a subflow, which was retried by itself
    looked(checkpoints(root, "run/train-1", old=""))
    looked(checkpoints(root))


def test_the_new_directory_is_there_already(root: str) -> None:
    """Then that is the one."""
    for name in ("train-0", "train-abc-0"):
        files_of(root).write(f"{root}/run/{name}/7/params", "x")
    looked(checkpoints(root))


def test_nothing_stays_where_no_checkpoints_are_kept(tmp_path: Path) -> None:
    """Most gangs have no use for the directory."""
    looked(checkpoints(tmp_path)).forget_unused()
    assert os.listdir(tmp_path) == []
    kept = looked(checkpoints(tmp_path))
    (tmp_path / "run" / "train-abc-0").mkdir()
    kept.forget_unused()
    assert sorted(os.listdir(tmp_path / "run")) == [".train-abc-0.prefect-tpu.json", "train-abc-0"]


def test_a_record_that_cannot_be_written_fails_no_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A file is where the directory should be."""
    (tmp_path / "run").write_text("")
    looked(checkpoints(tmp_path))
    assert f"whose checkpoints are in {tmp_path}/run/train-abc-0 is not known: NotADirectoryError" in caplog.text


def test_a_url_that_no_library_reads_is_said(caplog: pytest.LogCaptureFixture) -> None:
    """And which package would; once."""
    looked(checkpoints("nowhere://bucket"))
    assert "nowhere://bucket/run/train-abc-0 is not known: no library for nowhere:// on this host" in caplog.text
    caplog.clear()
    Look(checkpoints("nowhere://bucket"), attempt=2).finish()
    assert caplog.text == ""


def test_a_file_server_that_does_not_answer_holds_nothing_up(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A pipe that nobody writes to is in its place."""
    one = checkpoints(tmp_path, look_timeout_seconds=0.1)
    (tmp_path / "run" / "train-abc-0" / "7").mkdir(parents=True)
    pipe = tmp_path / "run" / one.record
    os.mkfifo(pipe)
    look = Look(one)
    look.finish()
    assert "no answer within checkpoint_look_timeout_seconds (0.1)" in caplog.text
    with pipe.open("w"):
        pass
    look._thread.join()


def test_orbax_sees_its_own_steps_only(tmp_path: Path) -> None:
    """Also where a key lies below another one, so that a record is among the steps."""
    import numpy
    import orbax.checkpoint as ocp

    looked(checkpoints(tmp_path, "sweep"))
    looked(checkpoints(tmp_path, "sweep/inner"))
    assert os.listdir(tmp_path / "sweep") == [".inner.prefect-tpu.json"]
    with ocp.CheckpointManager(tmp_path / "sweep", options=ocp.CheckpointManagerOptions(max_to_keep=1)) as kept:
        assert kept.latest_step() is None
        for step in (1, 2):
            kept.save(step, args=ocp.args.StandardSave({"w": numpy.arange(2.0)}))
        kept.wait_until_finished()
        assert kept.all_steps() == [2]
    looked(checkpoints(tmp_path, "sweep"))
    with ocp.CheckpointManager(tmp_path / "sweep") as kept:
        assert kept.latest_step() == 2


def test_what_is_finished_is_told(root: str) -> None:
    """For a directory that is not there, too; a name that is in the way is nothing to stop for."""
    told: queue.Queue[CheckpointsFound] = queue.Queue()
    tell_finished(f"{root}/run/train", told.put)
    assert told.get(timeout=20).names == ()
    for name in ("7/params", "10/params", "11.orbax-checkpoint-tmp/params"):
        files_of(root).write(f"{root}/run/train/{name}", "x")
    tell_finished(f"{root}/run/train", told.put)
    assert told.get(timeout=20).names == ("7", "10")
