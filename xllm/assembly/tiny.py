# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Small models with random weights around a ChatGLM: `--preset tiny`, and what demo and recipes' `init:` build."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from transformers import ParakeetEncoderConfig
from transformers.models.blip_2.configuration_blip_2 import Blip2VisionConfig

from xllm.assembly.composing import added_rows, sized_modalities, transformer_sizes
from xllm.assembly.processors import add_tokens, build_processor, save
from xllm.assembly.tiny_tokenizer import train_sentencepiece
from xllm.modeling_xllm.configuration_xllm import X2LConfig, XLLMConfig, default_modalities
from xllm.modeling_xllm.modeling_xllm import XLLMForConditionalGeneration
from xllm.processing.tokenization_chatglm import ChatGLMTokenizer


PIXELS = 32
SENTENCES = ("What is this?", "What do you see and hear?", "这是什么？", "请识别该语音", "图片里有什么")


def build_tiny(output_dir: str | Path, kinds: Iterable[str] = ()) -> Path:
    """A tiny ChatGLM with tiny towers and interfaces, all weights random: every command runs on it in seconds.

    Its vocabulary is that of a few sentences; it knows nothing until it is trained. It has the paper's rows, and one
    for each of `kinds`.
    """
    rows, output_dir = added_rows(kinds), Path(output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    sentences = [*SENTENCES, " ".join("0123456789"), *map(chr, range(33, 127))]
    tokenizer = ChatGLMTokenizer(str(train_sentencepiece(sentences, output_dir, vocab_size=256, byte_fallback=True)))
    config = tiny_config(tokenizer, rows)
    save(XLLMForConditionalGeneration(config), build_processor(config, tokenizer, PIXELS), output_dir)
    return output_dir


def tiny_config(tokenizer: ChatGLMTokenizer, added: dict[str, X2LConfig] | None = None) -> XLLMConfig:
    """Sizes of the tiny preset, with the ids of `tokenizer`, which gets placeholders for the rows that are added."""
    sizes: dict[str, Any] = {**transformer_sizes(64, 2), "intermediate_size": 128}
    rows = sized_modalities(sizes)
    for row in rows.values():
        if row.tokens_per_item is not None:
            row.num_query_tokens = 4
        if hasattr(row.converter_config, "cif_hidden_size"):
            row.converter_config.cif_hidden_size = 64
    return small_config(
        tokenizer,
        text={"max_position_embeddings": 1024, **sizes},
        rows={**rows, **(added or {})},
        vision_config=Blip2VisionConfig(image_size=PIXELS, patch_size=8, initializer_range=0.02, **sizes),
        audio_config=ParakeetEncoderConfig(subsampling_conv_channels=32, layerdrop=0.0, **sizes),
    )


def small_config(
    tokenizer: ChatGLMTokenizer, text: dict[str, Any], rows: dict[str, Any], multiple: int = 64, **fields: Any
) -> XLLMConfig:
    """The config of a small model around a ChatGLM that reads `tokenizer`: sizes are given, ids are filled in.

    Args:
        text: sizes of the language model; its vocabulary is rounded up to a `multiple`.
        rows: see `sized_rows`.
        fields: of `XLLMConfig`, the towers' configs among them.
    """
    ids = {
        f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("mask", "gmask", "bos", "eos", "pad")
    }
    table = sized_rows(rows)
    added = len(table.keys() - default_modalities().keys())  # rows whose placeholders the tokenizer still lacks
    size = -(-(len(tokenizer) + added) // multiple) * multiple
    config = XLLMConfig(
        text_config={"model_type": "chatglm", "vocab_size": size, **ids, **text}, modalities=table, **fields
    )
    add_tokens(config, tokenizer)
    return config


def sized_rows(rows: dict[str, Any]) -> dict[str, X2LConfig]:
    """A table of modalities: the paper's rows, given by the fields that differ (sizes, say), and whole rows."""
    paper = {name: {**row.to_dict(), "converter_config": None} for name, row in default_modalities().items()}
    return {
        name: row if isinstance(row, X2LConfig) else X2LConfig(**{**paper.get(name, {}), **row})
        for name, row in rows.items()
    }


__all__ = ["build_tiny", "sized_rows", "small_config", "tiny_config"]
