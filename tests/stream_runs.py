# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""A short training run over a stream; as a script, one rank of several: stream_runs.py MODEL ROWS FOLDER STEPS."""

import json
import sys
from pathlib import Path

import torch
from transformers import TrainingArguments

from xllm.assembly.opening import load_checkpoint
from xllm.training.batches.collator import XLLMDataCollator
from xllm.training.recipes.recipe import SourceSpec
from xllm.training.stages import freeze_for_stage
from xllm.training.streams.stream_files import StreamSource
from xllm.training.streams.streaming import StreamingDataset
from xllm.training.trainers.trainer import XLLMTrainer


PLAIN = {"optim": "sgd", "learning_rate": 1e3}  # Adam would blow up the rounding of gradients as small as these


class Recording(XLLMTrainer):
    """Keeps what it trains on."""

    def training_step(self, model, inputs, *args):
        self.seen.append(inputs["input_ids"].tolist())
        return super().training_step(model, inputs, *args)


def trainer_of(checkpoint, rows, folder, steps, dropout=0.1, **settings):
    """A trainer of the image adapter on batches of two."""
    model, processor = load_checkpoint(str(checkpoint))
    freeze_for_stage(model, 3, ["image"])
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = dropout
    data = StreamingDataset([StreamSource(SourceSpec(path=str(rows)))], processor, shuffle_buffer=72)
    defaults = {"gradient_accumulation_steps": 2, "save_strategy": "no", "learning_rate": 1e-2}
    arguments = TrainingArguments(
        str(folder), per_device_train_batch_size=2, max_steps=steps, logging_steps=1, remove_unused_columns=False,
        label_names=["labels"], report_to="none", use_cpu=True, lr_scheduler_type="constant",
        ddp_find_unused_parameters=False, disable_tqdm=True, **{**defaults, **settings},
    )  # fmt: skip
    trainer = Recording(model, arguments, data_collator=XLLMDataCollator(processor), train_dataset=data)
    trainer.seen = []
    return trainer


def trained(model):
    """The tensors that a run moves."""
    return {name: value for name, value in model.state_dict().items() if "image.adapter" in name}


def main(checkpoint: str, rows: str, folder: str, steps: str) -> None:
    """Train without dropout, saving in the middle, and leave batches and weights in `folder`."""
    settings = {"gradient_accumulation_steps": 1, "save_strategy": "steps", "save_steps": int(steps) // 2, **PLAIN}
    trainer = trainer_of(checkpoint, rows, folder, int(steps), dropout=0.0, **settings)
    trainer.train()
    rank = trainer.args.process_index
    Path(folder, f"seen-{rank}.json").write_text(json.dumps(trainer.seen), encoding="utf-8")
    if rank == 0:
        moved = {"start": trained(load_checkpoint(checkpoint)[0]), "end": trained(trainer.model)}
        torch.save(moved, Path(folder, "trained.pt"))


if __name__ == "__main__":
    main(*sys.argv[1:])
