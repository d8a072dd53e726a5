# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Configuration of ChatGLM-6B, the language model of X-LLM (paper sec. 3; GLM, arXiv 2103.10360).

Reads THUDM's own config.json: their field names are aliases of the usual ones. Two generations were published:
vocabulary 150528 (March 2023) and 130528 (April 2023 on); the ids of the special tokens follow from that size.
"""

import math
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig


TOKEN_ID_NAMES = ("mask_token_id", "gmask_token_id", "bos_token_id", "eos_token_id", "pad_token_id")
PUBLISHED_TOKEN_IDS = {
    150528: dict(zip(TOKEN_ID_NAMES, (150000, 150001, 150004, 150005, 20003))),
    130528: dict(zip(TOKEN_ID_NAMES, (130000, 130001, 130004, 130005, 3))),
}
# Fields that only the later architectures write, all of which call themselves "chatglm" too.
LATER_GENERATION_FIELDS = ("padded_vocab_size", "multi_query_attention", "ffn_hidden_size", "rmsnorm", "kv_channels")


@strict
class ChatGLMConfig(PreTrainedConfig):
    """Sizes and special tokens of a ChatGLM (first generation) language model; the defaults are ChatGLM-6B.

    Args:
        vocab_size (`int`): rows of the embedding matrix; 130528 or 150528 as published.
        hidden_size, num_hidden_layers, num_attention_heads, intermediate_size (`int`): sizes. THUDM's names
            `num_layers` and `inner_hidden_size` are accepted and readable too.
        max_position_embeddings (`int`): longest input in tokens, THUDM's `max_sequence_length`.
        layer_norm_eps (`float`): THUDM's `layernorm_epsilon`.
        residual_scale (`float`): factor of the normed input in `scale * norm(x) + sublayer(norm(x))`. The published
            code uses sqrt(2 * 28) whatever the number of layers, and so does the default.
        rope_theta (`float`): base of the rotary frequencies, which are rounded to fp16 as published.
        rope_half_precision (`bool`): round positions, angles and tables to fp16 as well, as THUDM's half-precision
            run did (its cosines are off by 0.1 at position 256). Off: tables are built in fp32.
        legacy_sop_position (`bool`, *optional*): position rule of March 2023: `<sop>` keeps its running position after
            a `[gMASK]`, instead of taking the mask's. Default: true for vocabulary 150528 only.
        mask_token_id, gmask_token_id, bos_token_id (`<sop>`), eos_token_id (`<eop>`), pad_token_id (`int`,
            *optional*): as published for the two known vocabularies; to be given for any other.
        initializer_range (`float`): standard deviation of fresh weights.

    Raises:
        ValueError: a ChatGLM2/3 config, an int4/int8-quantised or P-tuned THUDM variant, 1-D positions, a head width
            that is not divisible by 4, an unknown vocabulary without ids.

    Source: config.json of THUDM/chatglm-6b; ChatGLM-6B modeling code, April 2023.
    """

    model_type = "chatglm"
    tokenizer_class = "ChatGLMTokenizer"
    keys_to_ignore_at_inference = ["past_key_values"]
    attribute_map = {
        "num_layers": "num_hidden_layers",
        "inner_hidden_size": "intermediate_size",
        "max_sequence_length": "max_position_embeddings",
        "layernorm_epsilon": "layer_norm_eps",
    }
    base_model_tp_plan = {
        "layers.*.attention.query_key_value": "colwise",  # its rows are ordered by heads
        "layers.*.attention.dense": "rowwise",
        "layers.*.mlp.dense_h_to_4h": "colwise",
        "layers.*.mlp.dense_4h_to_h": "rowwise",
    }

    vocab_size: int = 130528
    hidden_size: int = 4096
    num_hidden_layers: int = 28
    num_attention_heads: int = 32
    intermediate_size: int = 16384
    max_position_embeddings: int = 2048
    layer_norm_eps: float = 1e-5
    residual_scale: float = math.sqrt(2 * 28)
    rope_theta: float = 10000.0
    rope_half_precision: bool = False
    legacy_sop_position: bool | None = None
    initializer_range: float = 0.02
    use_cache: bool = True
    mask_token_id: int | None = None
    gmask_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any):
        _refuse_other_checkpoints(kwargs)
        for theirs, ours in self.attribute_map.items():
            if theirs in kwargs:
                setattr(self, ours, kwargs.pop(theirs))
        published = PUBLISHED_TOKEN_IDS.get(self.vocab_size, {})
        for name in TOKEN_ID_NAMES:
            if getattr(self, name) is None:
                setattr(self, name, published.get(name))
        if self.legacy_sop_position is None:
            self.legacy_sop_position = self.vocab_size == 150528
        if self.hidden_size % (4 * self.num_attention_heads):
            rule = "hidden_size must be a multiple of 4 * num_attention_heads (two rotary axes of two halves each)"
            raise ValueError(f"{rule}, got {self.hidden_size} and {self.num_attention_heads}")
        if missing := [name for name in ("gmask_token_id", "bos_token_id") if getattr(self, name) is None]:
            raise ValueError(
                f"vocab_size {self.vocab_size} is not a published one ({', '.join(map(str, PUBLISHED_TOKEN_IDS))}): "
                f"give {' and '.join(missing)}"
            )
        super().__post_init__(**kwargs)

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_attention_heads


def _refuse_other_checkpoints(values: dict[str, Any]) -> None:
    """Raise for a config.json that says "chatglm" but is not the first generation in full precision."""
    if found := [name for name in LATER_GENERATION_FIELDS if name in values]:
        raise ValueError(
            f"this is a ChatGLM2, ChatGLM3 or GLM-4 config (it has {', '.join(found)}), another architecture "
            "under the same model_type: use THUDM/chatglm-6b here, or zai-org/glm-4-9b-hf with GlmForCausalLM"
        )
    if bits := values.get("quantization_bit"):
        raise ValueError(
            f"this is an int{bits}-quantised THUDM variant, whose weights only THUDM's CUDA kernels can read: load "
            "THUDM/chatglm-6b and quantise it with quantization_config=BitsAndBytesConfig(...) or TorchAoConfig(...)"
        )
    if values.get("pre_seq_len") is not None:
        raise ValueError(
            f"pre_seq_len={values['pre_seq_len']}: P-tuning v2 prefixes are not supported, use PEFT's prefix tuning "
            "or LoRA on query_key_value"
        )
    if values.get("position_encoding_2d", True) is not True:
        raise ValueError("position_encoding_2d=False: no published ChatGLM uses one-dimensional positions")


__all__ = ["ChatGLMConfig"]
