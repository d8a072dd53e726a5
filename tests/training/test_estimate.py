# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""`xllm estimate`: what a few steps say of a whole run."""

import json

import numpy as np
import pytest
from PIL import Image

from xllm.assembly.tiny import build_tiny
from xllm.cli import main
from xllm.training.inspection.estimate import estimate


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("estimate")
    build_tiny(folder / "tiny")
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(folder / "a.png")
    rows = [json.dumps({"file": "a.png", "text": "0 1" if n % 2 else "0 1 2 3 4 5 6 7"}) for n in range(40)]
    (folder / "rows.jsonl").write_text("\n".join(rows), encoding="utf-8")
    return folder


def recipe(folder, **trainer):
    data = {"train": [{"path": str(folder / "rows.jsonl")}]}
    stages = [
        {"stage": 1, "modalities": ["image"], "trainer": {"max_steps": 900, "per_device_train_batch_size": 4}},
        {"stage": 2, "modalities": ["image"], "trainer": {"per_device_train_batch_size": 4, **trainer}},
    ]
    return {"model": str(folder / "tiny"), "output_dir": str(folder / "unused"), "data": data, "stages": stages}


def test_a_stage_is_counted_and_timed_and_nothing_is_left(folder):
    plan = recipe(folder, num_train_epochs=3, gradient_accumulation_steps=2)
    first, second = estimate(plan, steps=3)
    assert not (folder / "unused").exists()
    assert (first.steps, second.steps) == (900, 15)  # 40 rows in batches of 4 x 2, three times
    assert (first.samples, second.samples) == (4, 8)
    assert first.tokens == 0
    assert 8 * 10 < second.tokens < second.padded
    # AdamW keeps two numbers for each that is trained, beside its count of steps.
    assert second.gradients == 4 * second.trained
    assert 8 * second.trained <= second.optimizer < 8.1 * second.trained
    assert second.peak > second.weights + second.gradients + second.optimizer
    assert second.hours == pytest.approx(15 * second.step / 3600)
    assert estimate(plan, steps=2, devices=4)[1].steps == 4  # of an epoch's steps each does a part
    assert estimate(plan, steps=2, devices=4)[0].steps == 900  # a number of steps stays what it is


def test_the_command_says_it_in_lines_or_json(folder, capsys):
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(recipe(folder)), encoding="utf-8")
    assert main(["estimate", str(path), "--steps", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines[:2]] == ["stage 1 (image)", "stage 2 (image)"]
    assert "tokens/s" in lines[1]
    assert "tokens/s" not in lines[0]
    assert main(["estimate", str(path), "--steps", "2", "--json", "stages.1.trainer.max_steps=7"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["stages"][1]["steps"] == 7
    assert report["hours"] == pytest.approx(sum(stage["hours"] for stage in report["stages"]))


def test_one_step_is_too_few(folder, capsys):
    assert main(["estimate", "stage2_image", "--steps", "1"]) == 1
    assert "expected at least 2 steps" in capsys.readouterr().err
