# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Who may write in a stage's folder, and what of its record must be the same; runs that go on: `test_resume.py`."""

import fcntl
import json
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest

from xllm.training.saving import folders
from xllm.training.saving.folders import (
    ACCUMULATED,
    STAGE_FILE,
    ResumeError,
    begin,
    check_free,
    check_same,
    is_finished,
    list_stages,
    locked,
    noted_end,
    read_record,
    stage_record,
)


@dataclass
class Spec:
    stage: int = 2
    trainer: dict = field(default_factory=lambda: {"learning_rate": 0.1, "save_steps": 5})
    data: dict = field(default_factory=lambda: {"train": [{"path": "a.csv", "weight": 2}], "augment": ("gain",)})
    model: object = None
    reward: object = len


def fingerprint(samples, sha="x"):
    return SimpleNamespace(fingerprint=lambda: {"samples": samples, "sha256": sha})


def test_a_record_has_what_changes_the_result(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    record = stage_record(SimpleNamespace(spec=Spec(), train=fingerprint(6), eval=None), 42)
    assert record == {
        "recipe": {
            "seed": 42,
            "stage": 2,
            "trainer.learning_rate": 0.1,
            "data.train.0.weight": 2,
            "data.augment.0": "gain",
            "model": None,
            "reward": "builtin_function_or_method",
        },
        "data": {"train": {"samples": 6, "sha256": "x"}},
        "processes": 1,
    }
    monkeypatch.setenv("WORLD_SIZE", "4")
    record = stage_record(SimpleNamespace(spec=Spec(), train=fingerprint(6), eval=fingerprint(1)), 42)
    assert record["processes"] == 4
    assert set(record["data"]) == {"train", "eval"}


def test_a_folder_is_new_begun_or_finished(tmp_path):
    folder = tmp_path / "stage"
    assert read_record(folder) == {}
    folder.mkdir()
    (folder / ".hidden").write_text("")
    assert read_record(folder) == {}
    assert not is_finished(folder)
    (folder / "other").write_text("")
    with pytest.raises(ResumeError, match=f"holds no {STAGE_FILE}, so there is no run to go on with"):
        read_record(folder)
    begin(folder, {"recipe": {"seed": 1}})
    assert read_record(folder) == {"recipe": {"seed": 1}}
    begin(folder, {"recipe": {"seed": 1}, "result": {}})
    assert not is_finished(folder), "config.json comes last"
    (folder / "config.json").write_text("{}")
    assert is_finished(folder)
    begin(folder, {"recipe": {"seed": 1}})
    assert not is_finished(folder), "a model, but no result yet"
    (folder / STAGE_FILE).write_text("{")
    with pytest.raises(ResumeError, match=r"stage.json: damaged \("):
        read_record(folder)
    with pytest.raises(ResumeError, match="so there is no run to go on with"):
        read_record(folder / "other")


def test_begin_makes_the_folders_above(tmp_path):
    begin(tmp_path / "a" / "b", {"seed": 1})
    assert json.loads((tmp_path / "a" / "b" / STAGE_FILE).read_text()) == {"seed": 1}


def test_a_folder_is_free_while_it_is_empty(tmp_path):
    check_free(tmp_path / "new")
    (tmp_path / "new").mkdir()
    check_free(tmp_path / "new")
    (tmp_path / "new" / "x").write_text("")
    (tmp_path / "file").write_text("")
    for name in ("new", "file"):
        with pytest.raises(ResumeError, match=f"{name}: exists and is not an empty folder; go on there with --resume"):
            check_free(tmp_path / name)


STREAMED = {"data.streaming": True}


def record_of(processes=None, **recipe):
    record = {"recipe": recipe, "data": {}}
    return record if processes is None else {**record, "processes": processes}


@pytest.mark.parametrize(
    ("before", "now", "said"),
    [
        (record_of(a=1), record_of(a=1), None),
        (record_of(a=1), record_of(a=2), "a is 2, but the run to go on with has 1; give it that value"),
        (record_of(a=1), record_of(), "a is None, but the run to go on with has 1"),
        (record_of(), record_of(a=1), "a is 1, but the run to go on with has None"),
        # Without accumulation there is one batch a step.
        (record_of(2), record_of(2), None),
        (record_of(2), record_of(1), r"takes 1 batches \(trainer.\S+ 1 x 1 processes\), but .* with 2 \(1 x 2"),
        (record_of(), record_of(2), None),  # of an older version
        # Processes and accumulation may change against each other.
        (record_of(2, **{ACCUMULATED: 4}), record_of(8), None),
        (record_of(8), record_of(2, **{ACCUMULATED: 4}), None),
        (record_of(2, **{ACCUMULATED: 4}), record_of(2, **{ACCUMULATED: 2}), r"takes 4 batches .*2 x 2.* 8 \(4 x 2"),
        # A stream may have other processes too, and so may a finished stage.
        (record_of(2, **STREAMED), record_of(1, **STREAMED), None),
        (record_of(2, **STREAMED), record_of(1, **STREAMED, **{ACCUMULATED: 3}), "takes 3 batches"),
        ({**record_of(2), "result": {}}, record_of(1), None),
    ],
    ids=str,
)
def test_the_first_key_that_differs_is_named(tmp_path, before, now, said):
    if said is None:
        return check_same(tmp_path, before, now)
    with pytest.raises(ResumeError, match=said):
        check_same(tmp_path, before, now)


def data_of(**data):
    return {"recipe": {}, "data": {name: {"samples": n, "sha256": sha} for name, (n, sha) in data.items()}}


@pytest.mark.parametrize(
    ("before", "now", "said"),
    [
        (data_of(train=(6000, "a")), data_of(train=(6000, "a")), None),
        (data_of(train=(6000, "a")), data_of(train=(5, "b")), "data.train has changed .*: 5 samples, it had 6,000 s"),
        (data_of(eval=(6, "a")), data_of(), "data.eval has changed since the run began: 0 samples, it had 6 samples"),
        (data_of(), data_of(eval=(6, "a")), "data.eval has changed since the run began: 6 samples, it had 0 samples"),
        (data_of(train=("a stream", "a")), data_of(train=("a stream", "b")), ": a stream, it had a stream of which"),
    ],
    ids=str,
)
def test_the_data_that_differ_are_counted(tmp_path, before, now, said):
    if said is None:
        return check_same(tmp_path, before, now)
    with pytest.raises(ResumeError, match=said):
        check_same(tmp_path, before, now)


def test_the_model_to_start_from_is_asked_for_where_it_is_known(tmp_path):
    before = {**record_of(), "start": "one"}
    check_same(tmp_path, before, record_of())
    check_same(tmp_path, before, {**record_of(), "start": "one"})
    with pytest.raises(ResumeError, match="the model that this stage starts from is not the one it was begun with"):
        check_same(tmp_path, before, {**record_of(), "start": "other"})


@pytest.mark.parametrize(
    ("error", "state", "said"),
    [
        (ValueError("no such row"), "failed", "ValueError: no such row"),
        (KeyboardInterrupt(), "interrupted", "KeyboardInterrupt"),
    ],
)
def test_what_ends_a_stage_is_written_down(tmp_path, monkeypatch, error, state, said):
    monkeypatch.setattr(folders.time, "time", lambda: 12.34567)
    with pytest.raises(type(error)), noted_end(tmp_path, True):
        raise error
    assert not (tmp_path / "stopped.json").exists(), "nothing had begun"
    begin(tmp_path, {})
    with pytest.raises(type(error)), noted_end(tmp_path, True):
        raise error
    assert json.loads((tmp_path / "stopped.json").read_text()) == {"state": state, "error": said, "time": 12.346}


def test_stages_are_listed_with_their_lengths(tmp_path):
    lengths = ({"max_steps": 5}, {"num_train_epochs": 2.0, "save_steps": 3}, {})
    stages = [
        (tmp_path / f"s{n}", SimpleNamespace(title=f"stage {n}", arguments=own)) for n, own in enumerate(lengths)
    ]
    list_stages(tmp_path, stages[:2])
    list_stages(tmp_path, stages[1:])
    assert json.loads((tmp_path / "stages.json").read_text())["stages"] == [
        {"folder": "s0", "title": "stage 0", "trainer.max_steps": 5},
        {"folder": "s1", "title": "stage 1", "trainer.num_train_epochs": 2.0},
        {"folder": "s2", "title": "stage 2"},
    ]


def test_only_the_first_process_says_that_a_stage_is_done(tmp_path):
    begin(tmp_path, {})
    stopped = tmp_path / "stopped.json"
    for is_first in (False, True):
        with pytest.raises(KeyError), noted_end(tmp_path, is_first):
            raise KeyError
        assert stopped.exists() == is_first
    for is_first in (False, True):
        with noted_end(tmp_path, is_first):
            pass
        assert stopped.exists() != is_first
    with noted_end(tmp_path, True):
        pass  # as most stages: nothing had ended it before


def in_child(job, holder=None) -> int:
    """The exit status of a child without torch in it; 3: what it wants is held by `holder`, by default by us."""
    if (pid := os.fork()) == 0:
        try:
            os._exit(job() or 0)
        except ResumeError as error:
            os._exit(3 if f"another run (process {holder or os.getppid()})" in str(error) else 4)
        finally:
            os._exit(9)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_one_process_has_the_lock(tmp_path):
    folder = tmp_path / "not" / "yet" / "there"
    lock = folder.with_name(".there.lock")

    def take() -> None:
        with locked(folder):
            pass

    with locked(folder):
        assert in_child(take) == 3
        assert in_child(lambda: check_free(folder)) == 0, "not yet made"
        folder.mkdir()
        (folder / "x").write_text("")
        assert in_child(lambda: check_free(folder)) == 3
        assert lock.read_text() == str(os.getpid())  # whoever closes the file gives the lock back: last
        assert not lock.stat().st_mode & 0o111
    assert not lock.exists()
    assert in_child(take) == 0
    assert in_child(lambda: check_free(folder)) == 4
    with pytest.raises(KeyError), locked(folder):
        raise KeyError
    assert not lock.exists(), "nor behind an error"


def test_who_has_the_lock_may_not_be_written_yet(tmp_path, monkeypatch):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "x").write_text("")
    monkeypatch.setattr(os, "write", lambda handle, text: 0)
    with locked(tmp_path / "run"):
        assert in_child(lambda: check_free(tmp_path / "run"), "unknown") == 3


