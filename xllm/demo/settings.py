# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""How large the demo is: sizes of the stand-ins, media and steps; and its X-LLM's config and processor."""

from dataclasses import dataclass
from typing import Any

from transformers import ParakeetEncoderConfig
from transformers.models.blip_2.configuration_blip_2 import Blip2VisionConfig

from xllm.assembly.processors import build_processor
from xllm.assembly.tiny import small_config
from xllm.modeling_xllm.configuration_xllm import XLLMConfig
from xllm.processing.feature_extraction_xllm import XLLMFeatureExtractor
from xllm.processing.processing_xllm import XLLMProcessor
from xllm.processing.tokenization_chatglm import ChatGLMTokenizer


# Mel bins end where telephones and many old recordings do: normalised, bins without any sound would be loud noise.
# More than 40 below it show the harmonics of a voice: who speaks instead of what is said.
NUM_MEL_BINS = 40
HIGHEST_HERTZ = 4000.0


@dataclass(frozen=True)
class Optimisation:
    """One training: optimiser steps, samples of each, and the peak of AdamW's learning rate.

    Args:
        muon_rate (`float`): Muon's rate for the matrices, relative to `learning_rate`.
        converter_rate (`float`): of a converter that an earlier stage has trained, relative to its adapter's.
    """

    steps: int
    batch_size: int
    learning_rate: float
    muon_rate: float = 20.0
    converter_rate: float = 1.0


@dataclass(frozen=True)
class DemoScale:
    """Sizes of the demo; `DemoScale()` is what `xllm demo` runs."""

    # What the image encoder reads.
    image_pixels: int = 24
    patch_pixels: int = 4
    # Widths and depths of the towers and converters.
    vision_size: int = 64
    speech_size: int = 96
    language_size: int = 128
    converter_size: int = 96
    vision_layers: int = 3
    speech_layers: int = 3
    language_layers: int = 3
    qformer_layers: int = 2
    cformer_layers: int = 1
    num_query_tokens: int = 4  # embeddings per image and per frame
    num_frames: int = 4  # of a video
    # Training media of each kind, image + speech pairs, test questions of each task.
    num_images: int = 4000
    num_videos: int = 1500
    num_recordings: int = 6400
    num_pairs: int = 2000
    num_tests: int = 200
    # What only the test shows and lets speak: a share of the scans, groups of voices.
    test_fraction: float = 0.2
    num_test_voices: int = 12
    # Pretraining of the stand-ins, then the stages.
    vision: Optimisation = Optimisation(2200, 64, 2e-3, muon_rate=10.0)
    speech: Optimisation = Optimisation(1500, 40, 1e-3)
    language: Optimisation = Optimisation(1000, 64, 1e-3)
    image_convert: Optimisation = Optimisation(160, 64, 1e-3)
    speech_convert: Optimisation = Optimisation(300, 32, 1e-3)
    image_align: Optimisation = Optimisation(320, 64, 1e-3, converter_rate=0.2)
    video_align: Optimisation = Optimisation(340, 32, 1e-3, converter_rate=0.5)
    # The converter meets training voices only, and unlearns others where it moves fast.
    speech_align: Optimisation = Optimisation(380, 32, 2e-3, converter_rate=0.01)
    integrate: Optimisation = Optimisation(150, 64, 1e-3)


def transformer(width: int, layers: int, expansion: int) -> dict[str, Any]:
    """Fields of a transformer's config; the feed-forward part is `expansion` times as wide."""
    named = {"hidden_size": width, "intermediate_size": expansion * width, "num_hidden_layers": layers}
    return {**named, "num_attention_heads": 4}


def build_config(tokenizer: ChatGLMTokenizer, scale: DemoScale) -> XLLMConfig:
    """Sizes of the three towers and the three interfaces; the table of modalities is the paper's."""
    qformer = {
        **transformer(scale.converter_size, scale.qformer_layers, 2),
        "cross_attention_frequency": 1,
        **_converter(scale),
    }
    pictures = {"num_query_tokens": scale.num_query_tokens, "qformer_config": qformer}
    return small_config(
        tokenizer,
        text={
            **transformer(scale.language_size, scale.language_layers, 2),
            "max_position_embeddings": 512,
            "residual_scale": (2 * scale.language_layers) ** 0.5,
            "rope_theta": 30.0,  # slow rotary frequencies are of no use in texts of fifty tokens
        },
        rows={
            "image": pictures,
            # The paper's drawing: a Q-Former of its own, started from the image's.
            "video": {**pictures, "num_frames": scale.num_frames, "shares_converter_with": None},
            "speech": speech_row(scale),
        },
        initializer_range=scale.converter_size**-0.5,
        vision_config=vision_config(scale),
        audio_config=speech_config(scale),
    )


def speech_row(scale: DemoScale) -> dict[str, Any]:
    """What the row of speech has of its own."""
    cformer = {
        **transformer(scale.converter_size, scale.cformer_layers, 2),
        "max_position_embeddings": 256,
        **_converter(scale),
    }
    cformer |= {"cif_hidden_size": scale.speech_size, "cif_dropout": 0.0}
    return {"cformer_config": cformer, "adapter_activation": None}


def _converter(scale: DemoScale) -> dict[str, float]:
    # BERT's 0.02 is meant for a width of 768; here it would let a thirtieth of the encoder's signal through.
    return {
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "initializer_range": scale.converter_size**-0.5,
    }


def vision_config(scale: DemoScale) -> Blip2VisionConfig:
    """A small ViT."""
    sizes = transformer(scale.vision_size, scale.vision_layers, 3)
    patches: dict[str, Any] = {"image_size": scale.image_pixels, "patch_size": scale.patch_pixels}
    return Blip2VisionConfig(**sizes, **patches, initializer_range=0.02)


def speech_config(scale: DemoScale) -> ParakeetEncoderConfig:
    """A small Conformer."""
    return ParakeetEncoderConfig(
        **transformer(scale.speech_size, scale.speech_layers, 4),
        num_mel_bins=NUM_MEL_BINS,
        subsampling_conv_channels=16,
        conv_kernel_size=5,
        max_position_embeddings=1000,
        dropout=0.0,
        layerdrop=0.0,
        activation_dropout=0.0,
        attention_dropout=0.0,
    )


def build_model_processor(config: XLLMConfig, tokenizer: ChatGLMTokenizer, scale: DemoScale) -> XLLMProcessor:
    """The processor that fits `config`."""
    processor = build_processor(config, tokenizer, scale.image_pixels)
    processor.feature_extractor = feature_extractor()
    return processor


def feature_extractor() -> XLLMFeatureExtractor:
    """What the speech encoder is trained on, and reads."""
    return XLLMFeatureExtractor(feature_size=NUM_MEL_BINS, max_frequency=HIGHEST_HERTZ)
