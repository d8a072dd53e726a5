# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Runs that are killed, told to stop or run out of disk, and go on: the weights are those of an uninterrupted run."""

import json
import os
import re
import shutil
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from killed_runs import TRAINER, digest, in_child, in_two_processes, killed_at
from transformers import TrainingArguments

from xllm.training.inspection.report import StageReport
from xllm.training.saving.checkpoints import SAVING, last_whole_checkpoint
from xllm.training.saving.folders import ResumeError, check_same
from xllm.training.stages import freeze_for_stage
from xllm.training.train import check, train
from xllm.training.trainers.trainer import XLLMTrainer


@pytest.fixture(scope="module")
def rows(media):
    path = media / "clips.csv"
    path.write_text("file,text\n" + "".join(f"{n}.wav,{n[:i]}\n" for i in (1, 2, 3) for n in ("low", "high")))
    (media / "pictures6.csv").write_text("file,text\n" + "red.png,red\nblue.png,blue\n" * 3)
    return {"speech": str(path), "image": str(media / "pictures6.csv")}


@pytest.fixture(scope="module")
def recipe(rows, tiny_checkpoint):
    """Stage 1 of a speech interface with its encoder, then its stage 2."""
    return {
        "model": str(tiny_checkpoint),
        "output_dir": "to be set",
        "trainer": TRAINER,
        "data": {"train": rows["speech"], "augment": ["gain"]},
        "stages": [
            {"stage": 1, "modalities": ["speech"], "train_encoder": True},
            {"stage": 2, "modalities": ["speech"]},
        ],
    }


STAGES = ("stage1-speech", "stage2-speech")


@pytest.fixture(scope="module")
def whole(recipe, tmp_path_factory):
    """The uninterrupted run: its folder, and the digests of what each stage has learnt."""
    folder = tmp_path_factory.mktemp("whole")
    train({**recipe, "output_dir": str(folder)}, progress=False)
    return folder, [digest(folder / stage) for stage in STAGES]


def run(recipe, folder, resume=False, **changes):
    train({**recipe, "output_dir": str(folder), **changes}, resume=resume, progress=False)


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_weights(recipe, whole, tmp_path):
    """Killed while it writes, flushes or renames, in stage 1 (encoder and heads too), in epoch 2, and in stage 2."""
    points = [(torch, "save", 3), (torch, "save", 9), (os, "fsync", 40), (os, "replace", 17), (shutil, "rmtree", 11)]
    for target, name, number in points:
        assert killed_at(lambda: run(recipe, tmp_path, resume=True), target, name, number) == -signal.SIGKILL
    assert in_child(lambda: run(recipe, tmp_path, resume=True)) == 0
    assert [digest(tmp_path / stage) for stage in STAGES] == whole[1]
    receipts = [json.loads((folder / "stage2-speech" / "frozen.json").read_text()) for folder in (tmp_path, whole[0])]
    assert receipts[0] == receipts[1]
    logs = [
        [json.loads(line) for line in (folder / "stage1-speech" / "log.jsonl").open()]
        for folder in (tmp_path, whole[0])
    ]
    assert [entry["step"] for entry in logs[0]] == [entry["step"] for entry in logs[1]], "no entry twice"
    assert not (tmp_path / "stage1-speech" / SAVING).exists()


def test_finished_stages_are_not_run_again(recipe, whole, tmp_path, monkeypatch):
    shutil.copytree(whole[0], tmp_path / "run")
    monkeypatch.setattr(XLLMTrainer, "train", None)
    result = train({**recipe, "output_dir": str(tmp_path / "run")}, resume=True)
    assert [stage.folder.name for stage in result.stages] == list(STAGES)
    assert result.stages[1].log["step"] == 6
    lines = check({**recipe, "output_dir": str(tmp_path / "run")}, resume=True)
    assert all(line.endswith("(finished)") for line in lines)


