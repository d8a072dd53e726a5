# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""A small model with random weights from a recipe's `init:`, to stand in for published towers and LLM.

```yaml
init:
  sentences: ["repeat: one two"]        # the tokenizer's words, one token each
  config:                               # fields of XLLMConfig; sizes only, ids are filled in
    text_config: {hidden_size: 64, num_hidden_layers: 2, num_attention_heads: 4, intermediate_size: 128}
    audio_config: {hidden_size: 96, num_hidden_layers: 2, ...}
    modalities: {speech: {subsampling_factor: 4, cformer_config: {...}}}     # on top of the paper's rows
  feature_extractor: {max_frequency: 4000.0}
```

It knows nothing until it is trained: stage 0 teaches the language model on text, stage 1 encoder and interface.
"""

import tempfile
from dataclasses import dataclass, field
from inspect import signature
from typing import Any

from xllm.assembly.presets import build_processor
from xllm.assembly.tiny_tokenizer import train_sentencepiece
from xllm.modeling_xllm.configuration_xllm import X2LConfig, XLLMConfig, default_modalities
from xllm.modeling_xllm.modeling_xllm import XLLMForConditionalGeneration
from xllm.processing.feature_extraction_xllm import XLLMFeatureExtractor
from xllm.processing.tokenization_chatglm import ChatGLMTokenizer
from xllm.training.strict import RecipeError, build, nearest


SPECIAL_IDS = ("mask_token_id", "gmask_token_id", "bos_token_id", "eos_token_id", "pad_token_id")


@dataclass(kw_only=True)
class InitSpec:
    """See the module's first lines."""

    sentences: list[str]
    config: dict
    feature_extractor: dict = field(default_factory=dict)


def build_standin(spec: dict[str, Any], source: str = "recipe"):
    """Model and processor of a recipe's `init:`.

    Raises:
        RecipeError: an unknown key, or sizes that the configs refuse.
    """
    wanted = build(InitSpec, spec, source, "init.")
    with tempfile.TemporaryDirectory() as folder:
        path = train_sentencepiece(wanted.sentences, folder, word_level=True, max_blank_length=0)
        tokenizer = ChatGLMTokenizer(str(path))
    try:
        config = _build_config(wanted.config, tokenizer)
        model = XLLMForConditionalGeneration(config).eval()
        image_size = config.vision_config.image_size
        processor = build_processor(config, tokenizer, image_size)
        if wanted.feature_extractor:
            known = signature(XLLMFeatureExtractor).parameters
            for key in wanted.feature_extractor:
                if key not in known or key == "kwargs":
                    raise ValueError(f"feature_extractor has no {key!r}{nearest(key, set(known) - {'kwargs'})}")
            processor.feature_extractor = XLLMFeatureExtractor(**wanted.feature_extractor)
    except (TypeError, ValueError) as error:
        raise RecipeError(f"{source}: init: {error}") from error
    return model, processor


def _build_config(fields: dict[str, Any], tokenizer: ChatGLMTokenizer) -> XLLMConfig:
    fields = dict(fields)
    defaults = default_modalities()
    rows = {}
    for name, row in fields.pop("modalities", {}).items():
        if name not in defaults:
            raise ValueError(f"config.modalities: {name!r} is no row of the paper{nearest(name, defaults)}")
        given = {key: value for key, value in defaults[name].to_dict().items() if key in PAPER_FIELDS}
        rows[name] = X2LConfig(**{**given, **row})
    ids = {name: getattr(tokenizer, name) for name in SPECIAL_IDS}
    text = {"model_type": "chatglm", "vocab_size": -(-len(tokenizer) // 8) * 8, **ids, **fields.pop("text_config", {})}
    config = XLLMConfig(text_config=text, modalities=rows or None, **fields)
    tokens = {"image": tokenizer.image_token_id, "video": tokenizer.video_token_id, "speech": tokenizer.audio_token_id}
    config.set_token_ids(**{name: token for name, token in tokens.items() if name in config.modalities})
    return config


# What a row of the paper has apart from its sizes.
PAPER_FIELDS = (
    "encoder",
    "input_name",
    "mask_name",
    "converter",
    "shares_converter_with",
    "placeholder_token",
    "num_frames",
    "subsampling_factor",
    "adapter_activation",
)


__all__ = ["InitSpec", "build_standin"]
