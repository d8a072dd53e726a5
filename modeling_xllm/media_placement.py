# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Where quasi-linguistic embeddings go: over the placeholder tokens of the text, in order of appearance.

An item owns as many placeholders as the processor wrote for it. A speech clip may fire fewer tokens than that; its
surplus placeholders are kept out of attention and take no position.

Legend: B rows of text, L tokens, N items, K tokens per item (padded), D width.
"""

import torch
from torch import nn
from torch.nn.functional import pad
from transformers.utils import torch_compilable_check

from .x2l_interfaces import X2LOutput


def place_media(
    token_mask: torch.BoolTensor, features: X2LOutput, name: str = "media"
) -> tuple[torch.FloatTensor, torch.BoolTensor]:
    """Spread the items' embeddings over the placeholders of one modality.

    Args:
        token_mask (`torch.BoolTensor` of shape `(B, L)`): True at this modality's placeholder tokens.
        features (`X2LOutput`): `embeddings (N, K, D)`, `mask (N, K)`, `num_placeholders (N,)`.
        name (`str`): modality, for the error message.

    Returns:
        `embeds (B, L, D)`, zero outside the placeholders, and `keep (B, L)`, False at placeholders left empty.

    Raises:
        ValueError: the text has another number of placeholders than the items own; both numbers are named.
    """
    items = (features.embeddings, features.mask, features.num_placeholders)
    embeddings, mask, owned = (tensor.to(token_mask.device) for tensor in items)
    N, K, D = embeddings.shape
    written, expected = token_mask.sum(), owned.sum()
    torch_compilable_check(
        written == expected,
        lambda: (
            f"{name}: the text holds {int(written)} placeholder tokens, but the {N} item(s) given need {int(expected)}"
        ),
    )
    slots = torch.arange(int(owned.max()) if N else 0, device=mask.device)
    in_item = slots < owned[:, None]  # (N, S): the placeholders of each item
    # An item's tokens come first, so slot s holds token s.
    source = embeddings[:, : len(slots)]
    if len(slots) > K:
        source = torch.cat([source, source.new_zeros(N, len(slots) - K, D)], dim=1)
    filled = slots < mask.sum(-1, keepdim=True)
    embeds = embeddings.new_zeros(*token_mask.shape, D).masked_scatter(token_mask[..., None], source[in_item])
    keep = torch.ones_like(token_mask).masked_scatter(token_mask, filled[in_item])
    return embeds, keep


def join_items(first: X2LOutput, second: X2LOutput) -> X2LOutput:
    """The items of both, `first`'s in front: `embeddings (N1 + N2, K, D)`, `mask` and `num_placeholders`."""
    K = max(first.embeddings.shape[1], second.embeddings.shape[1])

    def widen(output: X2LOutput) -> tuple[torch.Tensor, torch.Tensor]:
        missing = K - output.embeddings.shape[1]
        return pad(output.embeddings, (0, 0, 0, missing)), pad(output.mask, (0, missing))

    (embeddings, mask), (more_embeddings, more_mask) = widen(first), widen(second)
    return X2LOutput(
        embeddings=torch.cat([embeddings, more_embeddings.to(embeddings)]),
        mask=torch.cat([mask, more_mask]),
        num_placeholders=torch.cat([first.num_placeholders, second.num_placeholders]),
    )


def find_tokens(inputs_embeds: torch.Tensor, embedding: nn.Module, ids: list[int]) -> torch.LongTensor:
    """Which of the tokens `ids` an embedded text holds, by their embeddings as in transformers' own models.

    Args:
        inputs_embeds (`torch.FloatTensor` of shape `(B, L, D)`): `embedding` of a text, unscaled.

    Returns:
        `torch.LongTensor` of shape `(B, L)`: the id at such a token, -1 everywhere else.
    """
    found = torch.full(inputs_embeds.shape[:2], -1, device=inputs_embeds.device)
    for token_id in ids:
        row = embedding(torch.full((), token_id, device=inputs_embeds.device)).to(inputs_embeds)
        found = found.masked_fill((inputs_embeds == row).all(-1), token_id)
    return found


__all__ = ["find_tokens", "join_items", "place_media"]