def test_a_missing_evaluation_is_made_up_for(recipe, rows, tmp_path):
    evaluated = {**recipe, "evaluate": {"name": "all", "data": rows["speech"], "max_new_tokens": 2}}
    evaluated["trainer"] = {**TRAINER, "max_steps": 1}
    run(evaluated, tmp_path)
    found = [json.loads((tmp_path / stage / "results.json").read_text()) for stage in STAGES]
    (tmp_path / STAGES[0] / "results.json").unlink()
    (tmp_path / STAGES[1] / "results.json").write_text("{}")
    run(evaluated, tmp_path, resume=True)
    assert [json.loads((tmp_path / stage / "results.json").read_text()) for stage in STAGES] == found


def test_a_missing_report_is_made_up_for(recipe, tmp_path):
    """A process that is killed between the checkpoint and the report leaves none."""
    short = {**recipe, "trainer": {**TRAINER, "max_steps": 1}}
    stop = killed_at(lambda: run(short, tmp_path), StageReport, "write", 2)
    assert stop == -signal.SIGKILL
    pages = [tmp_path / stage / "report.html" for stage in STAGES]
    assert [page.is_file() for page in pages] == [True, False]
    written = pages[0].read_text()
    pages[0].unlink()
    run(short, tmp_path, resume=True)
    again = [re.sub(r"[-\d]+ [:\d]+ UTC", "", page.read_text()) for page in pages]
    assert again[0] == re.sub(r"[-\d]+ [:\d]+ UTC", "", written)
    assert ">before<" in again[1]
    assert "not asked" not in again[1]
    before = pages[1].stat().st_mtime_ns
    run(short, tmp_path, resume=True)
    assert pages[1].stat().st_mtime_ns == before


def one_stage(recipe, number=1, **changes):
    return {**recipe, "stages": [recipe["stages"][number]], **changes}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 7}, r"stage1-speech: seed is 7, but the run to go on with has 42; give it that value, or choose"),
        ({"trainer": {**TRAINER, "learning_rate": 1.0}}, r"trainer.learning_rate is 1.0, but .* has 0.01"),
        ({"trainer": {**TRAINER, "save_steps": 3, "dataloader_num_workers": 2}}, None),
        (
            {"trainer": {**TRAINER, "gradient_accumulation_steps": 4}},
            r"a step takes 4 batches \(.*\), but .* with 2 \(",
        ),
        ({"data": {"train": "{fewer}", "augment": ["gain"]}}, "data.train has changed since .*: 5 samples, it had 6"),
        ({"data": {"train": "{moved}", "augment": ["gain"]}}, None),
        ({"data": {"train": "{moved}", "augment": []}}, "data.augment.0 is None, but .* has 'gain'"),
    ],
)
def test_a_run_goes_on_with_its_own_recipe_and_data_only(recipe, whole, rows, media, tmp_path, change, message):
    text = Path(rows["speech"]).read_text(encoding="utf-8")
    (media / "fewer.csv").write_text(text.rpartition("high")[0])
    (media / "moved.csv").write_text(text)
    for name in ("fewer", "moved"):
        change = json.loads(json.dumps(change).replace(f"{{{name}}}", str(media / f"{name}.csv")))
    shutil.copytree(whole[0], tmp_path / "run")
    changed = {**recipe, "output_dir": str(tmp_path / "run"), **change}
    if message is None:
        assert check(changed, resume=True)
        return
    with pytest.raises(ResumeError, match=message):
        train(changed, resume=True)


