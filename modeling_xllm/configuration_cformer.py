# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Configuration of the C-Former (X-LLM, arXiv 2305.04160, section 3.1): CIF, then BERT; the defaults are the
paper's."""

from huggingface_hub.dataclasses import strict
from transformers import BertConfig, PreTrainedConfig


CIF_PREDICTORS = ("conv", "dense", "linear", "none")
TRANSFORMERS = ("bert", "none")
# What the C-Former's transformer has in common with a BERT.
BERT_SIZES = (
    "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act",
    "max_position_embeddings", "type_vocab_size", "layer_norm_eps",
)  # fmt: skip
BERT_FIELDS = (*BERT_SIZES, "hidden_dropout_prob", "attention_probs_dropout_prob", "initializer_range")


@strict
class CFormerConfig(PreTrainedConfig):
    """Sizes and choices of a [`CFormer`].

    Args:
        encoder_hidden_size (`int`): width of the speech encoder's frames.
        cif_predictor (`str`): what precedes the sigmoid of the frame weights: "conv", "dense" or "linear". "none":
            there is no CIF, the inputs are its tokens already, as in the authors' data (512-d vectors).
        cif_predictor_size (`int`, *optional*): channels of the conv or dense predictor; default `encoder_hidden_size`.
        cif_conv_kernel (`int`): frames the conv predictor sees, odd.
        cif_dropout (`float`): dropout of the predictor.
        cif_fire_threshold, cif_tail_threshold (`float`), cif_one_token_per_frame (`bool`): see [`integrate_and_fire`].
        cif_hidden_size (`int`): width of the fired tokens; a projection is added where it differs from the encoder's.
        transformer (`str`): "bert" (Linear, ReLU, then a BERT encoder) or "none", the authors' "fc" variant: the fired
            tokens are the output, and the adapter after the C-Former is all that is trained beside the CIF.
        num_words (`int`, *optional*): the tokens are shares of so many words: the head that stage 1 reads them with,
            and a softmax, stay behind the transformer (`xllm.training.starts.keep_words`). By default there is none.
        The others are those of [`BertConfig`]; with `transformer="none"`, `hidden_size` is set to `cif_hidden_size`.

    Raises:
        ValueError: an unknown predictor or transformer, an even kernel, thresholds out of range, heads that do not
            divide the width.
    """

    model_type = "xllm_cformer"

    encoder_hidden_size: int = 512
    cif_predictor: str = "conv"
    cif_predictor_size: int | None = None
    cif_conv_kernel: int = 3
    cif_dropout: float | int = 0.1
    cif_fire_threshold: float | int = 0.99
    cif_tail_threshold: float | int = 0.5
    cif_one_token_per_frame: bool = True
    cif_hidden_size: int = 512
    transformer: str = "bert"
    num_words: int | None = None
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float | int = 0.1
    attention_probs_dropout_prob: float | int = 0.1
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs):
        if self.transformer == "none":
            self.hidden_size = self.cif_hidden_size
        if self.cif_predictor not in CIF_PREDICTORS:
            raise ValueError(f"cif_predictor must be one of {', '.join(CIF_PREDICTORS)}, got {self.cif_predictor!r}")
        if self.transformer not in TRANSFORMERS:
            raise ValueError(f"transformer must be one of {', '.join(TRANSFORMERS)}, got {self.transformer!r}")
        if self.cif_conv_kernel < 1 or self.cif_conv_kernel % 2 == 0:
            raise ValueError(f"cif_conv_kernel must be odd (frames keep their place), got {self.cif_conv_kernel}")
        if not 0 < self.cif_fire_threshold <= 1:
            raise ValueError(f"cif_fire_threshold must lie in (0, 1], got {self.cif_fire_threshold}")
        if not 0 <= self.cif_tail_threshold <= 1:
            raise ValueError(f"cif_tail_threshold must lie in [0, 1], got {self.cif_tail_threshold}")
        if self.transformer == "bert" and self.hidden_size % self.num_attention_heads:
            heads = self.num_attention_heads
            raise ValueError(f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads {heads}")
        if self.num_words is not None and self.num_words < 1:
            raise ValueError(f"num_words must be at least 1, or None for no head, got {self.num_words}")
        super().__post_init__(**kwargs)

    @property
    def output_size(self) -> int:
        """Width of the tokens."""
        return self.num_words or self.hidden_size

    def bert_config(self) -> BertConfig:
        """The encoder-only BERT of this C-Former; its vocabulary is one idle row, which [`CFormer`] drops."""
        return BertConfig(vocab_size=1, use_cache=False, **{name: getattr(self, name) for name in BERT_FIELDS})


__all__ = ["BERT_SIZES", "CFormerConfig"]
