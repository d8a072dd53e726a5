# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Folders of training, looked at while runs write them, stop, are killed, and afterwards."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest
from killed_runs import TRAINER

from xllm.modeling_xllm.weight_files import write_json
from xllm.training.inspection import run_files
from xllm.training.inspection.run_answers import AnswerFile
from xllm.training.inspection.run_files import RunFiles, Tail
from xllm.training.inspection.run_log import MOST_POINTS, RunLog, group_of
from xllm.training.inspection.run_state import RunState, StageState, is_run
from xllm.training.saving.folders import ResumeError, begin, lock_name, locked, noted_end
from xllm.training.saving.lineage import over
from xllm.training.train import train
from xllm.training.trainers.callbacks import JsonlCallback


HOLD = "import fcntl, sys; f = open(sys.argv[1], 'a'); fcntl.lockf(f, fcntl.LOCK_EX); print(1, flush=True); input()"


@contextmanager
def held(folder):
    """Another process has the lock of a folder; yields that process."""
    path = folder.with_name(lock_name(folder.name))
    command = [sys.executable, "-c", HOLD, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"1\n"
        try:
            yield process
        finally:
            process.kill()


def entry(step, at=0.0, **values):
    return json.dumps({"step": step, "epoch": step / 10, "time": 1000.0 + at, **values}) + "\n"


def a_stage(folder, steps=3, **record):
    begin(folder, {"recipe": {"stage": 2, "modalities.0": "speech", "trainer.max_steps": 10}, **record})
    (folder / "log.jsonl").write_text("".join(entry(n, n, loss=1 / n) for n in range(1, steps + 1)))
    return folder


def looked_at(folder):
    run = RunState(folder)
    run.look()
    return run


def states(folder):
    return {name: stage.state for name, stage in looked_at(folder).stages.items()}


def test_states(tmp_path):
    listed = [{"folder": name, "title": name} for name in ("one", "two", "three", "../../etc", "", 3)]
    write_json(tmp_path / "stages.json", {"stages": listed})
    assert states(tmp_path) == {"one": "waiting", "two": "waiting", "three": "waiting"}
    one, two, three = (tmp_path / name for name in ("one", "two", "three"))
    with held(one), held(two):
        a_stage(one)
        assert states(tmp_path) == {"one": "running", "two": "waiting", "three": "waiting"}
    assert states(tmp_path)["one"] == "interrupted", "its process was killed"
    with pytest.raises(ValueError, match="nonsense"), noted_end(one, True):
        raise ValueError("it learns nonsense")
    (stage, *_) = looked_at(tmp_path).stages.values()
    assert (stage.state, stage.stopped["error"]) == ("failed", "ValueError: it learns nonsense")
    with held(one):
        assert states(tmp_path)["one"] == "running", "it goes on"
    with pytest.raises(KeyboardInterrupt), noted_end(one, True):
        raise KeyboardInterrupt
    assert states(tmp_path)["one"] == "interrupted"
    with pytest.raises(ResumeError), noted_end(one, True):
        raise ResumeError("another recipe")
    assert json.loads((one / "stopped.json").read_text())["error"] == "KeyboardInterrupt", "nothing was begun"
    with noted_end(one, True):
        write_json(one / "config.json", {})
        write_json(one / "stage.json", {"result": {}})
    assert states(tmp_path)["one"] == "done"
    assert not (one / "stopped.json").exists()
    with held(one):
        assert states(tmp_path)["one"] == "running", "its evaluations"
        (one / "report.html").touch()
        assert states(tmp_path)["one"] == "done"
    assert not three.exists()


@pytest.mark.slow
def test_a_run_that_is_looked_at(tiny_checkpoint, media, tmp_path):
    """Two stages: killed in the first with SIGKILL, then gone on with."""
    (media / "three.csv").write_text("file,text\nlow.wav,a\nhigh.wav,b\nlow.wav,c\n")
    recipe = {
        "model": str(tiny_checkpoint), "output_dir": str(tmp_path), "trainer": TRAINER,
        "data": {"train": str(media / "three.csv")},
        "stages": [{"stage": number, "modalities": ["speech"]} for number in (1, 2)],
    }  # fmt: skip
    run, seen = RunState(tmp_path), []

    def begun(resume):
        if pid := os.fork():
            return pid
        write = JsonlCallback.on_log

        def slow(*args, **kwargs):
            write(*args, **kwargs)
            time.sleep(0.3)

        JsonlCallback.on_log = slow
        try:
            train(recipe, resume=resume, progress=False)
        finally:
            os._exit(0)

    def look_until(wanted, until=60.0):
        end = time.monotonic() + until
        while time.monotonic() < end:
            run._looked = float("-inf")
            run.look()
            now = [(stage.title, stage.state, stage.step) for stage in run.stages.values()]
            if not seen or seen[-1] != now:
                seen.append(now)
            if wanted(list(run.stages.values())):
                return
            time.sleep(0.02)
        raise AssertionError(seen)

    pid = begun(False)
    look_until(lambda stages: stages and stages[0].log.step == 2 and stages[0].checkpoints)
    first, second = run.stages.values()
    assert (first.title, first.state, first.steps) == ("stage 1 (speech)", "running", 4)
    assert (second.title, second.state) == ("stage 2 (speech)", "waiting")
    assert first.seconds_left() > 0
    assert first.receipt()["fault"] is None, "of the checkpoint"
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    look_until(lambda stages: [stage.state for stage in stages] == ["interrupted", "waiting"])
    pid = begun(True)
    look_until(lambda stages: [stage.state for stage in stages] == ["done", "done"])
    assert os.waitpid(pid, 0)[1] == 0
    assert any(now[0][1] == "done" and now[1][1] == "running" for now in seen if len(now) == 2)
    steps = [step for step, _ in first.log.curves["losses"]["loss"]]
    assert steps == [1, 2, 3, 4], "nothing twice, though the log was cut back and written on"
    assert all(stage.receipt()["fault"] is None and not stage.warnings for stage in run.stages.values())
    assert [entry["stage"] for entry in second.lineage] == [1, 2]


def test_only_what_was_appended_is_read(tmp_path, monkeypatch):
    path = tmp_path / "log.jsonl"
    path.write_bytes(b"".join(b"%d\n" % number for number in range(100_000)))
    tail = Tail(RunFiles(tmp_path), "log.jsonl")
    assert len(tail.look()[1]) == 100_000
    read = []
    inner = os.fdopen

    def counted(handle, mode):
        file = inner(handle, mode)

        class Counted:
            def __enter__(self):
                return self

            def __exit__(self, *error):
                file.close()

            def read(self, most):
                content = file.read(most)
                read.append(len(content))
                return content

            def __getattr__(self, name):
                return getattr(file, name)

        return Counted()

    monkeypatch.setattr(run_files.os, "fdopen", counted)
    with path.open("ab") as file:
        file.write(b"one\ntw")
    assert [line for _, line in tail.look()[1]] == [b"one"]
    with path.open("ab") as file:
        file.write(b"o\n")
    place = path.stat().st_size - 4
    assert tail.look() == (False, [(place, b"two")])
    assert sum(read) < 200


def test_a_log_that_is_cut_back_begins_anew(tmp_path):
    folder = a_stage(tmp_path / "one")
    log = RunLog(RunFiles(tmp_path), "one")
    assert log.look()
    assert not log.look()
    with (folder / "log.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')
    log.look()
    assert log.step == 3
    # The run goes on from step 2: the file is another, longer one.
    (folder / "new").write_text("".join(entry(n, n, loss=float(n)) for n in (1, 2, 3, 4, 5)))
    os.replace(folder / "new", folder / "log.jsonl")
    assert log.look()
    assert log.curves["losses"]["loss"] == [(n, float(n)) for n in (1, 2, 3, 4, 5)]
    # The same file, written anew over what was there.
    (folder / "log.jsonl").write_text("".join(entry(n, n, loss=2.0 * n) for n in range(1, 9)))
    log.look()
    assert log.curves["losses"]["loss"] == [(n, 2.0 * n) for n in range(1, 9)]


def test_numbers_of_a_log(tmp_path):
    folder = a_stage(tmp_path / "one", 0)
    values = {"loss": 2.0, "loss_image": 1.0, "eval_loss": 3.0, "eval_accuracy": 0.5, "learning_rate": 0.1}
    values |= {"grad_norm": 4.0, "grad_norm_head": 2.0, "mine": 7, "eval_runtime": 9.0, "train_loss": 1.0}
    values |= {"skipped_samples": 2, "cut_text": 3, "features_damaged": 4, "is_on": True, "itc_loss": float("nan")}
    lines = entry(1, 0, **values) + "no JSON\n" + '["no table"]\n' + '{"step": "x"}\n'
    (folder / "log.jsonl").write_text(lines)
    (stage,) = looked_at(tmp_path).stages.values()
    drawn = {group: sorted(curves) for group, curves in stage.log.curves.items()}
    assert drawn == {
        "losses": ["eval_loss", "loss", "loss_image"], "metrics": ["eval_accuracy"],
        "learning_rate": ["learning_rate"], "grad_norm": ["grad_norm", "grad_norm_head"], "others": ["mine"],
    }  # fmt: skip
    warned = {"skipped_samples": 2, "cut_text": 3, "features_damaged": 4, "damaged_lines": 2, "not_finite": 1}
    assert stage.warnings == warned
    assert group_of("epoch") is None


def test_time_left_is_by_the_last_steps_and_without_pauses(tmp_path):
    folder = a_stage(tmp_path / "one", 0)
    times = [(1, 0), (2, 2), (3, 4), (4, 9_000), (5, 9_002)]  # a pause of hours, before it was gone on with
    (folder / "log.jsonl").write_text("".join(entry(step, at, loss=1.0) for step, at in times))
    with held(folder):
        (stage,) = looked_at(tmp_path).stages.values()
        assert stage.seconds_left(now=1000.0 + 9_002) == 10.0
        assert stage.seconds_left(now=1000.0 + 9_003) == 9.0
        assert stage.seconds_left(now=1000.0 + 99_999) == 0.0
    stage.look()
    assert stage.seconds_left() is None


def test_how_many_steps_there_are(tmp_path):
    folder = a_stage(tmp_path / "one", 4)
    write_json(folder / "stage.json", {"recipe": {"trainer.num_train_epochs": 2}})
    (stage,) = looked_at(tmp_path).stages.values()
    assert stage.steps == 20  # step 4 was at 0.4 epochs
    place = folder / "checkpoint-3"
    place.mkdir()
    state, manifest = json.dumps({"max_steps": 25}), {"files": {"trainer_state.json": [17, "0"]}}
    (place / "trainer_state.json").write_text(state)
    write_json(place / "manifest.json", manifest)
    stage.look()
    assert (stage.steps, stage.checkpoints[0]["whole"]) == (25, True)
    (place / "trainer_state.json").write_text(state[:9])
    stage.look()
    assert (stage.steps, stage.checkpoints[0]["whole"]) == (25, False), "half-written: the last whole one stands"
    assert stage.warnings == {"unread_files": 1}
    (place / "trainer_state.json").write_text(state.replace("25", "26"))
    stage.look()
    assert (stage.steps, stage.warnings) == (26, {})


def test_nothing_outside_the_folder_is_opened(tmp_path, monkeypatch):
    outside = tmp_path / "outside"
    a_stage(outside / "secret")
    (outside / "a.png").write_bytes(b"secret")
    root = tmp_path / "run"
    a_stage(root / "own")
    (root / "own/log.jsonl").unlink()
    (root / "own/log.jsonl").symlink_to(outside / "secret/log.jsonl")
    (root / "linked").symlink_to(outside / "secret")
    (root / "file").symlink_to(outside / "a.png")
    (root / "inner").symlink_to(root / "own/stage.json")
    os.mkfifo(root / "own/frozen.json")
    (root / "loop").symlink_to(root / "loop")
    opened, inner = [], os.open
    monkeypatch.setattr(
        run_files.os, "open", lambda path, *args, **k: opened.append(str(path)) or inner(path, *args, **k)
    )
    run = looked_at(root)
    files = run.files
    names = ["file", "../outside/a.png", str(outside / "a.png"), "own/../../outside/a.png", "loop", "own/frozen.json"]
    assert [files.read(name) for name in [*names, "own", "\0"]] == [None] * 8
    assert files.read("inner") == (root / "own/stage.json").read_bytes()
    assert list(run.stages) == ["own"]
    assert run.stages["own"].log.entries == 0
    assert [path for path in opened if not path.startswith(str(root))] == []
    assert files.relative(str(outside / "a.png")) is None
    assert files.relative(str(root / "file")) is None
    assert files.relative("own/stage.json") == "own/stage.json"
    assert "leads out of the folder" in files.problems["file"]


def test_a_lock_is_neither_taken_nor_lost(tmp_path):
    folder = a_stage(tmp_path / "one")
    code = (
        "import runpy, sys\n"
        "files = runpy.run_path(sys.argv[1])['RunFiles'](sys.argv[2])\n"
        "print(1, flush=True)\n"
        "while True: files.is_locked(sys.argv[3])"
    )
    command = [sys.executable, "-c", code, run_files.__file__, str(tmp_path), lock_name("one")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"1\n"
        for _ in range(500):
            with locked(folder):  # raises where another has it, for however short a time
                pass
        process.kill()
    files, name = RunFiles(tmp_path), lock_name("one")
    with locked(folder):
        files.is_locked(name)  # closing the file would give up the lock of this process
        other = "import fcntl, sys; fcntl.lockf(open(sys.argv[1], 'a'), fcntl.LOCK_EX | fcntl.LOCK_NB)"
        tried = subprocess.run([sys.executable, "-c", other, str(tmp_path / name)], capture_output=True, check=False)
        assert b"BlockingIOError" in tried.stderr
    with held(folder):
        assert files.is_locked(name), "a new file of the same name"
    assert not files.is_locked(name)


def test_a_folder_that_goes_away_and_comes_back(tmp_path):
    root = tmp_path / "run"
    folder = a_stage(root / "one")
    run = looked_at(root)
    root.rename(tmp_path / "away")
    run._looked = float("-inf")
    run.look()
    assert not run.files.exists()
    assert run.stages == {}
    (tmp_path / "away").rename(root)
    (folder / "log.jsonl").write_text(entry(1, 0, loss=1.0))
    run._looked = float("-inf")
    run.look()
    assert run.stages["one"].log.step == 1


def test_folders_of_older_versions(tmp_path):
    """Without stage.json, times, or the counts of parameters; the log is there."""
    folder = tmp_path / "stage2-speech"
    folder.mkdir()
    (folder / "log.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.0}\n')
    (stage,) = looked_at(tmp_path).stages.values()
    assert (stage.title, stage.state, stage.step, stage.steps) == ("stage2-speech", "interrupted", 2, None)
    write_json(folder / "config.json", {})
    stage.look()
    assert (stage.state, stage.parameters, stage.lineage, stage.receipt()["file"]) == ("done", {}, [], None)


ANYTHING = ("[]", "3", '"x"', "null", '{"a": [}', "", "[" * 100_000, '{"recipe": 3, "result": 3}')


@pytest.mark.parametrize("value", ANYTHING)
def test_files_that_hold_anything(value, tmp_path):
    folder = a_stage(tmp_path / "one")
    place = folder / "checkpoint-1"
    place.mkdir()
    for name in ("stage.json", "stopped.json", "config.json", "frozen.json", "results.json", "log.jsonl"):
        (folder / name).write_text(value)
    for path in (place / "manifest.json", place / "trainer_state.json", tmp_path / "stages.json"):
        path.write_text(value)
    (folder / "samples_a.jsonl").write_text(value + "\n")
    (stage,) = looked_at(tmp_path).stages.values()
    assert (stage.title, stage.lineage, stage.parameters) == ("one", [], {})
    assert stage.receipt()["fault"] == ("sum" if value == ANYTHING[-1] else None), "a receipt of nothing"
    found = AnswerFile(RunFiles(tmp_path), "one/samples_a.jsonl")
    found.look()
    assert found.rows(0, 5) == []


def test_receipts_are_added_up_again(tmp_path):
    folder = a_stage(tmp_path / "one")
    hashes = {"a": "1", "b": "2"}
    whole = {"before": over(hashes), "after": over(hashes), "tensors": hashes}
    stage = StageState(RunFiles(tmp_path), "one")
    for receipt, start, fault in (
        (whole, over(hashes), None),
        (whole, "other", "start"),
        ({**whole, "after": "other"}, over(hashes), "moved"),
        ({**whole, "tensors": {**hashes, "b": "3"}}, over(hashes), "sum"),
    ):
        write_json(folder / "frozen.json", receipt)
        write_json(folder / "stage.json", {"start": {"frozen": start}})
        stage.look()
        assert stage.receipt()["fault"] == fault
        assert stage.warnings.get("unlike_receipt", 0) == (fault is not None)


def test_long_curves_are_thinned(tmp_path):
    log = RunLog(RunFiles(tmp_path), "none")
    for step in range(3 * MOST_POINTS):
        log.take({"step": step, "loss": float(step)})
    points = log.curves["losses"]["loss"]
    assert MOST_POINTS // 2 <= len(points) <= MOST_POINTS
    assert (points[0], points[-1]) == ((0, 0.0), (3 * MOST_POINTS - 1, 3.0 * MOST_POINTS - 1))
    assert points == sorted(points)


def test_answers_while_they_are_written(tmp_path):
    rows = [{"n": n, "answer": str(n % 3), "reference": "0", "question": "?"} for n in range(7)]
    path = tmp_path / ".answers_all.12.jsonl"
    path.write_text('{"batch": 1}\n' + "".join(json.dumps(row) + "\n" for row in rows[:5]) + '{"n": 5, "an')
    found = AnswerFile(RunFiles(tmp_path), path.name)
    found.look()
    assert (found.count(), found.count(only_unlike=True)) == (5, 3)
    assert found.rows(3, 6) == rows[3:5]
    assert [row["n"] for row in found.rows(1, 6, only_unlike=True)] == [2, 4]
    with path.open("a") as file:
        file.write('swer": "2", "reference": "0", "question": "?"}\n' + json.dumps(rows[6]) + "\n")
    found.look()
    assert found.rows(5, 9) == [{**rows[5]}, rows[6]]


def test_what_is_a_folder_of_training(tmp_path):
    assert not is_run(tmp_path)
    assert not is_run(tmp_path / "none")
    folder = a_stage(tmp_path / "runs/all/one")
    assert all(is_run(one) for one in (tmp_path, tmp_path / "runs", folder))
    write_json(folder / "config.json", {})
    assert not is_run(folder), "a stage that is done is a model"
    assert is_run(tmp_path)
