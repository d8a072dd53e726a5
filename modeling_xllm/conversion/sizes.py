# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Sizes of the models inside published `.pth` files, which bring no config: read off the shapes of their tensors.

Heads leave no trace in a shape. Their widths are the published ones: 88 in EVA-CLIP ViT-g, 64 in everything BERT-like.
"""

import math
import re
from typing import Any

import torch
from transformers import Blip2QFormerConfig
from transformers.models.blip_2.configuration_blip_2 import Blip2VisionConfig

from xllm.modeling_xllm.configuration_cformer import CFormerConfig
from xllm.modeling_xllm.configuration_chatglm import ChatGLMConfig
from xllm.modeling_xllm.configuration_xllm import X2LConfig, XLLMConfig, default_modalities
from xllm.modeling_xllm.conversion.pth_files import ConversionError
from xllm.modeling_xllm.stage1.configuration_qformer_pretraining import QFormerPreTrainingConfig


EVA_HEAD_SIZE, BERT_HEAD_SIZE = 88, 64
QFORMER_LAYER = r"Qformer\.bert\.encoder\.layer\.(\d+)\."


class Shapes:
    """Shapes of tensors under their published names; asking for one that is not there is a `ConversionError`."""

    def __init__(self, tensors: dict[str, torch.Tensor], source: str):
        self.shapes, self.source = {name: tuple(tensor.shape) for name, tensor in tensors.items()}, source

    def __contains__(self, name: str) -> bool:
        return name in self.shapes

    def size(self, name: str, dim: int) -> int:
        """Size of dimension `dim` of tensor `name`."""
        if (shape := self.shapes.get(name)) is None:
            raise ConversionError(f"{self.source}: 1 or more tensors are missing, the first being {name}")
        if not -len(shape) <= dim < len(shape):
            raise ConversionError(f"{self.source}: {name} has shape {list(shape)}, expected more dimensions")
        return shape[dim]

    def count(self, pattern: str) -> int:
        """One more than the largest number at the group of `pattern`; 0 without a match."""
        return max((int(match[1]) + 1 for name in self.shapes if (match := re.match(pattern, name))), default=0)

    def heads(self, width: int, head_size: int) -> int:
        """Number of attention heads."""
        if width % head_size:
            raise ConversionError(f"{self.source}: width {width} is no multiple of the published {head_size} a head")
        return width // head_size


def vision_config(shapes: Shapes) -> Blip2VisionConfig:
    """Of an EVA-CLIP ViT, under the names "visual_encoder.*"."""
    width = shapes.size("visual_encoder.cls_token", -1)
    patch_size = shapes.size("visual_encoder.patch_embed.proj.weight", -1)
    return Blip2VisionConfig(
        hidden_size=width,
        num_attention_heads=shapes.heads(width, EVA_HEAD_SIZE),
        num_hidden_layers=shapes.count(r"visual_encoder\.blocks\.(\d+)\."),
        intermediate_size=shapes.size("visual_encoder.blocks.0.mlp.fc1.weight", 0),
        patch_size=patch_size,
        image_size=patch_size * math.isqrt(shapes.size("visual_encoder.pos_embed", 1) - 1),
        initializer_range=0.02,
    )


def _image_row(shapes: Shapes) -> X2LConfig:
    width, first = shapes.size("query_tokens", -1), "Qformer.bert.encoder.layer.0."
    sizes: dict[str, Any] = {
        "hidden_size": width,
        "num_hidden_layers": shapes.count(QFORMER_LAYER),
        "num_attention_heads": shapes.heads(width, BERT_HEAD_SIZE),
        "intermediate_size": shapes.size(first + "intermediate_query.dense.weight", 0),
        "encoder_hidden_size": shapes.size(first + "crossattention.self.key.weight", 1),
    }
    return X2LConfig(num_query_tokens=shapes.size("query_tokens", 1), qformer_config=Blip2QFormerConfig(**sizes))


def _speech_row(shapes: Shapes) -> X2LConfig:
    """Feature vectors of a CIF in, as the authors' code has it: no tower, no CIF."""
    if "speech_feat_proj.weight" in shapes:
        width = features = shapes.size("speech_feat_proj.weight", 1)
        sizes = {"transformer": "none"}
    else:
        width, features = (shapes.size("pre_bert_proj.weight", dim) for dim in (0, 1))
        bert = "speech_bert_adaptor."
        sizes = {
            "num_hidden_layers": shapes.count(r"speech_bert_adaptor\.encoder\.layer\.(\d+)\."),
            "num_attention_heads": shapes.heads(width, BERT_HEAD_SIZE),
            "intermediate_size": shapes.size(bert + "encoder.layer.0.intermediate.dense.weight", 0),
            "max_position_embeddings": shapes.size(bert + "embeddings.position_embeddings.weight", 0),
            "type_vocab_size": shapes.size(bert + "embeddings.token_type_embeddings.weight", 0),
        }
    row = default_modalities()["speech"]
    row.encoder, row.encoder_hidden_size, row.subsampling_factor, row.token_level = None, features, 1, True
    row.cformer_config = CFormerConfig(
        cif_predictor="none", encoder_hidden_size=features, cif_hidden_size=features, hidden_size=width, **sizes
    )
    return row


def published_rows(shapes: Shapes) -> dict[str, X2LConfig]:
    """Rows of the modality table whose own parts are there; "video" shares the Q-Former of "image", there or not."""
    rows = {}
    if shapes.count(QFORMER_LAYER):
        rows["image"] = _image_row(shapes)
    if "video_query_tokens" in shapes:
        rows["video"] = default_modalities()["video"]
        rows["video"].num_query_tokens = shapes.size("video_query_tokens", 1)
    if "pre_bert_proj.weight" in shapes or "speech_feat_proj.weight" in shapes:
        rows["speech"] = _speech_row(shapes)
    return rows


def config_of_shapes(shapes: Shapes) -> XLLMConfig:
    """Config of what a file holds, or several laid over each other; with text projections, of a stage-1 model. A
    tensor that the sizes are read from and that is missing is a `ConversionError`."""
    rows = published_rows(shapes)
    if "image" not in rows:
        rows.pop("video", None)
    # Of the language model, which is in none of these files, only the width.
    adapters = ("opt_proj.weight", "video_proj.weight", "post_bert_proj.weight", "speech_feat_proj.weight")
    width = next((shapes.size(name, 0) for name in adapters if name in shapes), ChatGLMConfig.hidden_size)
    text = ChatGLMConfig(hidden_size=width, num_attention_heads=max(1, width // 128))
    fields: dict[str, Any] = {"text_config": text, "modalities": rows}
    if "visual_encoder.cls_token" in shapes:
        fields["vision_config"] = vision_config(shapes)
    elif "image" in rows:
        fields["vision_config"] = Blip2VisionConfig(hidden_size=rows["image"].qformer_config.encoder_hidden_size)
    if "text_proj.weight" not in shapes or "image" not in rows:
        return XLLMConfig(**fields)
    vocabulary = shapes.size("Qformer.bert.embeddings.word_embeddings.weight", 0)
    return QFormerPreTrainingConfig(
        text_vocab_size=vocabulary,
        text_bos_token_id=vocabulary - 1,  # LAVIS appends [DEC] to bert-base-uncased
        text_max_positions=shapes.size("Qformer.bert.embeddings.position_embeddings.weight", 0),
        projection_size=shapes.size("text_proj.weight", 0),
        **fields,
    )
