# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""The paper's seven stages as one recipe, killed again and again, and gone on with by the command."""

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
from killed_runs import TRAINER, digest, in_child

from xllm.cli import main
from xllm.training import running
from xllm.training.trainers.trainer import XLLMTrainer


pytestmark = pytest.mark.slow

FOLDERS = (
    "stage1-image", "stage1-video", "stage1-speech", "stage2-image", "stage2-video", "stage2-speech", "stage3",
)  # fmt: skip


@pytest.fixture(scope="module")
def recipe(media, tiny_checkpoint, tmp_path_factory) -> Path:
    """Three steps in each stage, over one epoch and the beginning of the next."""
    folder = tmp_path_factory.mktemp("seven")
    rows = {
        "image": [("red.png", "red"), ("blue.png", "blue")],
        "video": [("clip.mp4", "grey"), ("clip.mp4", "brighter")],
        "speech": [("low.wav", "lo"), ("high.wav", "hi")],
    }
    for name, pairs in rows.items():
        text = "file,text\n" + "".join(f"{media / file},{text}\n" for file, text in pairs * 2)
        (folder / f"{name}.csv").write_text(text)
    data = {name: {"train": str(folder / f"{name}.csv")} for name in rows}
    stages = [{"stage": stage, "modalities": [name], "data": data[name]} for stage in (1, 2) for name in rows]
    everything = [str(folder / f"{name}.csv") for name in rows]
    (folder / "recipe.yaml").write_text(
        json.dumps(
            {
                "model": str(tiny_checkpoint),
                "trainer": {**TRAINER, "gradient_accumulation_steps": 1, "max_steps": 3},
                "stages": [*stages, {"stage": 3, "data": {"train": everything}}],
                "data": {"augment": []},
            }
        )
    )
    return folder / "recipe.yaml"


@pytest.fixture(scope="module")
def whole(recipe) -> Path:
    folder = recipe.parent / "whole"
    assert main(["train", str(recipe), f"output_dir={folder}"]) == 0
    return folder


def killed(recipe, output, stage, step=None) -> None:
    """SIGKILL in a step of a stage, or, without one, when the stage before is done and this one is yet to begin."""

    def kill_in_step(trainer, *args, **kwargs):
        if Path(trainer.args.output_dir).name == stage and trainer.state.global_step + 1 == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return training_step(trainer, *args, **kwargs)

    def kill_before(folder, record):
        if folder.name == stage:
            os.kill(os.getpid(), signal.SIGKILL)
        begin(folder, record)

    def run():
        XLLMTrainer.training_step = kill_in_step
        if step is None:
            running.begin = kill_before
        main(["train", str(recipe), f"output_dir={output}", "--resume"])

    training_step, begin = XLLMTrainer.training_step, running.begin
    assert in_child(run) == -signal.SIGKILL


def test_seven_stages_killed_four_times_end_with_the_same_weights(recipe, whole, tmp_path, capfd):
    """In the middle of stages 2, 4 and 7, and between the end of stage 5 and the beginning of stage 6."""
    killed(recipe, tmp_path, "stage1-video", step=2)
    killed(recipe, tmp_path, "stage2-image", step=3)
    killed(recipe, tmp_path, "stage2-speech")
    assert (tmp_path / "stage2-video" / "config.json").is_file()
    assert not (tmp_path / "stage2-speech").exists()
    killed(recipe, tmp_path, "stage3", step=3)
    capfd.readouterr()
    assert main(["train", str(recipe), f"output_dir={tmp_path}", "--resume"]) == 0
    said = capfd.readouterr().err
    assert f"stage 3 (image+speech+video): goes on from {tmp_path / 'stage3' / 'checkpoint-2'}" in said
    assert "stage 2" not in said
    for name in FOLDERS:
        assert digest(tmp_path / name) == digest(whole / name), name
        lineages = [json.loads((run / name / "config.json").read_text())["lineage"] for run in (tmp_path, whole)]
        assert lineages[0] == lineages[1]
        steps = [json.loads(line)["step"] for line in (tmp_path / name / "log.jsonl").open()]
        assert steps == sorted(steps)
        assert (tmp_path / name / "report.html").is_file()
    assert len(lineages[0]) == 7


@pytest.mark.parametrize("gone", ["stage1-image", "stage2-video"])
def test_a_finished_stage_that_has_been_removed_is_an_error(recipe, whole, tmp_path, capfd, gone):
    """Not the beginning of a run over what the later stages hold."""
    shutil.copytree(whole, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / gone)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    assert main(["train", str(recipe), f"output_dir={tmp_path / 'run'}", "--resume"]) == 1
    (line,) = capfd.readouterr().err.splitlines()
    later = FOLDERS[FOLDERS.index(gone) + 1]
    assert line == (
        f"xllm train: {tmp_path / 'run' / gone}: holds no finished stage, but {later} beside it was begun from it; "
        "bring that folder back, or choose another output_dir"
    )
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")} == before
