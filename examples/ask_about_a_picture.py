# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Ask about a picture: `python examples/ask_about_a_picture.py [MODEL [PICTURE]]`.

Without a model, a tiny one with random weights is made: it answers, but knows nothing.
"""

import sys
import tempfile

from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

import xllm  # noqa: F401 (the Auto classes know X-LLM from here on)
from xllm.assembly.tiny import build_tiny


model_folder = sys.argv[1] if len(sys.argv) > 1 else build_tiny(tempfile.mkdtemp())
picture = Image.open(sys.argv[2]) if len(sys.argv) > 2 else Image.new("RGB", (64, 48), "red")

model = AutoModelForImageTextToText.from_pretrained(model_folder)
processor = AutoProcessor.from_pretrained(model_folder)
content = [{"type": "image", "image": picture}, {"type": "text", "text": "What is this?"}]
inputs = processor.apply_chat_template(
    [{"role": "user", "content": content}],
    tokenize=True,
    return_dict=True,
    add_generation_prompt=True,
    return_tensors="pt",
)
output = model.generate(**inputs, max_new_tokens=8, do_sample=False)
print(processor.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)[0])
