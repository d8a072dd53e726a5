# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Logits and loss of a causal language model, projecting only the positions that are read.

Legend: B rows, L tokens, D width, V vocabulary.
"""

from collections.abc import Callable

import torch
from torch import nn
from transformers.modeling_utils import slice_logits_to_keep


def logits_and_loss(
    lm_head: nn.Linear,
    hidden_states: torch.Tensor,
    labels: torch.LongTensor | None,
    logits_to_keep: int | torch.Tensor,
    loss_function: Callable,
    training: bool,
    **kwargs,
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Project hidden states to the vocabulary.

    Args:
        hidden_states (`torch.FloatTensor` of shape `(B, L, D)`): after the final norm.
        labels (`torch.LongTensor` of shape `(B, L)`, *optional*): ids to predict, -100 where none; shifted here.
        logits_to_keep (`int` or `torch.Tensor`): positions to project; 0 = all, or, in train mode with labels, the
            supervised ones: a row of a large vocabulary costs more than all layers' activations of a token.

    Returns:
        logits `(B, positions, V)`, or `None` where only supervised positions were projected; the loss, if labels.
    """
    wants_all = not isinstance(logits_to_keep, int) or logits_to_keep != 0 or kwargs.get("shift_labels") is not None
    if labels is None or wants_all or not training:
        logits = lm_head(slice_logits_to_keep(hidden_states, logits_to_keep))
        if labels is None:
            return logits, None
        return logits, loss_function(logits, labels, vocab_size=logits.shape[-1], **kwargs)
    supervised = labels[:, 1:] != -100
    logits = lm_head(hidden_states[:, :-1][supervised])
    targets = labels[:, 1:][supervised]
    return None, loss_function(logits, None, vocab_size=logits.shape[-1], shift_labels=targets, **kwargs)


__all__ = ["logits_and_loss"]
