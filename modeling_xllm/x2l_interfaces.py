# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""X2L interfaces (paper section 3.1): a converter, then an adapter to the width of the language model.

    encoder features (N, T, E) --converter--> (N, K, C) --adapter--> quasi-linguistic embeddings (N, K, D)

The kinds of converter are in `converters`. The adapter is the paper's I-, V- or S-Adapter.

Legend: N items, F frames of a series, R real pictures of all series, T encoder frames, Q tokens per picture or item,
K tokens per item (padded), E, C, D widths.
"""

from dataclasses import dataclass

import torch
from torch import nn
from transformers.activations import ACT2FN
from transformers.modeling_outputs import BaseModelOutputWithPooling

from .configuration_xllm import X2LConfig
from .converters import converter_class


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


class X2LInterface(nn.Module):
    """One row of the modality table as a module: `converter`, then `adapter` (the I-, V- or S-Adapter).

    A row that shares another's converter has only what is its own in it; `share` must follow.

    Args:
        row (`X2LConfig`): this modality.
        owner_row (`X2LConfig`): the row whose converter is used; `row` itself unless it shares another's.
    """

    def __init__(self, row: X2LConfig, owner_row: X2LConfig):
        super().__init__()
        self.config = row
        kind = converter_class(row.converter)
        self._shared_interface = ()
        if row is owner_row or kind.shares_in_part:
            self.converter = kind(row, owner_row)
        self.adapter = nn.Linear(kind.output_size(owner_row), row.language_hidden_size)
        self.activation = ACT2FN[row.adapter_activation] if row.adapter_activation else nn.Identity()

    def share(self, interface: "X2LInterface") -> None:
        """Use the converter of another row's interface, which stays that row's: parameters, hooks and device."""
        self._shared_interface = (interface,)  # in a tuple it is no sub-module
        if hasattr(self, "converter"):
            self.converter.share(interface)

    def adapt(self, converted: torch.Tensor) -> torch.Tensor:
        """(N, K, C) -> quasi-linguistic embeddings (N, K, D)."""
        return self.activation(self.adapter(converted.to(self.adapter.weight.dtype)))

    def forward(
        self,
        hidden: torch.Tensor,
        mask: torch.Tensor | None = None,
        frame_mask: torch.Tensor | None = None,
        num_placeholders: torch.Tensor | None = None,
        target_lengths: torch.Tensor | None = None,
    ) -> X2LOutput:
        """Turn encoder features into quasi-linguistic embeddings.

        Args:
            hidden (`torch.FloatTensor` of shape `(N, T, E)`): features of each item; of a series (`frame_mask` given),
                of each of its real pictures, `(R, T, E)`.
            mask (`torch.BoolTensor` of shape `(N, T)`, *optional*): True at real encoder frames.
            frame_mask (`torch.BoolTensor` of shape `(N, F)`, *optional*): True at real pictures, which come first.
            num_placeholders (`torch.LongTensor` of shape `(N,)`, *optional*): placeholders each item owns where their
                number follows from its length; default the number of real encoder frames.
            target_lengths (`torch.LongTensor` of shape `(N,)`, *optional*): C-Former training: tokens to fire.
        """
        kind = converter_class(self.config.converter)
        is_fixed = kind.tokens_per_item(self.config) is not None
        if mask is None and not is_fixed:
            mask = torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device)  # (N, T)
        options = kind.forward_options(self.config)
        if target_lengths is not None:
            options["target_lengths"] = target_lengths
        owner = self._shared_interface[0] if self._shared_interface else self
        converter = self.converter if hasattr(self, "converter") else owner.converter
        output = converter(hidden.to(owner.adapter.weight.dtype), mask, **options)  # (N, K, C)
        embeddings = self.adapt(output.embeddings)  # (N, K, D)
        if is_fixed:
            return self._arrange(embeddings, frame_mask)
        return X2LOutput(
            embeddings=embeddings,
            mask=mask if output.mask is None else output.mask,
            num_placeholders=mask.sum(-1) if num_placeholders is None else num_placeholders,
            **{name: output.get(name) for name in ("alphas", "quantity", "fire_frames")},
        )

    @staticmethod
    def _arrange(embeddings: torch.Tensor, frame_mask: torch.Tensor | None) -> X2LOutput:
        """Q tokens of each item `(N, Q, D)`, or of each of the R real pictures of N series, `(R, Q, D)`."""
        Q, D = embeddings.shape[1:]
        if frame_mask is None:
            kept = torch.ones(embeddings.shape[:2], dtype=torch.bool, device=embeddings.device)  # (N, Q)
            return X2LOutput(embeddings=embeddings, mask=kept, num_placeholders=kept.sum(-1))
        real = frame_mask.bool()  # (N, F)
        series = embeddings.new_zeros(*real.shape, Q, D).masked_scatter(real[..., None, None], embeddings)
        kept = real.repeat_interleave(Q, dim=1)  # (N, F * Q): in time order
        return X2LOutput(embeddings=series.flatten(1, 2), mask=kept, num_placeholders=kept.sum(-1))


__all__ = ["X2LInterface", "X2LOutput"]
