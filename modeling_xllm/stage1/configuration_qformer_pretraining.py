# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Configuration of the Q-Former's first stage (paper section 3.2, stage 1; BLIP-2 section 3.2)."""

from huggingface_hub.dataclasses import strict

from xllm.modeling_xllm.configuration_xllm import XLLMConfig
from xllm.modeling_xllm.converters import QFormerConverter, converter_class
from xllm.modeling_xllm.stage1.heads import StageOneConfigMixin


@strict
class QFormerPreTrainingConfig(StageOneConfigMixin, XLLMConfig):
    """An `XLLMConfig` cut down to one interface, plus the throw-away text side of stage 1.

    The table keeps the row of `modality` (and the row whose converter it shares), so no other tower is built; the
    language model is never built, only its width is used, by the adapter.

    Args:
        modality: row of `modalities` to train; its converter must be a Q-Former.
        text_vocab_size: rows of the text embedding; BERT's vocabulary and one more for `[DEC]`.
        text_pad_token_id, text_bos_token_id, text_eos_token_id: `[PAD]`, `[DEC]` (starts a caption), `[SEP]`.
        text_max_positions: longest text that can be read at all, in tokens.
        max_text_length: tokens a caption is cut to by the collator, and the longest caption generated.
        projection_size: width of the space in which media and texts are compared.
        initial_temperature: similarities are divided by it; learned from there.
        label_smoothing: of the contrastive and the captioning loss.
        match_equal_texts: equal captions of a batch are positives of each other, never hard negatives. Deviation:
            BLIP-2 takes only the diagonal, which in small or templated data punishes right answers.

    Raises:
        ValueError: `modality` is not in the table, or its row has no Q-Former.
    """

    model_type = "xllm_qformer_pretraining"

    modality: str = "image"
    text_vocab_size: int = 30523
    text_pad_token_id: int = 0
    text_bos_token_id: int = 30522
    text_eos_token_id: int = 102
    text_max_positions: int = 512
    max_text_length: int = 32
    projection_size: int = 256
    initial_temperature: float = 0.07
    label_smoothing: float = 0.1
    match_equal_texts: bool = True

    def __post_init__(self, **kwargs):
        row = self._keep_row()
        if not issubclass(converter_class(row.converter), QFormerConverter):
            raise ValueError(
                f"modality {self.modality!r} is a {row.converter!r} over {row.input_name}; stage 1 with ITC, ITM and "
                "ITG needs a 'qformer'"
            )
        for field in ("text_pad_token_id", "text_bos_token_id", "text_eos_token_id"):
            if not 0 <= getattr(self, field) < self.text_vocab_size:
                raise ValueError(f"{field} is {getattr(self, field)}, outside text_vocab_size {self.text_vocab_size}")
        if not 2 <= self.max_text_length <= self.text_max_positions:
            at_most = f"text_max_positions ({self.text_max_positions})"
            raise ValueError(f"max_text_length is {self.max_text_length}; expected 2 to {at_most}")
        if self.initial_temperature <= 0:
            raise ValueError(f"initial_temperature is {self.initial_temperature}, expected a positive number")
        super().__post_init__(**kwargs)


__all__ = ["QFormerPreTrainingConfig"]
