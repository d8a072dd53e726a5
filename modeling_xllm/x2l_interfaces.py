# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""X2L interfaces (paper section 3.1): a converter, then an adapter to the width of the language model.

    encoder features (N, T, E) --converter--> (N, K, C) --adapter--> quasi-linguistic embeddings (N, K, D)

`place_media` writes the embeddings over the placeholder tokens of the text, in order of appearance. An item owns as
many placeholders as the processor wrote for it; a speech clip may fire fewer tokens: its surplus placeholders are kept
out of attention.

Legend: N items, F frames of a series, R real pictures of all series, T encoder frames, Q tokens per picture or item,
K tokens per item (padded), B rows of text, L tokens, E, C, D widths.
"""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.functional import pad
from transformers.activations import ACT2FN
from transformers.modeling_outputs import BaseModelOutputWithPooling

from .configuration_xllm import X2LConfig
from .converters import converter_class
from .host_reads import check


@dataclass
class X2LOutput(BaseModelOutputWithPooling):
    """What one modality's items become.

    Args:
        last_hidden_state, hidden_states, attentions: of the encoder.
        pooler_output (`list[torch.FloatTensor]`): one `(tokens, D)` tensor per item: what the language model reads.
        embeddings (`(N, K, D)`), mask (`(N, K)`): the same, padded; an item's tokens come first.
        num_placeholders (`(N,)`): placeholders each item owns in the text; at least its number of tokens.
        alphas, quantity, fire_frames: of the CIF, if the converter is a C-Former; see [`CIFOutput`].
    """

    embeddings: torch.FloatTensor | None = None
    mask: torch.BoolTensor | None = None
    num_placeholders: torch.LongTensor | None = None
    alphas: torch.FloatTensor | None = None
    quantity: torch.FloatTensor | None = None
    fire_frames: torch.FloatTensor | None = None


class X2LInterface(nn.Module):
    """One row of the modality table as a module: `converter`, then `adapter` (the I-, V- or S-Adapter). `owner_row` is
    the row whose converter is used: `row` itself unless it shares another's. Then it has only its own parameters in
    it, and `share` must follow."""

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

    @property
    def used_converter(self) -> nn.Module:
        """Its own converter, or that of the interface that it shares."""
        shared: tuple = self._shared_interface
        return self.converter if hasattr(self, "converter") else shared[0].converter

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
            hidden (`(N, T, E)`), mask (`(N, T)`): features of each item, True at real encoder frames; of a series, of
                each of its real pictures, `(R, T, E)`, with frame_mask (`(N, F)`): True at these, which come first.
            num_placeholders (`(N,)`): placeholders each item owns where their number follows from its length; default
                the number of real encoder frames.
            target_lengths (`(N,)`): C-Former training: tokens to fire.
        """
        kind = converter_class(self.config.converter)
        is_fixed = kind.tokens_per_item(self.config) is not None
        if mask is None and not is_fixed:
            mask = torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device)  # (N, T)
        options = kind.forward_options(self.config)
        if target_lengths is not None:
            options["target_lengths"] = target_lengths
        owner = self._shared_interface[0] if self._shared_interface else self
        output = self.used_converter(hidden.to(owner.adapter.weight.dtype), mask, **options)  # (N, K, C)
        embeddings = self.activation(self.adapter(output.embeddings.to(self.adapter.weight.dtype)))  # (N, K, D)
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
        kept = frame_mask.bool().repeat_interleave(Q, dim=1)  # (N, F * Q): in time order
        series = place_frames(embeddings, frame_mask).flatten(1, 2)
        return X2LOutput(embeddings=series, mask=kept, num_placeholders=kept.sum(-1))


def place_frames(real: torch.Tensor, frame_mask: torch.Tensor) -> torch.Tensor:
    """`(R, ...)` of the real frames of all series, or `(N * F, ...)` of all frames -> `(N, F, ...)`, zero where
    `frame_mask (N, F)` is 0."""
    shown = frame_mask.bool().to(real.device)[(..., *[None] * (real.dim() - 1))]
    if real.shape[0] == frame_mask.numel():
        return real.unflatten(0, frame_mask.shape).masked_fill(~shown, 0)
    return real.new_zeros(*frame_mask.shape, *real.shape[1:]).masked_scatter(shown, real)


def place_media(
    token_mask: torch.BoolTensor, features: X2LOutput, name: str = "media"
) -> tuple[torch.FloatTensor, torch.BoolTensor]:
    """Spread the items' embeddings over the placeholders of the modality `name`: `token_mask (B, L)` is True there.

    Returns `embeds (B, L, D)`, zero outside the placeholders, and `keep (B, L)`, False at placeholders left empty.
    Another number of placeholders in the text than the items own is a `ValueError` that names both.
    """
    items = (features.embeddings, features.mask, features.num_placeholders)
    embeddings, mask, owned = (tensor.to(token_mask.device) for tensor in items)
    N, K, D = embeddings.shape
    written, expected = token_mask.sum(), owned.sum()
    check(
        written == expected,
        lambda: (
            f"{name}: the text holds {int(written)} placeholder tokens, but the {N} item(s) given need {int(expected)}"
        ),
    )
    if N == 0:
        return embeddings.new_zeros(*token_mask.shape, D), torch.ones_like(token_mask)
    owned = owned.long()
    place, ends = token_mask.flatten().cumsum(0) - 1, owned.cumsum(0)  # of a placeholder; of each item
    item = torch.searchsorted(ends, place, right=True).clamp(max=N - 1)
    slot = place - (ends - owned)[item]
    filled = token_mask & (slot < mask.sum(-1)[item]).view_as(token_mask)  # (B, L): slot s holds token s of its item
    rows = pad(embeddings.flatten(0, 1), (0, 0, 0, 1))  # (N * K + 1, D): a row of zeros for all else
    embeds = rows.index_select(0, (item * K + slot).where(filled.flatten(), N * K)).view(*token_mask.shape, D)
    return embeds, filled | ~token_mask


def join_items(first: X2LOutput, second: X2LOutput) -> X2LOutput:
    """The items of both, `first`'s in front: `embeddings (N1 + N2, K, D)`, `mask` and `num_placeholders`."""
    both = (first, second)
    missing = [max(one.embeddings.shape[1] for one in both) - one.embeddings.shape[1] for one in both]
    embeddings = [pad(one.embeddings.to(first.embeddings), (0, 0, 0, more)) for one, more in zip(both, missing)]
    return X2LOutput(
        embeddings=torch.cat(embeddings),
        mask=torch.cat([pad(one.mask, (0, more)) for one, more in zip(both, missing)]),
        num_placeholders=torch.cat([one.num_placeholders for one in both]),
    )