@pytest.mark.parametrize(
    ("now", "streamed", "is_finished", "may"),
    [
        ((4, 2), False, False, True),  # accumulation, processes: 8 batches a step, as before
        ((2, 2), False, False, False),
        ((2, 4), False, False, True),
        ((1, 4), False, False, False),
        ((2, 2), True, False, True),  # a stream knows its place
        ((1, 4), True, False, False),
        ((2, 1), False, True, True),  # nothing is trained any more
        ((1, 4), False, True, False),
    ],
)
def test_processes_and_accumulation_may_change_against_each_other(tmp_path, now, streamed, is_finished, may):
    def record(steps, processes):
        keys = {"seed": 1, "trainer.gradient_accumulation_steps": steps, "data.streaming": streamed}
        return {"recipe": keys, "data": {}, "processes": processes}

    before = record(2, 4) | ({"result": {}} if is_finished else {})
    if may:
        return check_same(tmp_path, before, record(*now))
    with pytest.raises(ResumeError, match="make the product the same"):
        check_same(tmp_path, before, record(*now))


def test_another_model_to_start_from_is_noticed(recipe, whole, tiny_checkpoint, tmp_path):
    shutil.copytree(whole[0] / STAGES[1], tmp_path / STAGES[1])
    (tmp_path / STAGES[1] / "config.json").unlink()
    with pytest.raises(ResumeError, match="the model that this stage starts from is not the one it was begun with"):
        run(one_stage(recipe), tmp_path, resume=True)


def test_damaged_checkpoints_are_set_aside(recipe, whole, tmp_path, caplog):
    """Truncated optimizer, altered byte in the weights: the newest whole one is taken, and what is said is counted."""
    folder = tmp_path / STAGES[1]
    shutil.copytree(whole[0], tmp_path, dirs_exist_ok=True)
    (folder / "config.json").unlink()
    state = folder / "checkpoint-6" / "optimizer.pt"
    state.write_bytes(state.read_bytes()[:-100])
    shutil.copytree(folder / "checkpoint-5", folder / "checkpoint-4")
    weights = folder / "checkpoint-5" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    (folder / "checkpoint-7").mkdir()
    assert last_whole_checkpoint(folder).name == "checkpoint-4"
    (line,) = [record.getMessage() for record in caplog.records]
    assert "3 damaged checkpoint(s) set aside as damaged-* (checkpoint-7: it has no manifest.json; " in line
    assert "checkpoint-6: optimizer.pt has" in line
    assert "checkpoint-5: model.safetensors has been altered); going on from checkpoint-4" in line
    assert (folder / "damaged-checkpoint-6").is_dir()


def test_resume_from_the_last_step_trains_no_further(recipe, whole, tmp_path):
    shutil.copytree(whole[0], tmp_path, dirs_exist_ok=True)
    (tmp_path / STAGES[1] / "config.json").unlink()
    run(recipe, tmp_path, resume=True)
    assert digest(tmp_path / STAGES[1]) == whole[1][1]


def test_a_checkpoint_of_other_tensors_is_not_taken(tiny, tmp_path):
    model, _ = tiny
    freeze_for_stage(model, 3, ["image"])
    trainer = XLLMTrainer(model=model, args=TrainingArguments(str(tmp_path), use_cpu=True, report_to="none"))
    result = SimpleNamespace(missing_keys=["model.interfaces.image.adapter.weight"], unexpected_keys=[])
    with pytest.raises(ValueError, match=r"lacks trained tensors, e.g. model.interfaces.image.adapter.weight \(1 in"):
        trainer._issue_warnings_after_load(result)
    result = SimpleNamespace(missing_keys=["lm_head.weight"], unexpected_keys=["model.other"])
    with pytest.raises(ValueError, match="holds other tensors, e.g. model.other"):
        trainer._issue_warnings_after_load(result)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_ends_the_run(recipe, whole, tmp_path, capfd, signum):
    """With workers, to which Ctrl-C in a terminal goes too."""
    workers = {**TRAINER, "save_steps": 100, "dataloader_num_workers": 2}

    def run_and_signal():
        original, sent = XLLMTrainer.training_step, []

        def training_step(trainer, *args, **kwargs):
            if trainer.state.global_step == 3 and not sent:
                sent.append(os.killpg(os.getpgid(0), signum))
            return original(trainer, *args, **kwargs)

        os.setpgid(0, 0)
        XLLMTrainer.training_step = training_step
        run(one_stage(recipe, 0), tmp_path, trainer=workers)

    assert in_child(run_and_signal) == 128 + signum
    err = capfd.readouterr().err
    name = signal.Signals(signum).name
    assert f"{name}: saving after this step; again to stop at once" in err
    assert (
        f"{name}: stopped after step 4, saved in {tmp_path / STAGES[0] / 'checkpoint-4'}; go on with --resume" in err
    )
    run(one_stage(recipe, 0), tmp_path, resume=True, trainer=workers)
    assert digest(tmp_path / STAGES[0]) == whole[1][0]


