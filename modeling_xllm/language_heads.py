# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""From the last hidden states of a language model to logits and loss, as its family computes them.

Legend: B rows, L tokens, D width, V vocabulary.
"""

import operator

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_utils import slice_logits_to_keep

from .host_reads import Asked, true_places


# How families scale their logits, by the start of their `model_type`: by which field of the config.
LOGIT_SCALES = {
    "cohere": (operator.mul, "logit_scale"),
    "falcon_h1": (operator.mul, "lm_head_multiplier"),
    "granite": (operator.truediv, "logits_scaling"),
    "hyperclovax": (operator.mul, "logits_scaling"),
}
LOGIT_CAPS = ("final_logit_softcapping", "logits_soft_cap")  # fields that say where tanh bounds them (Gemma 2)
BIASED_HEADS = ("codegen", "gptj", "phi")  # families whose config does not say that their head has a bias


def has_biased_head(config: PreTrainedConfig) -> bool:
    """Whether the family's layer to the vocabulary has a bias."""
    return getattr(config, "lm_head_bias", config.model_type in BIASED_HEADS)


def scaled_logits(config: PreTrainedConfig, logits: torch.Tensor) -> torch.Tensor:
    """What the family makes of the products `(..., V)` with its vocabulary."""
    for family, (scale, field) in LOGIT_SCALES.items():
        if config.model_type.startswith(family):
            logits = scale(logits, getattr(config, field))
    for cap in filter(None, (getattr(config, field, None) for field in LOGIT_CAPS)):
        logits = torch.tanh(logits / cap) * cap
    return logits


def logits_and_loss(
    model: PreTrainedModel,
    hidden_states: torch.Tensor,
    labels: torch.LongTensor | None,
    logits_to_keep: int | torch.Tensor,
    supervised: "SupervisedTokens | None" = None,
    **kwargs,
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Project hidden states `(B, L, D)`, behind the final norm, to the vocabulary with the `lm_head` of `model`.

    Args:
        labels (`(B, L)`): ids to predict, -100 where none; shifted here.
        logits_to_keep: positions to project; 0 = all, or, in train mode with labels, the supervised ones: a row of a
            large vocabulary costs more than all layers' activations of a token.
        supervised: the latter, as `supervised_tokens` finds them before the layers run.

    Returns:
        logits `(B, positions, V)`, or `None` where only supervised positions were projected; the loss, if labels.
    """
    text = model.config.get_text_config()
    if labels is None or supervised is None:
        logits = scaled_logits(text, model.lm_head(slice_logits_to_keep(hidden_states, logits_to_keep)))
        if labels is None:
            return logits, None
        return logits, model.loss_function(logits, labels, vocab_size=logits.shape[-1], **kwargs)
    places = supervised.places()
    states = hidden_states.flatten(0, 1).index_select(0, places.to(hidden_states.device))
    logits = scaled_logits(text, model.lm_head(states))
    targets = supervised.targets.index_select(0, places)
    return None, model.loss_function(logits, None, vocab_size=logits.shape[-1], shift_labels=targets, **kwargs)


class SupervisedTokens:
    """The tokens behind which `labels (B, L)` ask for a token, and `targets (B * L)`, what they ask for."""

    def __init__(self, labels: torch.Tensor):
        self.targets = nn.functional.pad(labels[:, 1:], (0, 1), value=-100).flatten()
        self.count = None if torch.compiler.is_compiling() else Asked((self.targets != -100).sum())

    def places(self) -> torch.LongTensor:
        """Where they are in `(B * L)`."""
        wanted = self.targets != -100
        return wanted.nonzero()[:, 0] if self.count is None else true_places(wanted, *self.count.values())


def supervised_tokens(
    model: PreTrainedModel, labels: torch.Tensor | None, logits_to_keep: int | torch.Tensor, kwargs: dict
) -> SupervisedTokens | None:
    """What `logits_and_loss` is to project, asked before the layers run; `None`: all that `logits_to_keep` says."""
    wants_all = not isinstance(logits_to_keep, int) or logits_to_keep != 0 or kwargs.get("shift_labels") is not None
    return None if labels is None or wants_all or not model.training else SupervisedTokens(labels)


__all__ = ["has_biased_head", "logits_and_loss", "scaled_logits", "supervised_tokens"]
