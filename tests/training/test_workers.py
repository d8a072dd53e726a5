# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Processes that decode media: how many where the recipe is silent, and the same run whatever their number."""

import pytest
import torch

from xllm import XLLMForConditionalGeneration
from xllm.training import preparing
from xllm.training.preparing import prepare, training_arguments
from xllm.training.recipes.recipe import StageSpec
from xllm.training.recipes.strict import build
from xllm.training.train import train
from xllm.training.trainers.trainer import XLLMTrainer


QUICK = {"max_steps": 6, "per_device_train_batch_size": 2, "logging_steps": 1, "learning_rate": 1e-2}


@pytest.fixture
def prepared(tiny, media, monkeypatch):
    """A function that gives the training arguments of a stage on `rows` recordings, on a machine of `cores` cores."""
    model, processor = tiny
    rows = [{"file": str(media / "low.wav"), "text": "low"}]

    def make(number=300, cores=4, data=None, trainer=None):
        monkeypatch.setattr(preparing.os, "sched_getaffinity", lambda _: range(cores), raising=False)
        source = {"train": {"dataset": rows * number}, **(data or {})}
        stage = {"stage": 2, "modalities": ["speech"], "data": source, "trainer": {**QUICK, **(trainer or {})}}
        found = training_arguments(prepare(model, processor, build(StageSpec, stage, "stage", ""), 0), "out", 0)
        names = ("num_workers", "persistent_workers", "prefetch_factor")
        return tuple(getattr(found, f"dataloader_{name}") for name in names)

    return make


def test_there_are_as_many_as_cores_less_one_and_none_for_what_is_in_memory(prepared, monkeypatch):
    assert prepared() == (3, True, 2)
    assert prepared(cores=64) == (8, True, 2)
    assert prepared(cores=1) == (0, False, None)
    assert prepared(number=2) == (0, False, None)
    assert prepared(data={"cache_media": True}) == (0, False, None)
    assert prepared(trainer={"dataloader_num_workers": 5}) == (5, True, 2)
    assert prepared(trainer={"dataloader_num_workers": 0}) == (0, False, None)
    assert prepared(trainer={"dataloader_persistent_workers": False, "dataloader_prefetch_factor": 4}) == (3, False, 4)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert prepared(cores=8) == (3, True, 2)


def test_a_run_is_the_same_with_and_without_them(tiny_checkpoint, media, tmp_path, monkeypatch):
    """Three epochs, with augmentation of sound and of features; the workers live through all of them."""
    (media / "four.csv").write_text("file,text\nlow.wav,low\nhigh.wav,high\nlow.wav,once more\nhigh.wav,again\n")
    batches = []
    step = XLLMTrainer.training_step

    def watched(self, model, inputs, *args, **kwargs):
        batches.append({name: value.clone() for name, value in inputs.items() if torch.is_tensor(value)})
        return step(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(XLLMTrainer, "training_step", watched)
    states = []
    for workers in (0, 2):
        recipe = {
            "model": str(tiny_checkpoint), "output_dir": str(tmp_path / str(workers)), "stage": 2,
            "modalities": ["speech"], "trainer": {**QUICK, "dataloader_num_workers": workers},
            "data": {
                "train": [{"path": str(media / "four.csv"), "prompts": ["say it", "write it"]}],
                "augment": ["speed", "spec_augment", "mix_voices"],
            },
        }  # fmt: skip
        folder = train(recipe, progress=False).checkpoint
        states.append(XLLMForConditionalGeneration.from_pretrained(folder).state_dict())
    alone, helped = batches[:6], batches[6:]
    for one, two in zip(alone, helped, strict=True):
        assert one.keys() == two.keys()
        assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(alone[0]["input_features"], alone[2]["input_features"])  # another epoch
    first, second = states
    assert all(torch.equal(first[name], second[name]) for name in first)