def test_the_second_signal_stops_at_once(recipe, tmp_path):
    def run_and_signal():
        def training_step(*args, **kwargs):
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(0.01)
            raise AssertionError("still there")

        XLLMTrainer.training_step = training_step
        run(one_stage(recipe), tmp_path)

    assert in_child(run_and_signal) == 130
    assert not list((tmp_path / STAGES[1]).glob("checkpoint-*"))


def test_two_runs_in_one_folder(recipe, tmp_path, monkeypatch):
    """The second is refused while the first is there; a killed one leaves no lock."""
    ready, go = os.pipe()

    def first():
        def training_step(*args, **kwargs):
            os.write(go, b"x")
            time.sleep(60)

        XLLMTrainer.training_step = training_step
        run(one_stage(recipe), tmp_path)

    if (pid := os.fork()) == 0:
        try:
            first()
        finally:
            os._exit(1)
    os.read(ready, 1)
    for resume in (False, True):
        with pytest.raises(
            ResumeError, match=rf"another run \(process {pid}\) is writing there; wait for it, or choose"
        ):
            run(one_stage(recipe), tmp_path, resume=resume)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    with pytest.raises(ResumeError, match="exists and is not an empty folder; go on there with --resume, or choose"):
        run(one_stage(recipe), tmp_path)
    run(one_stage(recipe, trainer={**TRAINER, "max_steps": 1}), tmp_path / "other")
    assert not (tmp_path / "other" / f".{STAGES[1]}.lock").exists()


@pytest.mark.slow
def test_two_ranks_stop_after_the_same_step_and_go_on(recipe, tmp_path, capfd):
    """The signal reaches one of them only."""
    trainer = {**TRAINER, "num_train_epochs": 4, "gradient_accumulation_steps": 1, "save_steps": 100}

    def run_and_signal():
        original, sent = XLLMTrainer.training_step, []

        def training_step(trainer, *args, **kwargs):
            if trainer.state.global_step == 4 and os.environ["RANK"] == "1" and not sent:
                sent.append(os.kill(os.getpid(), signal.SIGTERM))
            return original(trainer, *args, **kwargs)

        XLLMTrainer.training_step = training_step
        run(one_stage(recipe), tmp_path / "a", trainer=trainer)

    assert in_two_processes(run_and_signal) == [143, 143]
    err = capfd.readouterr().err
    (step,) = set(re.findall(r"SIGTERM: stopped after step (\d+), saved in", err))
    assert 5 <= int(step) <= 7
    folder = tmp_path / "a" / STAGES[1]
    assert [path.name for path in folder.glob("checkpoint-*")] == [f"checkpoint-{step}"]
    assert {path.name for path in (folder / f"checkpoint-{step}").glob("rng*")} == {
        "rng_state_0.pth",
        "rng_state_1.pth",
    }
    assert in_two_processes(lambda: run(one_stage(recipe), tmp_path / "a", resume=True, trainer=trainer)) == [0, 0]
    assert in_two_processes(lambda: run(one_stage(recipe), tmp_path / "b", trainer=trainer)) == [0, 0]
    assert digest(folder) == digest(tmp_path / "b" / STAGES[1])
