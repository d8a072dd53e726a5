# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""A new X-LLM from a language model and a vision tower: `python examples/... [LANGUAGE_MODEL [VISION_TOWER]]`.

Arguments are folders or Hub ids; without them, two tiny towers with random weights are made. The checkpoint names its
towers and stores the interfaces only. `xllm init DIR --language-model ID --encoder vision=ID` adds a processor.
"""

import sys
import tempfile

from transformers import Blip2VisionConfig, Blip2VisionModel, LlamaConfig, LlamaForCausalLM

from xllm import X2LConfig, XLLMForConditionalGeneration


def tiny_towers() -> tuple[str, str]:
    """Folders of a Llama and of a ViT."""
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    folders = tempfile.mkdtemp(), tempfile.mkdtemp()
    LlamaForCausalLM(LlamaConfig(vocab_size=128, **sizes)).save_pretrained(folders[0])
    Blip2VisionModel(Blip2VisionConfig(image_size=28, patch_size=14, **sizes)).save_pretrained(folders[1])
    return folders


language_model, vision_tower = sys.argv[1:3] if len(sys.argv) > 2 else tiny_towers()
image = X2LConfig(converter="linear", token_id=127)  # one token per patch; "qformer" gives a fixed number of them
model = XLLMForConditionalGeneration.from_towers(
    language_model=language_model, encoders={"vision": vision_tower}, modalities={"image": image}
)
model.save_pretrained(folder := tempfile.mkdtemp())
again = XLLMForConditionalGeneration.from_pretrained(folder)
trained = sum(parameter.numel() for parameter in again.model.interfaces.parameters())
print(f"{again.num_parameters():,} parameters, {trained:,} in the interface; towers {sorted(again.config.towers)}")
