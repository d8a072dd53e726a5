# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""X2L interfaces (paper section 3.1): a converter, then an adapter to the width of the language model.

    encoder features (N, T, E) --converter--> (N, K, C) --adapter--> quasi-linguistic embeddings (N, K, D)

Converters: `QFormerConverter` (images and videos), `CFormer` (speech, see `cformer`), `LinearConverter` (one token per
feature vector). The adapter is the paper's I-, V- or S-Adapter.

Legend: N items, F frames of a video, T encoder frames, Q query tokens, K tokens per item (padded), E, C, D widths.
"""

from dataclasses import dataclass

import torch
from torch import nn
from transformers import Blip2QFormerModel
from transformers.activations import ACT2FN
from transformers.modeling_outputs import BaseModelOutputWithPooling

from .cformer import CFormer
from .configuration_xllm import X2LConfig


@dataclass
class X2LOutput(BaseModelOutputWithPooling):
    """What one modality's items become.

    Args:
        last_hidden_state, hidden_states, attentions: of the encoder.
        pooler_output (`list[torch.FloatTensor]`): one `(tokens, D)` tensor per item: what the language model reads.
        embeddings (`torch.FloatTensor` of shape `(N, K, D)`): the same, padded; an item's tokens come first.
        mask (`torch.BoolTensor` of shape `(N, K)`): True where `embeddings` holds a token.
        num_placeholders (`torch.LongTensor` of shape `(N,)`): placeholders each item owns in the text; at least its
            number of tokens.
        alphas (`torch.FloatTensor` of shape `(N, T)`), quantity (`(N,)`), fire_frames (`(N, K)`): of the CIF, if the
            converter is a C-Former: weights, their sum, and the encoder frame at which each token fired.
    """

    embeddings: torch.FloatTensor | None = None
    mask: torch.BoolTensor | None = None
    num_placeholders: torch.LongTensor | None = None
    alphas: torch.FloatTensor | None = None
    quantity: torch.FloatTensor | None = None
    fire_frames: torch.FloatTensor | None = None


class QFormerConverter(nn.Module):
    """Query tokens that read an encoder's features through a Q-Former (BLIP-2; paper section 3.1).

    `qformer` is absent where the row shares another row's; `forward` is then given that one.
    """

    def __init__(self, row: X2LConfig, owner: X2LConfig):
        super().__init__()
        self.query_tokens = nn.Parameter(torch.zeros(1, row.num_query_tokens, owner.qformer_config.hidden_size))
        if row.shares_converter_with is None:
            self.qformer = Blip2QFormerModel._from_config(row.qformer_config)

    def forward(self, hidden: torch.Tensor, mask: torch.Tensor | None, qformer: Blip2QFormerModel) -> torch.Tensor:
        """(N, T, E), mask (N, T) or None -> (N, Q, C)."""
        queries = self.query_tokens.expand(hidden.shape[0], -1, -1)
        encoder_mask = None if mask is None else mask.to(hidden.dtype)
        output = qformer(query_embeds=queries, encoder_hidden_states=hidden, encoder_attention_mask=encoder_mask)
        return output.last_hidden_state


class LinearConverter(nn.Module):
    """One token per feature vector: LayerNorm and a Linear of the same width (device status, pooled features)."""

    def __init__(self, row: X2LConfig):
        super().__init__()
        self.layernorm = nn.LayerNorm(row.encoder_hidden_size)
        self.dense = nn.Linear(row.encoder_hidden_size, row.encoder_hidden_size)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.dense(self.layernorm(hidden))  # (N, T, E) -> (N, T, E)


class X2LInterface(nn.Module):
    """One row of the modality table as a module: `converter`, then `adapter` (the I-, V- or S-Adapter).

    Args:
        row (`X2LConfig`): this modality.
        owner (`X2LConfig`): the row whose converter is used; `row` itself unless it shares another's.
    """

    def __init__(self, row: X2LConfig, owner: X2LConfig):
        super().__init__()
        self.config = row
        if row.converter == "qformer":
            self.converter = QFormerConverter(row, owner)
        elif row.shares_converter_with is None:
            self.converter = CFormer(row.cformer_config) if row.converter == "cformer" else LinearConverter(row)
        self.adapter = nn.Linear(owner.converter_hidden_size, row.language_hidden_size)
        self.activation = ACT2FN[row.adapter_activation] if row.adapter_activation else nn.Identity()

    def adapt(self, converted: torch.Tensor) -> torch.Tensor:
        """(N, K, C) -> quasi-linguistic embeddings (N, K, D)."""
        return self.activation(self.adapter(converted.to(self.adapter.weight.dtype)))

    def forward(
        self,
        hidden: torch.Tensor,
        mask: torch.Tensor | None = None,
        frame_mask: torch.Tensor | None = None,
        num_placeholders: torch.Tensor | None = None,
        owner: "X2LInterface | None" = None,
        target_lengths: torch.Tensor | None = None,
    ) -> X2LOutput:
        """Turn encoder features into quasi-linguistic embeddings.

        Args:
            hidden (`torch.FloatTensor` of shape `(N, T, E)`): features of each item; of a series (`frame_mask` given),
                of each of its real pictures, `(R, T, E)`.
            mask (`torch.BoolTensor` of shape `(N, T)`, *optional*): True at real encoder frames.
            frame_mask (`torch.BoolTensor` of shape `(N, F)`, *optional*): True at real pictures, which come first.
            num_placeholders (`torch.LongTensor` of shape `(N,)`, *optional*): of a C-Former or linear interface:
                placeholders each item owns; default the number of real encoder frames.
            owner (`X2LInterface`, *optional*): the interface whose converter this one shares.
            target_lengths (`torch.LongTensor` of shape `(N,)`, *optional*): C-Former training: tokens to fire.
        """
        owner = self if owner is None else owner
        hidden = hidden.to(owner.adapter.weight.dtype)
        if self.config.converter == "qformer":
            return self._query(hidden, mask, frame_mask, owner)
        if mask is None:
            mask = torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device)
        if num_placeholders is None:
            num_placeholders = mask.sum(-1)
        if self.config.converter == "linear":
            embeddings = self.adapt(owner.converter(hidden))
            return X2LOutput(embeddings=embeddings, mask=mask, num_placeholders=num_placeholders)
        fired = owner.converter(hidden, mask, target_lengths, token_level=self.config.token_level)
        return X2LOutput(
            embeddings=self.adapt(fired.embeddings),
            mask=fired.mask,
            num_placeholders=num_placeholders,
            alphas=fired.alphas,
            quantity=fired.quantity,
            fire_frames=fired.fire_frames,
        )

    def _query(self, hidden, mask, frame_mask, owner: "X2LInterface") -> X2LOutput:
        embeddings = self.adapt(self.converter(hidden, mask, owner.converter.qformer))
        N, Q, D = embeddings.shape
        if frame_mask is None:
            kept = torch.ones(N, Q, dtype=torch.bool, device=hidden.device)
            return X2LOutput(embeddings=embeddings, mask=kept, num_placeholders=kept.sum(-1))
        # N counts the real pictures of all series; put each series' pictures side by side, in time order.
        real = frame_mask.bool()
        series = embeddings.new_zeros(*real.shape, Q, D).masked_scatter(real[..., None, None], embeddings)
        kept = real.repeat_interleave(Q, dim=1)
        return X2LOutput(embeddings=series.flatten(1, 2), mask=kept, num_placeholders=kept.sum(-1))


__all__ = ["LinearConverter", "QFormerConverter", "X2LInterface", "X2LOutput"]