def test_runs_that_begin_together_list_all_their_stages(tmp_path):
    stage = SimpleNamespace(title="stage 2", arguments={})
    names = [f"run{child}-{turn}" for child in range(4) for turn in range(25)]
    children = []
    for child in range(4):
        children.append(os.fork())
        if not children[-1]:
            for name in names[25 * child : 25 * child + 25]:
                list_stages(tmp_path, [(tmp_path / name, stage)])
            os._exit(0)
    assert [os.waitpid(pid, 0)[1] for pid in children] == [0] * 4
    listed = json.loads((tmp_path / "stages.json").read_text())["stages"]
    assert sorted(one["folder"] for one in listed) == sorted(names)
    assert not (tmp_path / ".stages.json.lock").exists()


def test_who_waits_has_the_lock_behind_the_other(tmp_path):
    reads, writes = os.pipe()
    if not (child := os.fork()):
        with locked(tmp_path / "run"):
            os.write(writes, b"!")
            time.sleep(0.2)
            (tmp_path / "written").touch()
        os._exit(0)
    os.read(reads, 1)
    with locked(tmp_path / "run", waits=True):
        assert (tmp_path / "written").exists()
    assert os.waitpid(child, 0)[1] == 0


def test_a_lock_left_by_a_longer_number_is_written_anew(tmp_path):
    lock = tmp_path / ".run.lock"
    lock.write_text("9" * 30)
    with locked(tmp_path / "run"):
        assert lock.read_text() == str(os.getpid())
        lock.unlink()  # by hand


