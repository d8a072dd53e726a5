# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""What X-LLM's forward returns: transformers' outputs, and what each modality became."""

from dataclasses import dataclass

from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast


@dataclass
class XLLMModelOutputWithPast(BaseModelOutputWithPast):
    """Output of the language model without its head, and what each modality became.

    Args:
        modality_features (`dict[str, X2LOutput]`, *optional*): per modality given in this call.
    """

    modality_features: dict | None = None


@dataclass
class XLLMCausalLMOutputWithPast(CausalLMOutputWithPast):
    """`logits (B, L or logits_to_keep, vocab)`, `loss` when labels are given, and `modality_features` as above."""

    modality_features: dict | None = None


__all__ = ["XLLMCausalLMOutputWithPast", "XLLMModelOutputWithPast"]
