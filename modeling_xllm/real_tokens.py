# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""What a language model computes of a batch in training: the attended tokens of each row, moved together.

Padding and placeholders that no token fills are most of a step otherwise: the authors pad every sample to a fixed
length, and a clip owns several times the placeholders that it fires.

Legend: B rows, L tokens, R most real tokens in a row, D width.
"""

from typing import Any

import torch
from transformers import Cache

from .host_reads import Asked
from .language_models import LanguageModel


# Tokens up to which a causal mask costs less than what transformers does without: it looks whether rows hold several
# samples, and waits.
SHORT = 512


class RealTokens:
    """The attended tokens of each row moved together, `(B, L)` to `(B, R)`; in `attention_mask (B, L)` 1 = real."""

    def __init__(self, attention_mask: torch.Tensor, lengths: list[int] | None = None):
        real = attention_mask.bool()
        counts = real.sum(1)
        lengths = Asked(counts).values() if lengths is None else lengths
        self.is_whole = min(lengths) == attention_mask.shape[1]  # there is nothing to move
        self.place = real.cumsum(1) - 1  # of each column's last real token among the R
        width = max(1, *lengths)
        self.columns = (~real).byte().argsort(stable=True)[:, :width]
        self.mask = torch.arange(width, device=real.device) < counts[:, None]

    def take(self, values: torch.Tensor) -> torch.Tensor:
        """`(..., B, L)` to `(..., B, R)`, e.g. positions."""
        return values if self.is_whole else values.gather(-1, self.columns.expand(*values.shape[:-1], -1))

    def take_states(self, states: torch.Tensor) -> torch.Tensor:
        """`(B, L, D)` to `(B, R, D)`."""
        return states if self.is_whole else states.gather(1, self.columns[..., None].expand(-1, -1, states.shape[2]))

    def real(self) -> torch.Tensor | None:
        """The attention mask `(B, R)`, if any token is not real."""
        return None if self.is_whole else self.mask.long()

    def seen(self, language: LanguageModel, _, layout: dict[str, torch.Tensor], is_ours: bool) -> Any:
        """The attention mask `(B, R)`; for a causal model without what is not real: it comes last, and nobody sees it.
        Positions that are ours then go too: they count from 0, as the model does without."""
        if not is_ours or not language.counts_alone():
            return self.real()
        layout.pop("position_ids", None)
        width = self.mask.shape[1]
        if width > SHORT or not language.sees_all_before():
            return None
        return torch.ones(1, 1, width, width, dtype=torch.bool, device=self.mask.device).tril()

    def put_back(self, states: torch.Tensor) -> torch.Tensor:
        """`(B, R, D)` to `(B, L, D)`. Where nothing was computed stands the state of the real token before, so that a
        token behind a gap is predicted from what it follows; zero if there is none.
        """
        if self.is_whole:
            return states
        whole = states.gather(1, self.place.clamp(min=0)[..., None].expand(-1, -1, states.shape[2]))
        return whole.masked_fill(self.place[..., None] < 0, 0)


def computes_real_tokens_only(
    model, attention_mask: torch.Tensor | None, past_key_values: Cache | None, use_cache: bool | None, kwargs: dict
) -> bool:
    """Whether padding may be left out: not with a cache or a 4-D mask, where all layers' states are asked for, or in a
    compiled graph.
    """
    names = ("output_hidden_states", "output_attentions")
    wants_states = any(kwargs.get(name, getattr(model.config, name, False)) for name in names)
    if past_key_values is not None or use_cache or torch.compiler.is_compiling() or wants_states:
        return False
    return attention_mask is not None and attention_mask.dim() == 2


def real_tokens(model, attention_mask: torch.Tensor | None, *how) -> RealTokens | None:
    """What `model` computes of a batch in training, or `None` for all of it: where padding may not be left out."""
    if not model.training or attention_mask is None or not computes_real_tokens_only(model, attention_mask, *how):
        return None
    return RealTokens(attention_mask)


__all__ = ["RealTokens", "computes_real_tokens_only", "real_tokens"]
