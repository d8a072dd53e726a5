# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""A disk that is full at any moment of a run: one line, exit status 1, and with room again it goes on."""

import json
import os
import resource
import subprocess

import pytest
from killed_runs import TRAINER, digest, in_child

from xllm.cli import main
from xllm.training import feature_cache, running
from xllm.training.inspection.report import StageReport
from xllm.training.saving.checkpoints import SAVING, fault
from xllm.training.trainers import callbacks
from xllm.training.trainers.trainer import XLLMTrainer


@pytest.fixture
def small_disk(tmp_path):
    """A folder on a disk of 20 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=20m", "none", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"this user may not mount a disk: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.fixture(scope="module")
def recipe(media, tiny_checkpoint, tmp_path_factory):
    """Stage 2 of speech, a checkpoint after every step, and of pictures."""
    folder = tmp_path_factory.mktemp("recipe")
    rows = "".join(f"{media / name}.wav,{name}\n" for name in ("low", "high"))
    (folder / "clips.csv").write_text("file,text\n" + rows * 2)
    (folder / "pictures.csv").write_text(f"file,text\n{media / 'red.png'},red\n{media / 'blue.png'},blue\n")
    settings = {"model": str(tiny_checkpoint), "trainer": {**TRAINER, "gradient_accumulation_steps": 1}}
    stages = [{"stage": 2, "modalities": ["speech"], "data": {"train": str(folder / "clips.csv"), "augment": []}}]
    (folder / "recipe.yaml").write_text(json.dumps({**settings, "stages": stages}))
    stages = [{"stage": 2, "modalities": ["image"], "data": {"train": str(folder / "pictures.csv")}}]
    (folder / "pictures.yaml").write_text(json.dumps({**settings, "stages": stages}))
    return folder / "recipe.yaml"


@pytest.fixture(scope="module")
def whole(recipe):
    """The folder of a stage that had room."""
    assert main(["train", str(recipe), f"output_dir={recipe.parent / 'whole'}"]) == 0
    return recipe.parent / "whole" / "stage2-speech"


def fill(disk) -> None:
    """No byte is left."""
    handle = os.open(disk / "filler", os.O_WRONLY | os.O_CREAT)
    try:
        while os.write(handle, bytes(1 << 16)):
            pass
    except OSError:
        os.close(handle)


def full_at(disk, target, name, number, line) -> int:
    """The exit status of a command line whose disk is full from the given call of `target.name` on."""

    def run():
        calls, original = iter(range(1, 10_000)), getattr(target, name)

        def call(*args, **kwargs):
            if next(calls) == number:
                fill(disk)
            return original(*args, **kwargs)

        setattr(target, name, call)
        os._exit(main(line))

    return in_child(run)


MOMENTS = {
    "it begins": (running, "begin", 1),
    "it writes its log": (callbacks.JsonlCallback, "on_log", 3),
    "it writes a checkpoint": (XLLMTrainer, "_save_checkpoint", 3),
    "it draws": (callbacks, "plot_losses", 2),
    "it writes its result": (running, "save_checkpoint", 1),
    "it writes its report": (StageReport, "write", 1),
}


@pytest.mark.slow
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_full_disk_is_one_line_and_loses_nothing(recipe, whole, small_disk, capfd, moment):
    line = ["train", str(recipe), f"output_dir={small_disk / 'run'}"]
    capfd.readouterr()
    assert full_at(small_disk, *MOMENTS[moment], line) == 1
    *rest, last = capfd.readouterr().err.splitlines()
    assert last.startswith(f"xllm train: {small_disk / 'run'}"), last
    assert last.endswith("what was saved before is intact: make room and go on with --resume")
    assert "Traceback" not in "".join(rest)
    folder = small_disk / "run" / "stage2-speech"
    assert not (folder / SAVING).exists()
    saved = list(folder.glob("checkpoint-*"))
    assert [path.name for path in saved if fault(path)] == []
    assert bool(saved) == (moment != "it begins")
    assert full_at(small_disk, running, "begin", 0, [*line, "--resume"]) == 1, "there still is no room"
    assert {path.name for path in saved} <= {path.name for path in folder.glob("checkpoint-*")}
    (small_disk / "filler").unlink()
    capfd.readouterr()
    assert main([*line, "--resume"]) == 0
    newest = max((int(path.name.rpartition("-")[2]) for path in saved), default=0)
    is_new = moment in ("it begins", "it writes its report")
    assert is_new or f"goes on from {folder / f'checkpoint-{newest}'}" in capfd.readouterr().err
    assert digest(folder) == digest(whole)
    assert {path.name for path in folder.iterdir()} == {path.name for path in whole.iterdir()}
    steps = [[json.loads(entry)["step"] for entry in (run / "log.jsonl").open()] for run in (folder, whole)]
    assert steps[0] == steps[1]


def test_a_file_that_may_not_grow_is_a_full_disk(recipe, whole, tmp_path, capfd):
    """A limit of the process, or a quota, in the third checkpoint."""

    def limited():
        original = XLLMTrainer._save_checkpoint

        def save(trainer, *args):
            if trainer.state.global_step == 3:
                resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))
            original(trainer, *args)

        XLLMTrainer._save_checkpoint = save
        os._exit(main(["train", str(recipe), f"output_dir={tmp_path}"]))

    assert in_child(limited) == 1
    line = capfd.readouterr().err.splitlines()[-1]
    folder = tmp_path / "stage2-speech"
    assert line.startswith(f"xllm train: {folder}: no room for a checkpoint: about ")
    assert line.endswith("make room and go on with --resume")
    assert not (folder / SAVING).exists()
    saved = [path.name for path in folder.glob("*checkpoint*")]
    assert saved
    assert not [name for name in saved if fault(folder / name)]
    assert main(["train", str(recipe), f"output_dir={tmp_path}", "--resume"]) == 0
    assert digest(folder) == digest(whole)


@pytest.mark.slow
def test_without_room_for_features_a_run_goes_on(recipe, small_disk, tmp_path, capfd, monkeypatch):
    """They are made again in each epoch; the log counts them, and nothing half-written is read."""
    line = ["train", str(recipe.with_name("pictures.yaml"))]
    cached = [*line, f"data.cache_features={small_disk / 'features'}"]
    monkeypatch.setattr(feature_cache.logger, "warning", lambda text: os.write(2, f"{text}\n".encode()))
    assert main([*line, f"output_dir={tmp_path / 'without'}"]) == 0
    full = full_at(small_disk, feature_cache.FeatureCache, "_write", 1, [*cached, f"output_dir={tmp_path / 'full'}"])
    assert full == 0
    said = [text for text in capfd.readouterr().err.splitlines() if "No space left" in text]
    assert len(said) == 1
    assert "cannot be written" in said[0]
    assert "the run goes on without it" in said[0]
    entries = [json.loads(text) for text in (tmp_path / "full" / "stage2-image" / "log.jsonl").open()]
    assert entries[-1]["features_unwritten"] >= 4
    assert not list((small_disk / "features").rglob("*.safetensors"))
    assert not list((small_disk / "features" / ".parts").iterdir())
    (small_disk / "filler").unlink()
    assert main([*cached, f"output_dir={tmp_path / 'room'}"]) == 0
    assert list((small_disk / "features").rglob("*.safetensors"))
    expected = digest(tmp_path / "without" / "stage2-image")
    assert [digest(tmp_path / name / "stage2-image") == expected for name in ("full", "room")] == [True, True]
