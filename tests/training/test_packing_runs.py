# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""`data.packing`: a run over mixed data computes next to no padding, and learns what it learns without."""

import functools
import json

import pytest

from xllm.modeling_xllm.modeling_chatglm import ChatGLMModel
from xllm.training.train import check, train


def recipe(checkpoint, media, output, stage=3, **data):
    (media / "packed_image.csv").write_text("file,text\nred.png,red\nblue.png,this is the colour blue\n")
    (media / "packed_speech.csv").write_text("file,text\nlow.wav,low\nhigh.wav,this is high\n")
    sources = [{"path": str(media / f"packed_{name}.csv"), "modality": name} for name in ("image", "speech")]
    trainer = {"max_steps": 2, "per_device_train_batch_size": 4, "logging_steps": 1, "use_cpu": True}
    common = {"model": str(checkpoint), "output_dir": str(output), "report_samples": 0, "trainer": trainer}
    return {**common, "stage": stage, "modalities": ["image", "speech"], "data": {"train": sources, **data}}


def test_a_run_that_is_packed(tiny_checkpoint, media, tmp_path, monkeypatch):
    original, positions, losses = ChatGLMModel.forward, {}, {}
    for name, packing in (("apart", False), ("packed", True), ("unsaid", None)):
        positions[name] = 0

        @functools.wraps(original)
        def forward(self, *args, name=name, **kwargs):
            positions[name] += kwargs["inputs_embeds"].shape[:2].numel()
            return original(self, *args, **kwargs)

        monkeypatch.setattr(ChatGLMModel, "forward", forward)
        stage = train(recipe(tiny_checkpoint, media, tmp_path / name, packing=packing), progress=False).stages[0]
        log = [json.loads(line) for line in (stage.folder / "log.jsonl").open()]
        losses[name] = [entry["loss"] for entry in log if "loss" in entry]
    assert losses["packed"] == pytest.approx(losses["apart"], rel=1e-4)
    assert losses["unsaid"] == losses["packed"]
    assert len(losses["packed"]) == 2
    assert positions["unsaid"] == positions["packed"] < 0.9 * positions["apart"]


def test_stage_one_has_no_rows_to_pack(tiny_checkpoint, media, tmp_path):
    asked = recipe(tiny_checkpoint, media, tmp_path / "run", stage=1, packing=True)
    with pytest.raises(ValueError, match=r"data\.packing is about rows of the language model; stage 1 has none"):
        check(asked)
    assert list(tmp_path.iterdir()) == []
