# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""The demo's X-LLM: its config, its processor, and the stand-ins put into it."""

from copy import deepcopy
from typing import Any

import torch
from transformers import Blip2QFormerConfig, ParakeetEncoderConfig
from transformers.models.blip_2.configuration_blip_2 import Blip2VisionConfig

from xllm.assembly.presets import build_processor
from xllm.demo.settings import DemoScale
from xllm.modeling_xllm.configuration_cformer import CFormerConfig
from xllm.modeling_xllm.configuration_chatglm import ChatGLMConfig
from xllm.modeling_xllm.configuration_xllm import X2LConfig, XLLMConfig, default_modalities
from xllm.modeling_xllm.modeling_xllm import XLLMForConditionalGeneration
from xllm.processing.feature_extraction_xllm import XLLMFeatureExtractor
from xllm.processing.processing_xllm import XLLMProcessor
from xllm.processing.tokenization_chatglm import ChatGLMTokenizer


_HEADS = 4
HIGHEST_HERTZ = 4000.0


def build_config(tokenizer: ChatGLMTokenizer, scale: DemoScale) -> XLLMConfig:
    """Sizes of the three towers and the three interfaces; the table of modalities is the paper's."""
    converter: dict[str, Any] = {"hidden_size": scale.converter_size, "num_attention_heads": _HEADS}
    converter |= {"intermediate_size": 2 * scale.converter_size}
    quiet: dict[str, Any] = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    # BERT's 0.02 is meant for a width of 768; here it would let a thirtieth of the encoder's signal through.
    quiet["initializer_range"] = scale.converter_size**-0.5
    rows = default_modalities()
    qformer = Blip2QFormerConfig(
        num_hidden_layers=scale.qformer_layers, cross_attention_frequency=1, **converter, **quiet
    )
    rows["image"] = X2LConfig(num_query_tokens=scale.num_query_tokens, converter_config=qformer)
    rows["video"].shares_converter_with = None  # the paper's drawing: a Q-Former of its own, started from the image's
    rows["video"].qformer_config = deepcopy(qformer)
    rows["video"].num_query_tokens = scale.num_query_tokens
    rows["video"].num_frames = scale.num_frames
    rows["speech"].adapter_activation = None
    rows["speech"].cformer_config = CFormerConfig(
        cif_hidden_size=scale.speech_size,
        cif_dropout=0.0,
        num_hidden_layers=scale.cformer_layers,
        max_position_embeddings=256,
        **converter,
        **quiet,
    )
    config = XLLMConfig(
        text_config=language_config(tokenizer, scale),
        initializer_range=scale.converter_size**-0.5,
        vision_config=Blip2VisionConfig(
            hidden_size=scale.vision_size,
            intermediate_size=3 * scale.vision_size,
            num_hidden_layers=scale.vision_layers,
            num_attention_heads=_HEADS,
            image_size=scale.image_pixels,
            patch_size=scale.patch_pixels,
            initializer_range=0.02,
        ),
        audio_config=ParakeetEncoderConfig(
            hidden_size=scale.speech_size,
            intermediate_size=4 * scale.speech_size,
            num_hidden_layers=scale.speech_layers,
            num_attention_heads=_HEADS,
            subsampling_conv_channels=24,
            conv_kernel_size=5,
            max_position_embeddings=1000,
            dropout=0.0,
            layerdrop=0.0,
            activation_dropout=0.0,
            attention_dropout=0.0,
        ),
        modalities=rows,
    )
    config.set_token_ids(
        image=tokenizer.image_token_id, video=tokenizer.video_token_id, speech=tokenizer.audio_token_id
    )
    return config


def language_config(tokenizer: ChatGLMTokenizer, scale: DemoScale) -> ChatGLMConfig:
    """A small ChatGLM for the corpus. Slow rotary frequencies are of no use in texts of fifty tokens."""
    return ChatGLMConfig(
        vocab_size=-(-len(tokenizer) // 64) * 64,
        hidden_size=scale.language_size,
        intermediate_size=4 * scale.language_size,
        num_hidden_layers=scale.language_layers,
        num_attention_heads=_HEADS,
        max_position_embeddings=512,
        residual_scale=(2 * scale.language_layers) ** 0.5,
        rope_theta=30.0,
        mask_token_id=tokenizer.mask_token_id,
        gmask_token_id=tokenizer.gmask_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def build_model_processor(config: XLLMConfig, tokenizer: ChatGLMTokenizer) -> XLLMProcessor:
    """The processor that fits `config`; its mel bins end where telephones and many old recordings do."""
    vision: Any = config.vision_config
    processor = build_processor(config, tokenizer, vision.image_size)
    # Normalised per bin, bins without any sound would be loud noise.
    processor.feature_extractor = XLLMFeatureExtractor(max_frequency=HIGHEST_HERTZ)
    return processor


@torch.no_grad()
def compose(
    config: XLLMConfig,
    language: dict[str, torch.Tensor],
    vision: dict[str, torch.Tensor],
    speech: dict[str, torch.Tensor],
) -> XLLMForConditionalGeneration:
    """A model with the stand-ins' weights and fresh interfaces.

    Args:
        language, vision, speech: state dicts of `ChatGLMForConditionalGeneration`, `Blip2VisionModel`,
            `ParakeetEncoder`.
    """
    model = XLLMForConditionalGeneration(config).eval()
    model.model.vision_tower.load_state_dict(vision)
    model.model.audio_tower.load_state_dict(speech)
    prefix = "transformer."
    body = {name.removeprefix(prefix): value for name, value in language.items() if name.startswith(prefix)}
    model.model.language_model.load_state_dict(body)
    model.lm_head.weight.copy_(language["lm_head.weight"])
    return model
