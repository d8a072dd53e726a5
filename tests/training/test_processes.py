# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Which modalities a parameter belongs to, and what steps leave alone; see test_two_processes.py for real ones."""

import torch
from tiny import tiny_model
from torch.utils.data import DataLoader
from transformers import TrainingArguments

from xllm import freeze_for_stage
from xllm.training.data.dataset import ChatDataset
from xllm.training.data.samples import Sample
from xllm.training.trainers.processes import first_alone, users_of_parameters
from xllm.training.trainers.trainer import XLLMTrainer


def make_trainer(model, folder) -> XLLMTrainer:
    arguments = TrainingArguments(folder, report_to="none", use_cpu=True, weight_decay=0.5, learning_rate=0.1)
    return XLLMTrainer(model, arguments, train_dataset=[])


def test_users_of_parameters():
    model = tiny_model()
    freeze_for_stage(model, 2)
    model.model.vision_tower.requires_grad_(True)
    users = users_of_parameters(model)
    start = "model.interfaces.image.converter."
    assert users[f"{start}query_tokens"] == ("image",)  # video has its own, and the Q-Former of image
    assert users[f"{start}qformer.layernorm.weight"] == ("image", "video")
    assert users["model.interfaces.video.adapter.weight"] == ("video",)
    assert users["model.vision_tower.embeddings.class_embedding"] == ("image", "video")
    assert users.keys() == {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_what_no_process_used_is_not_moved(tmp_path):
    """Gradients of zero, as from an empty item: weight decay and moments would move it."""
    model = tiny_model()
    freeze_for_stage(model, 2)
    trainer = make_trainer(model, tmp_path)
    optimizer = trainer.create_optimizer()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    trainer._used = torch.tensor([0.0, 0.0, 1.0])  # image, speech, video
    optimizer.step()
    moved = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    decayed = {name for name in before if name.startswith(("model.interfaces.video.", "model.interfaces.image.conv"))}
    assert {"model.interfaces.video.adapter.weight", "model.interfaces.video.converter.query_tokens"} <= moved
    assert moved <= decayed - {"model.interfaces.image.converter.query_tokens"}
    assert len(moved) > 10


def test_batches_are_not_dealt_out(tmp_path):
    assert make_trainer(tiny_model(), tmp_path).accelerator.dispatch_batches is False


def test_the_first_process_is_alone_without_others():
    with first_alone() as is_first:
        assert is_first


def test_the_epoch_reaches_workers_that_live_on(tiny_processor):
    samples = [Sample(where=str(index), prompts=["a", "b", "c", "d"], answers=["x", "y", "z"]) for index in range(8)]
    data = ChatDataset([samples], tiny_processor, weights=[0.5])
    loader = DataLoader(data, batch_size=None, num_workers=2, persistent_workers=True)
    epochs = []
    for epoch in range(3):
        data.set_epoch(epoch)
        epochs.append([(item["where"], item["messages"]) for item in loader])
    assert epochs[0] != epochs[1] != epochs[2]
    data.set_epoch(1)
    assert [(data[index]["where"], data[index]["messages"]) for index in range(len(data))] == epochs[1]
