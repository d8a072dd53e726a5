# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""How the interface of a row starts from a published model of another kind, a BLIP-2 or a BERT."""

import copy
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from transformers import PreTrainedConfig

from xllm.modeling_xllm.configuration_cformer import BERT_SIZES
from xllm.modeling_xllm.configuration_xllm import X2LConfig


@dataclass(frozen=True)
class PublishedSource:
    """Names are patterns, matched at the start.

    Args:
        take_sizes: sets a row's sizes to those of the published config, `take_sizes(row, config)`.
        names: start of a published tensor's name -> start of its name under `interfaces.<row>`.
        ignored: tensors that are not used here.
        fills: names under `interfaces.<row>` that it must provide, all of them.
    """

    take_sizes: Callable[[X2LConfig, PreTrainedConfig], None]
    names: dict[str, str]
    ignored: tuple[str, ...] = ()
    fills: str = r"converter\."

    def rename(self, key: str) -> str | None:
        """What the published tensor `key` is called here; `None` if it is not used, a `ValueError` if no such model
        has it."""
        if any(re.match(pattern, key) for pattern in self.ignored):
            return None
        for pattern, name in self.names.items():
            if found := re.match(pattern, key):
                return found.expand(name) + key[found.end() :]
        raise ValueError(f"{key} is not one of its tensors")


def _take_blip2_sizes(row: X2LConfig, published: PreTrainedConfig) -> None:
    if row.shares_converter_with is None:
        row.converter_config = copy.deepcopy(published.qformer_config)
        row.converter_config.use_qformer_text_input = False  # of a retrieval model; its text side belongs to stage 1
    row.num_query_tokens = published.num_query_tokens


def _take_bert_sizes(names: tuple[str, ...], row: X2LConfig, published: PreTrainedConfig) -> None:
    if row.shares_converter_with is not None:
        raise ValueError(f"the converter belongs to {row.shares_converter_with}: name the BERT there")
    for name in names:
        setattr(row.converter_config, name, getattr(published, name))


# Of each kind of converter, by the `model_type` of what it can start from.
SOURCES: dict[str, dict[str, PublishedSource]] = {
    "qformer": {
        # The retrieval model (Salesforce/blip2-itm-vit-g) also has a text side, but no language_projection.
        "blip-2": PublishedSource(
            _take_blip2_sizes,
            {
                r"qformer\.": "converter.qformer.",
                r"query_tokens": "converter.query_tokens",
                r"language_projection\.": "adapter.",
            },
            ignored=(
                r"(vision_model|language_model|embeddings|vision_projection|text_projection|itm_head)\.",
                r"qformer\.encoder\.layer\.\d+\.(intermediate|output)\.",
            ),
        ),
        # As for BLIP-2 itself: cross-attention and query tokens are new.
        "bert": PublishedSource(
            partial(_take_bert_sizes, (*BERT_SIZES[:5], "layer_norm_eps")),
            {
                r"embeddings\.LayerNorm\.": "converter.qformer.layernorm.",
                r"(encoder\.layer\.\d+\.attention\.)self\.": r"converter.qformer.\1attention.",
                r"(encoder\.layer\.\d+\.attention\.output\.)": r"converter.qformer.\1",
                r"(encoder\.layer\.\d+\.(?:intermediate|output))\.": r"converter.qformer.\1_query.",
            },
            ignored=(r"embeddings\.\w+_embeddings\.", r"pooler\."),
            fills=r"converter\.qformer\.(layernorm|encoder\.layer\.\d+\.(attention|intermediate_query|output_query)\.)",
        ),
    },
    "cformer": {
        "bert": PublishedSource(
            partial(_take_bert_sizes, BERT_SIZES),
            {"": "converter.bert."},
            ignored=(r"embeddings\.word_embeddings\.", r"pooler\."),
            fills=r"converter\.bert\.",
        )
    },
}
