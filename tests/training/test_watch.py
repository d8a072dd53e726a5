# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""What the log of a run tells, and in which steps that costs anything."""

import json
import math

import numpy as np
import pytest
from media_files import sine, write_wav
from PIL import Image

from xllm.assembly.tiny import build_tiny
from xllm.training.train import train
from xllm.training.trainers import watch


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Four steps of stage 3 over three sources, of which every second is logged; how often losses were taken."""
    folder = tmp_path_factory.mktemp("watch")
    build_tiny(folder / "tiny")
    Image.fromarray(np.full((32, 32, 3), 90, np.uint8)).save(folder / "a.png")
    write_wav(folder / "a.wav", [sine()])
    for name, file in (("photos", "a.png"), ("scans", "a.png"), ("voices", "a.wav")):
        row = json.dumps({"file": file, "text": "0 1"})
        (folder / f"{name}.jsonl").write_text(f"{row}\n" * 4, encoding="utf-8")
    recipe = {
        "model": str(folder / "tiny"),
        "output_dir": str(folder / "out"),
        "stage": 3,
        "modalities": ["image", "speech"],
        "data": {"train": [{"path": str(folder / f"{name}.jsonl")} for name in ("photos", "scans", "voices")]},
        "trainer": {
            "max_steps": 4,
            "logging_steps": 2,
            "per_device_train_batch_size": 6,
            "gradient_accumulation_steps": 2,
            "max_grad_norm": 1e-9,
        },
        "report_samples": 0,
    }
    taken = []
    patch = pytest.MonkeyPatch()
    original = watch.losses_of_rows
    patch.setattr(watch, "losses_of_rows", lambda *args: taken.append(len(args[0])) or original(*args))
    log = train(recipe, progress=False).stages[0].folder / "log.jsonl"
    patch.undo()
    entries = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    return [entry for entry in entries if "loss" in entry], taken


def test_losses_are_taken_in_logged_steps_alone(run):
    entries, taken = run
    assert [entry["step"] for entry in entries] == [2, 4]
    assert taken == [6, 6] * 2  # of the two batches of each logged step


def test_losses_by_modality_and_by_source(run):
    for entry in run[0]:
        names = {name for name in entry if name.startswith("loss_")}
        assert names == {"loss_image", "loss_speech", *(f"loss_data_{name}" for name in ("photos", "scans", "voices"))}
        assert entry["loss_data_voices"] == pytest.approx(entry["loss_speech"])
        assert entry["loss_data_photos"] == pytest.approx(entry["loss_data_scans"])


def test_norms_of_the_parts_are_those_before_clipping(run):
    for entry in run[0]:
        parts = [value for name, value in entry.items() if name.startswith("grad_norm_")]
        assert len(parts) == 2
        assert entry["grad_norm"] > 1e-5  # far above what it is clipped to
        assert math.hypot(*parts) == pytest.approx(entry["grad_norm"], rel=0.05, abs=2e-6)
