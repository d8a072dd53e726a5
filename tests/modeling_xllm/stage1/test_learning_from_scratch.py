# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""A Q-Former that starts from random weights learns from a handful of pictures."""

import torch
from tiny import PIXELS, tiny_config
from torch.nn import functional as F

from xllm import X2LConfig
from xllm.modeling_xllm.stage1.configuration_qformer_pretraining import QFormerPreTrainingConfig
from xllm.modeling_xllm.stage1.heads import stage_one_config
from xllm.modeling_xllm.stage1.modeling_qformer_pretraining import XLLMForQFormerPreTraining
from xllm.modeling_xllm.stage1.qformer_objectives import max_similarity


PICTURES, WIDTH = 24, 64
SIZES = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}


def crops(pictures: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """One crop of each picture, (pictures, 3, PIXELS, PIXELS)."""
    most = pictures.shape[-1] - PIXELS + 1
    corners = torch.randint(most, (len(pictures), 2), generator=generator).tolist()
    return torch.stack([p[:, y : y + PIXELS, x : x + PIXELS] for p, (y, x) in zip(pictures, corners)])


def test_unseen_crops_are_found_by_their_captions_after_160_steps():
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    pictures = F.interpolate(torch.randn(PICTURES, 3, 4, 4, generator=generator), PIXELS + 8, mode="bicubic")
    captions = torch.randint(4, 40, (PICTURES, 6), generator=generator)
    captions[:, 0], captions[:, -1] = 1, 2
    row = X2LConfig(num_query_tokens=4, qformer_config=dict(SIZES))
    config = stage_one_config(
        tiny_config(rows={"image": row}), QFormerPreTrainingConfig, "image", text_vocab_size=40, text_pad_token_id=0,
        text_bos_token_id=3, text_eos_token_id=2, text_max_positions=8, max_text_length=8, projection_size=32,
    )  # fmt: skip
    model = XLLMForQFormerPreTraining(config).train()
    model.model.vision_tower.requires_grad_(False)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3)
    for _ in range(160):
        loss = model(input_ids=captions, pixel_values=crops(pictures, generator)).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
    model.eval()
    with torch.no_grad():
        media = model.query_media(pixel_values=crops(pictures, generator))
        similarities = max_similarity(model.embed_media(media), model.embed_text(captions))
    found = (similarities.argmax(1) == torch.arange(PICTURES)).float().mean()
    assert found >= 0.6  # chance is 0.04
