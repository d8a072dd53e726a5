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

from xllm.assembly.processors import build_processor
from xllm.assembly.tiny import small_config, train_sentencepiece
from xllm.modeling_xllm.configuration_xllm import XLLMConfig, default_modalities
from xllm.modeling_xllm.modeling_xllm import XLLMForConditionalGeneration
from xllm.processing.feature_extraction_xllm import XLLMFeatureExtractor
from xllm.processing.tokenization_chatglm import ChatGLMTokenizer
from xllm.training.recipes.strict import RecipeError, build, nearest


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
    """Fields of `XLLMConfig`; without `modalities`, the paper's rows at the published sizes."""
    known = default_modalities()
    rows = fields.get("modalities") or {name: {} for name in known}
    for name in rows.keys() - known.keys():
        raise ValueError(f"config.modalities: {name!r} is no row of the paper{nearest(name, known)}")
    others = {name: value for name, value in fields.items() if name not in ("text_config", "modalities")}
    return small_config(tokenizer, fields.get("text_config", {}), rows, multiple=8, **others)


__all__ = ["InitSpec", "build_standin"]
