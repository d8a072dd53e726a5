# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Stage 2 of the image interface with transformers' own Trainer: `python examples/... [MODEL]`.

`xllm train stage2_image` does the same from a recipe. Here: freeze, give the Trainer the collator, train.
"""

import sys
import tempfile

from PIL import Image
from transformers import Trainer, TrainingArguments

from xllm import XLLMDataCollator, XLLMForConditionalGeneration, XLLMProcessor, freeze_for_stage
from xllm.assembly.tiny import build_tiny


folder = sys.argv[1] if len(sys.argv) > 1 else build_tiny(tempfile.mkdtemp())
model = XLLMForConditionalGeneration.from_pretrained(folder)
processor = XLLMProcessor.from_pretrained(folder)

rows = []
for color in ("red", "green", "blue"):
    question = [
        {"type": "image", "image": Image.new("RGB", (64, 64), color)},
        {"type": "text", "text": "What is this?"},
    ]
    answer = [{"type": "text", "text": color}]
    rows.append({"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]})

trained = freeze_for_stage(model, 2, ["image"])  # everything else is frozen
before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
arguments = TrainingArguments(
    tempfile.mkdtemp(), max_steps=5, per_device_train_batch_size=3, learning_rate=1e-3, logging_steps=1,
    remove_unused_columns=False, report_to="none", save_strategy="no", disable_tqdm=True, use_cpu=True,
)  # fmt: skip
trainer = Trainer(model, arguments, train_dataset=rows, data_collator=XLLMDataCollator(processor))
trainer.train()
moved = [name for name, tensor in model.state_dict().items() if not tensor.equal(before[name])]
print(f"{len(trained)} tensors were to be trained; {len(moved)} have moved, {len(set(moved) - set(trained))} others")
