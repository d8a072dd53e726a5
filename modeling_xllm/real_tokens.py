# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""In training, only real tokens are computed: padding, and speech placeholders that no token fills, cost nothing.

The authors pad every sample to a fixed length, and a clip owns one placeholder per encoder frame, several times the
tokens it fires; a frozen language model would spend most of a step on them.

Legend: B rows, L tokens, R most real tokens in a row, D width.
"""

import torch
from transformers import Cache


class RealTokens:
    """The attended tokens of each row moved together, `(B, L)` to `(B, R)`.

    Args:
        attention_mask (`torch.Tensor` of shape `(B, L)`): 1 = real.
    """

    def __init__(self, attention_mask: torch.Tensor):
        real = attention_mask.bool()
        counts = real.sum(1)
        self.place = real.cumsum(1) - 1  # of each column's last real token among the R
        width = max(1, int(counts.max()))
        self.columns = (~real).byte().argsort(dim=1, stable=True)[:, :width]
        self.mask = torch.arange(width, device=real.device) < counts[:, None]

    def take(self, values: torch.Tensor) -> torch.Tensor:
        """`(..., B, L)` to `(..., B, R)`, e.g. positions."""
        return values.gather(-1, self.columns.expand(*values.shape[:-1], -1))

    def take_states(self, states: torch.Tensor) -> torch.Tensor:
        """`(B, L, D)` to `(B, R, D)`."""
        return states.gather(1, self.columns[..., None].expand(-1, -1, states.shape[2]))

    def put_back(self, states: torch.Tensor) -> torch.Tensor:
        """`(B, R, D)` to `(B, L, D)`. Where nothing was computed stands the state of the real token before, so that a
        token behind a gap is predicted from what it follows; zero if there is none.
        """
        whole = states.gather(1, self.place.clamp(min=0)[..., None].expand(-1, -1, states.shape[2]))
        return whole.masked_fill(self.place[..., None] < 0, 0)


def real_tokens(
    model, attention_mask: torch.Tensor | None, past_key_values: Cache | None, use_cache: bool | None, kwargs: dict
) -> RealTokens | None:
    """What `model` should compute of a batch, or `None` for all of it: outside training, with a cache or a mask of
    its own kind, where the states of all layers are asked for, in a compiled graph, or where nothing would be saved.
    """
    if not model.training or past_key_values is not None or use_cache or torch.compiler.is_compiling():
        return None
    names = ("output_hidden_states", "output_attentions")
    if any(kwargs.get(name, getattr(model.config, name, False)) for name in names):
        return None
    if attention_mask is None or attention_mask.dim() != 2:
        return None
    tokens = RealTokens(attention_mask)
    return tokens if tokens.mask.shape[1] < attention_mask.shape[1] else None


__all__ = ["RealTokens", "real_tokens"]
