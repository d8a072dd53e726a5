# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""What an interface makes of a picture, without the language model: `python examples/... [MODEL]`.

`XLLMEncoderModel` opens the towers and interfaces of any checkpoint; the language model is neither read nor needed.
"""

import sys
import tempfile

import torch
from PIL import Image

from xllm import XLLMEncoderModel, XLLMProcessor
from xllm.assembly.tiny import build_tiny


folder = sys.argv[1] if len(sys.argv) > 1 else build_tiny(tempfile.mkdtemp())
model = XLLMEncoderModel.from_pretrained(folder).eval()
processor = XLLMProcessor.from_pretrained(folder)

pictures = [Image.new("RGB", (64, 64), color) for color in ("red", "darkred", "blue")]
pixels = processor.image_processor(pictures, return_tensors="pt")["pixel_values"]
with torch.no_grad():
    tokens = model.get_features("image", pixels).embeddings  # (3 pictures, query tokens, width of the language model)
vectors = torch.nn.functional.normalize(tokens.flatten(1), dim=-1)
print("tokens", tuple(tokens.shape))
print("cosine of red with darkred and blue", [round(value, 3) for value in (vectors[1:] @ vectors[0]).tolist()])
