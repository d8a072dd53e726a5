# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Samples of a batch that share rows of the language model in training, none of which sees another.

A batch of samples of unequal lengths is computed as if all were as long as the longest. Packed, its real tokens (of
speech only what was fired) stand one sample behind the other in fewer rows: each keeps the positions that it has
alone, and the mask is one of blocks, as transformers makes it of positions that begin anew.

Legend: B samples, L tokens, P rows of W tokens, D width.
"""

import heapq
import inspect
from typing import Any

import torch
from transformers import Cache
from transformers.masking_utils import create_causal_mask, create_masks_for_generate
from transformers.utils.generic import is_flash_attention_requested

from .host_reads import Asked, true_places
from .language_models import LanguageModel, PrefixLanguageModel, language_model_of
from .real_tokens import RealTokens, computes_real_tokens_only


MOST_PADDING = 1.05  # positions computed for each real token


class PackedTokens:
    """The attended tokens of B samples, `(B, L)`, moved into P rows of W tokens; in `attention_mask (B, L)` 1 = real.

    Args:
        width (`int`): of the language model: per token, the products of a layer cost as much as attention to six times
            as many others. As many rows are made as let both together cost least, a twentieth at most being padding.
        in_one (`bool`): a single row, for attention that computes nothing between samples (flash attention).
    """

    def __init__(self, attention_mask: torch.Tensor, width: int, in_one: bool = False):
        real = attention_mask.bool()
        place = real.cumsum(1) - 1  # of each column's last real token in its sample
        self.lengths = lengths = Asked(real.sum(1)).values()
        rows = _shared_rows(lengths, width, in_one)
        P, W = len(rows), max(1, *(sum(length for _, length in row) for row in rows))
        first = torch.zeros(len(real), dtype=torch.long, device="cpu")  # where each sample begins, row after row
        owners, places = torch.full((P, W), -1, device="cpu"), torch.zeros(P, W, dtype=torch.long, device="cpu")
        for number, row in enumerate(rows):
            start = 0
            for sample, length in row:
                first[sample], end = number * W + start, start + length
                owners[number, start:end], places[number, start:end] = sample, torch.arange(length, device="cpu")
                start = end
        # The number of the sample's first real token among all, one row after another; where no token is, that of one.
        before = torch.tensor([0, *lengths], device="cpu").cumsum(0)[:-1]
        order = before[owners.clamp(min=0)] + places
        host = torch.cat([first, owners.flatten(), places.flatten(), order.flatten()])
        parts = host.to(real.device, non_blocking=True).split([len(first), P * W, P * W, P * W])
        target = parts[0][:, None] + place  # (B, L)
        self.shape, self.empty = (P, W), place < 0
        self.target = target.masked_fill(self.empty, 0)
        self.owners, self.places = parts[1].view(P, W), parts[2].view(P, W)  # sample (-1: none), and place in it
        self.source = true_places(real, max(1, sum(lengths)))[parts[3]]
        self.mask = self.owners >= 0

    def take(self, values: torch.Tensor) -> torch.Tensor:
        """`(..., B, L)` to `(..., P, W)`, e.g. positions; 0 where no token is."""
        taken = values.flatten(-2)[..., self.source].unflatten(-1, self.shape)
        return taken.masked_fill(~self.mask, 0)

    def take_states(self, states: torch.Tensor) -> torch.Tensor:
        """`(B, L, D)` to `(P, W, D)`."""
        return states.flatten(0, 1)[self.source].unflatten(0, self.shape)

    def put_back(self, states: torch.Tensor) -> torch.Tensor:
        """`(P, W, D)` to `(B, L, D)`; see `RealTokens.put_back`."""
        return states.flatten(0, 1)[self.target].masked_fill(self.empty[..., None], 0)

    def seen(self, language: LanguageModel, inputs_embeds: torch.Tensor, layout: dict[str, torch.Tensor], _) -> Any:
        """What the language model takes as `attention_mask` of `(P, W, D)`: each sample sees itself as ever."""
        types = layout.get("token_type_ids") if isinstance(language, PrefixLanguageModel) else None
        prefix = None if types is None else self.owners.masked_fill(types != 0, -1)
        if language.sees_all_before():  # transformers would look whether samples share rows, and wait
            same = self.owners[:, None, :, None] == self.owners[:, None, None, :]  # (P, 1, W, W)
            seen = self.places[:, None, :, None] >= self.places[:, None, None, :]
            return same & (
                seen if prefix is None else seen | ((prefix >= 0)[:, None, :, None] & (prefix >= 0)[:, None, None])
            )
        given: Any = {"config": language.config, "inputs_embeds": inputs_embeds, "attention_mask": None}
        given |= {"past_key_values": None, "position_ids": self.places}
        return (
            create_masks_for_generate(**given)
            if prefix is None
            else create_causal_mask(**given, block_sequence_ids=prefix)
        )


def _shared_rows(lengths: list[int], width: int, in_one: bool) -> list[list[tuple[int, int]]]:
    """Rows of (sample, length), as many as cost least; longest samples first, each into the row that is shortest."""
    order = sorted(range(len(lengths)), key=lambda sample: -lengths[sample])
    total, longest = sum(lengths), max(lengths)
    best, cost = [[(sample, lengths[sample]) for sample in order]], total * (6 * width + total)
    for number in range(2, 1 if in_one else len(lengths) + 1):
        heap: list[tuple[int, int]] = [(0, row) for row in range(number)]
        rows: list[list[tuple[int, int]]] = [[] for _ in range(number)]
        for sample in order:
            filled, row = heap[0]
            rows[row].append((sample, lengths[sample]))
            heapq.heapreplace(heap, (filled + lengths[sample], row))
        W = max(filled for filled, _ in heap)
        own = number * W * (6 * width + W)
        if own < cost and number * W <= MOST_PADDING * total:
            best, cost = rows, own
        if longest == W:  # more rows would be as wide
            break
    return best


def packing_problem(model: Any) -> str:
    """Why samples cannot share rows of the language model of an X-LLM, in a few words; empty where they can."""
    inner = getattr(model, "model", model).language_model
    kind = inner.config.model_type
    # Of the kinds of layers that there are, those whose mask or positions keep samples apart; convolutions do not.
    kept_apart = {"full_attention", "sliding_attention", "chunked_attention", "indexed_attention"}
    if inner._is_stateful or not kept_apart.issuperset(getattr(inner.config, "layer_types", None) or ()):
        return f"a {kind} hands a state on from token to token, and with it one sample to the next"
    if not inner._supports_attention_backend:
        return f"the attention of a {kind} is its own and may not read the mask that keeps samples apart"
    return ""


def packs_by_default(model: Any) -> bool:
    """Whether samples share rows unless a recipe says otherwise: where all layers take the positions and the mask that
    are made here, so that no language model can let one see another."""
    if packing_problem(model) or not language_model_of(model.config).sees_all_before():
        return False
    return "position_ids" in inspect.signature(model.model.language_model.forward).parameters


def computed_tokens(
    model, packing: bool, attention_mask: torch.Tensor | None, past_key_values: Cache | None, use_cache, kwargs: dict
) -> RealTokens | PackedTokens | None:
    """What `model` computes of a batch: in training its samples packed, the real tokens of each where that is hardly
    more or in evaluation, or `None` for all of it. A `ValueError` where samples cannot share rows."""
    how = attention_mask, past_key_values, use_cache, kwargs
    is_wanted = model.training or use_cache is False
    if attention_mask is None or not is_wanted or not computes_real_tokens_only(model, *how):
        return None
    if not packing or not model.training:
        return RealTokens(attention_mask)
    if problem := packing_problem(model):
        raise ValueError(f"packing: {problem}")
    config = model.config.get_text_config()
    packed = PackedTokens(attention_mask, config.hidden_size, is_flash_attention_requested(config))
    if MOST_PADDING * packed.shape[0] * packed.shape[1] < len(packed.lengths) * max(packed.lengths):
        return packed
    return RealTokens(attention_mask, packed.lengths)


__all__ = ["PackedTokens", "computed_tokens", "packing_problem", "packs_by_default"]