def test_a_lock_that_its_owner_removes_is_taken_again(tmp_path, monkeypatch):
    """Opened before, and locked after, another run has ended: nobody else would see that file."""
    lock, original, calls = tmp_path / ".run.lock", fcntl.lockf, []

    def lockf(handle, how):
        calls.append(handle)
        if len(calls) == 1:
            lock.unlink()
        elif len(calls) == 2:
            lock.unlink()
            lock.write_text("of a third run")
        return original(handle, how)

    monkeypatch.setattr(fcntl, "lockf", lockf)
    open_before = len(os.listdir("/proc/self/fd"))
    with locked(tmp_path / "run"):
        assert len(calls) == 3
        assert lock.read_text() == str(os.getpid())
        assert len(os.listdir("/proc/self/fd")) == open_before + 1
    assert len(os.listdir("/proc/self/fd")) == open_before


def test_without_locks_there_is_a_warning(tmp_path, monkeypatch, caplog):
    def lockf(handle, how):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "lockf", lockf)
    with locked(tmp_path / "run"):
        pass
    assert "this file system has no locks" in caplog.records[0].getMessage()
    monkeypatch.setattr(folders, "fcntl", None)
    with locked(tmp_path / "other"):
        assert not Path(tmp_path, ".other.lock").exists()
