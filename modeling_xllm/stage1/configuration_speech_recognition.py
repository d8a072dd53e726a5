# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Configuration of the C-Former's first stage (paper section 3.2, stage 1): CIF-based speech recognition."""

from huggingface_hub.dataclasses import strict

from xllm.modeling_xllm.configuration_cformer import CFormerConfig
from xllm.modeling_xllm.configuration_xllm import XLLMConfig
from xllm.modeling_xllm.stage1.heads import StageOneConfigMixin


@strict
class SpeechRecognitionConfig(StageOneConfigMixin, XLLMConfig):
    """An `XLLMConfig` cut down to one speech interface, plus the throw-away heads of stage 1.

    The table keeps the row of `modality` alone, so no other tower is built; the language model is never built, only
    its width is used, by the adapter.

    Args:
        modality: row of `modalities` to train; its converter must be a C-Former of its own.
        vocab_size: ids a label may have, `0 ... vocab_size - 1`; default the size of bert-base-chinese's vocabulary.
        label_smoothing: of the cross-entropy on the fired tokens.
        quantity_weight: weight of the quantity loss |sum of alphas - tokens|.
        ctc_weight: weight of CTC on the encoder's frames; 0 leaves out the CTC head.
        ctc_blank_id: the label id that is CTC's blank; default an extra class after the vocabulary.

    Raises:
        ValueError: `modality` is not in the table or has no C-Former; a weight or an id is out of range.

    Source: weights of the published CIF recipe (CE with smoothing 0.1, quantity 1.0, CTC 0.5).
    """

    model_type = "xllm_speech_recognition"
    keys_to_ignore_at_inference = ["past_key_values", "ce_loss", "quantity_loss", "ctc_loss"]

    modality: str = "speech"
    vocab_size: int = 21128
    label_smoothing: float | int = 0.1
    quantity_weight: float | int = 1.0
    ctc_weight: float | int = 0.5
    ctc_blank_id: int | None = None

    def __post_init__(self, **kwargs):
        row = self._keep_row()
        if row.converter != "cformer" or row.shares_converter_with is not None:
            shared = f" shared with {row.shares_converter_with!r}" if row.shares_converter_with else ""
            raise ValueError(
                f"modality {self.modality!r} is a {row.converter!r}{shared}; recognition needs a row with a 'cformer' "
                "of its own"
            )
        if row.cformer_config.cif_predictor == "none":
            raise ValueError(f"modality {self.modality!r} has no CIF (cif_predictor='none'), nothing to train")
        if row.cformer_config.num_words is not None:
            raise ValueError(
                f"modality {self.modality!r} keeps the head of its stage 1 (num_words): go on with stage 2"
            )
        if self.vocab_size < 1:
            raise ValueError(f"vocab_size must be positive, got {self.vocab_size}")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing must lie in [0, 1), got {self.label_smoothing}")
        for field in ("quantity_weight", "ctc_weight"):
            if getattr(self, field) < 0:
                raise ValueError(f"{field} must not be negative, got {getattr(self, field)}")
        if self.ctc_blank_id is not None and not 0 <= self.ctc_blank_id < self.vocab_size:
            raise ValueError(f"ctc_blank_id is {self.ctc_blank_id}, outside vocab_size {self.vocab_size}")
        super().__post_init__(**kwargs)

    @property
    def cformer_config(self) -> CFormerConfig:
        """The C-Former that is trained."""
        return self.row.cformer_config

    @property
    def ctc_classes(self) -> int:
        """Classes of the CTC head: the vocabulary, and the blank if it is not part of it."""
        return self.vocab_size + (self.ctc_blank_id is None)

    @property
    def ctc_blank(self) -> int:
        """Index of CTC's blank among `ctc_classes`."""
        return self.vocab_size if self.ctc_blank_id is None else self.ctc_blank_id


__all__ = ["SpeechRecognitionConfig"]
