# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""One step of stage 2 without a recipe, for tests of many models."""

import torch

from xllm import freeze_for_stage
from xllm.assembly.opening import load_checkpoint
from xllm.training.batches.collator import XLLMDataCollator, chat_settings


def one_step(folder, row: str, samples: list[dict], output):
    """Opens the model in `folder`, trains the interface `row` on the samples and saves it; opened again, with its
    processor and the batch it learnt from."""
    model, processor = load_checkpoint(str(folder))
    batch = XLLMDataCollator(processor, **chat_settings(model.config, model.generation_config))(samples)
    trained = freeze_for_stage(model, 2, [row])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.enable_grad():
        model.train()(**batch).loss.backward()
        torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1).step()
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved
    assert moved <= set(trained)
    assert all(f"interfaces.{row}." in name for name in moved)
    model.save_pretrained(output)
    processor.save_pretrained(output)
    return *load_checkpoint(str(output)), batch
