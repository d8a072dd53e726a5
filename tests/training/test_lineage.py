# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Where a checkpoint comes from, and that nothing frozen has moved."""

import json

import pytest
import torch
from transformers import TrainingArguments

from xllm import XLLMForConditionalGeneration
from xllm.training.data.sources import load_source
from xllm.training.recipes.recipe import SourceSpec
from xllm.training.saving.lineage import (
    RECEIPT_NAME,
    FreezeReceipt,
    FrozenTensorError,
    data_fingerprint,
    interfaces_fingerprint,
)
from xllm.training.stages import freeze_for_stage
from xllm.training.train import run_stage
from xllm.training.trainers.trainer import XLLMTrainer


def test_each_stage_says_where_it_comes_from(tiny, media, tmp_path):
    model, processor = tiny
    rows = [{"file": str(media / f"{name}.png"), "text": name} for name in ("red", "blue")]
    trainer = {"max_steps": 1, "per_device_train_batch_size": 2, "learning_rate": 1e-2}
    trainer |= {"save_strategy": "steps", "save_steps": 1, "use_cpu": True}
    for number in (2, 3):
        stage = {"stage": number, "modalities": ["image"], "trainer": trainer}
        stage["data"] = {"train": {"dataset": rows, "modality": "image", "name": "colours"}}
        before = interfaces_fingerprint(model)
        run_stage(model, processor, stage, tmp_path / str(number), progress=False)
        assert model.config.lineage[-1]["parent"] == before != model.config.lineage[-1]["weights"]
    saved = XLLMForConditionalGeneration.from_pretrained(tmp_path / "3")
    first, second = saved.config.lineage
    assert (first["stage"], second["stage"]) == (2, 3)
    assert second["parent"] == first["weights"], "an unbroken chain"
    assert second["weights"] == interfaces_fingerprint(saved), "and its end is this checkpoint"
    assert second["data"]["names"] == ["colours"]
    assert second["data"]["samples"] == 2
    assert second["package"].startswith("xllm-transformers")

    for folder in (tmp_path / "3", tmp_path / "3" / "checkpoint-1"):
        receipt = json.loads((folder / RECEIPT_NAME).read_text())
        assert receipt["before"] == receipt["after"] == second["frozen"]["sha256"]
        assert len(receipt["tensors"]) == second["frozen"]["tensors"]
    freeze_for_stage(saved, 3, ["image"])
    assert FreezeReceipt(saved).before == receipt["tensors"], "anyone can check it"
    assert "model.language_model.word_embeddings.weight" in receipt["tensors"]


def test_a_checkpoint_is_not_saved_if_a_frozen_tensor_moved(tiny, tmp_path):
    model, _ = tiny
    freeze_for_stage(model, 3)
    trainer = XLLMTrainer(model=model, args=TrainingArguments(str(tmp_path), use_cpu=True, report_to="none"))
    trainer.receipt = FreezeReceipt(model)
    with torch.no_grad():
        model.model.interfaces["image"].adapter.weight.add_(1)  # trained: may move
    trainer.save_model(str(tmp_path / "good"))
    assert (tmp_path / "good" / RECEIPT_NAME).is_file()
    with torch.no_grad():
        model.lm_head.weight[0, 0] += 1
    with pytest.raises(FrozenTensorError, match=r"1 frozen tensors have moved, nothing was saved: lm_head\.weight;"):
        trainer.save_model(str(tmp_path / "bad"))
    assert not list(tmp_path.glob("bad/*"))


def test_the_data_s_fingerprint_is_of_its_content(tmp_path):
    found = []
    for folder, text in (("a", "one"), ("b", "one"), ("c", "two")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.wav").touch()
        (tmp_path / folder / "data.csv").write_text(f"file,text\nx.wav,{text}\n")
        spec = SourceSpec(path=str(tmp_path / folder / "data.csv"), modality="speech")
        found.append(data_fingerprint(load_source(spec)))
    assert found[0] == found[1], "wherever it lies"
    assert found[0]["sha256"] != found[2]["sha256"]
    assert found[0]["samples"] == 1
