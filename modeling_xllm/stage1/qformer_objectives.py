# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Stage-1 objectives of the Q-Former as plain functions of tensors (BLIP-2 section 3.1; ALBEF for the hard negatives).

    s(i, t) = max over the queries q of item i of <f_iq, g_t>,  |f| = |g| = 1
    ITC     = 1/2 (CE(s / temperature, own text) + CE(s^T / temperature, own item))
    ITM     = CE of "do they belong together" on own pairs and on hard negatives drawn by softmax(s / temperature)
    ITG     = CE of each caption token given the queries and the tokens before it

Deviation: equal captions may count as positives of each other (`equal_texts`), and gradients cross ranks exactly,
where BLIP-2 lets none through the gathered features: the gradient is that of one process with the whole batch.

Legend: B pairs of this rank, W ranks, I items, T texts, Q queries of an item (all frames), P projection width.
"""

import torch
from torch import distributed, nn

from xllm.modeling_xllm.cformer import world_size


HARD_NEGATIVE_FLOOR = 1e-4  # keeps every negative drawable, as in BLIP-2


def max_similarity(media: torch.Tensor, text: torch.Tensor, query_mask: torch.Tensor | None = None) -> torch.Tensor:
    """Cosine `(I, T)` of each text `(T, P)` with the best query of each item `(I, Q, P)`, in fp32 also under autocast.

    Both hold unit vectors; queries where `query_mask (I, Q)` is False (masked frames) never count.
    """
    with torch.autocast(device_type=media.device.type, enabled=False):
        scores = torch.einsum("iqp,tp->iqt", media.float(), text.float())
        if query_mask is not None:
            scores = scores.masked_fill(~query_mask.bool().unsqueeze(-1), float("-inf"))
        return scores.max(dim=1).values


def pair_positives(
    input_ids: torch.LongTensor, all_input_ids: torch.LongTensor, offset: int, equal_texts: bool
) -> torch.BoolTensor:
    """Which of all ranks' texts `(W * B, L)` belong to which of this rank's items, `(B, W * B)`.

    Padding is filled with one id; `offset` is the place of this rank's first text among all. With `equal_texts` a text
    is as much its item's caption as its equal; without, the own pair alone is positive.
    """
    rows = torch.arange(input_ids.shape[0], device=input_ids.device)
    columns = torch.arange(all_input_ids.shape[0], device=input_ids.device)
    own = columns[None, :] == rows[:, None] + offset
    return own | (input_ids[:, None, :] == all_input_ids[None, :, :]).all(dim=-1) if equal_texts else own


def contrastive_loss(
    media_to_text: torch.Tensor, text_to_media: torch.Tensor, positives: torch.Tensor, label_smoothing: float
) -> torch.Tensor:
    """ITC in both directions, from similarities / temperature `(B, W * B)`. `positives (B, W * B)` has at least one
    True in each row; they share the target equally.
    """
    targets = positives.to(media_to_text.dtype)
    targets = targets / targets.sum(dim=1, keepdim=True)
    scores = torch.cat([media_to_text, text_to_media])
    return nn.functional.cross_entropy(scores, targets.repeat(2, 1), label_smoothing=label_smoothing)


@torch.no_grad()
def draw_hard_negatives(
    scores: torch.Tensor, positives: torch.BoolTensor, hardest: bool = False
) -> tuple[torch.LongTensor, torch.BoolTensor]:
    """One negative per row, drawn with probability softmax(scores) + 1e-4 among the pairs that are not positive.

    Args:
        scores, positives (`(B, W * B)`): similarities / temperature; pairs never drawn.
        hardest: take the most likely one instead of drawing (for an evaluation that repeats).

    Returns:
        indices `(B,)` and found `(B,)`: False where a row has no negative; its index is then not to be used.
    """
    found = (~positives).any(dim=1)
    weights = (scores.float().softmax(dim=1) + HARD_NEGATIVE_FLOOR).masked_fill(positives, 0.0)
    weights = torch.where(found[:, None], weights, positives.float())
    indices = weights.argmax(dim=1) if hardest else torch.multinomial(weights, 1).squeeze(1)
    return indices, found


def mean_over_ranks(total: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
    """This rank's part of a mean over the items of all ranks: the mean of the parts is the sum of the `total`s over
    the sum of the `count`s; 0 if there is no item.
    """
    if world_size() > 1:
        count = count.clone()
        distributed.all_reduce(count)
        total = total * world_size()
    return total / count.clamp(min=1)


def matching_loss(logits: torch.Tensor, labels: torch.LongTensor, kept: torch.BoolTensor) -> torch.Tensor:
    """ITM: mean cross-entropy of `logits (rows, 2)` over all ranks' `kept (rows,)` rows; label 1 = together."""
    losses = nn.functional.cross_entropy(logits.float(), labels, reduction="none")
    return mean_over_ranks((losses * kept).sum(), kept.sum())


def captioning_loss(logits: torch.Tensor, targets: torch.LongTensor, label_smoothing: float) -> torch.Tensor:
    """ITG: mean cross-entropy over all ranks' real target tokens, (tokens, V) and (tokens,)."""
    total = nn.functional.cross_entropy(logits.float(), targets, label_smoothing=label_smoothing, reduction="sum")
    return mean_over_ranks(total, torch.tensor(targets.shape[0], device=targets.device))


def world_rank() -> int:
    """This process's rank; 0 outside torch.distributed."""
    return distributed.get_rank() if world_size() > 1 else 0


class _GatherRanks(torch.autograd.Function):
    """All ranks' tensors, one after the other; the gradient of the own part is summed over the ranks that used it.

    `torch.distributed.nn.functional.all_gather` is deprecated in favour of a private function. Over gloo it takes the
    numbers of a transposed gradient, which an einsum gives, in the wrong order (torch 2.14.1, two ranks).
    """

    @staticmethod
    def forward(ctx, tensor: torch.Tensor) -> torch.Tensor:
        parts = [torch.empty_like(tensor) for _ in range(world_size())]
        distributed.all_gather(parts, tensor)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> torch.Tensor:
        gradient = gradient.clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(gradient)
        return gradient.chunk(world_size())[world_rank()]


def gather_ranks(tensor: torch.Tensor, padded_shape: tuple[int, ...] = (), value: int = 0) -> torch.Tensor:
    """(B, ...) of this rank -> (W * B, ...) of all ranks in order, with exact gradients. The same tensor for W = 1.

    `padded_shape`: sizes of the leading axes after the first, the same on every rank; the tensor is first filled up
    to them with `value`. Without it, shapes are equal on every rank.
    """
    if world_size() == 1:
        return tensor
    for axis, size in enumerate(padded_shape, start=1):
        missing = size - tensor.shape[axis]
        tensor = nn.functional.pad(tensor, (0, 0) * (tensor.dim() - axis - 1) + (0, missing), value=value)
    return _GatherRanks.apply(tensor.contiguous())


def common_sizes(batch: int, *sizes: int, device: torch.device) -> list[int]:
    """Largest of each of `sizes` over the ranks; a `ValueError` where their batches differ: negatives could not be
    shared."""
    if world_size() == 1:
        return list(sizes)
    mine = torch.tensor([batch, *sizes], device=device)
    everyone = [torch.empty_like(mine) for _ in range(world_size())]
    distributed.all_gather(everyone, mine)
    table = torch.stack(everyone).tolist()
    batches, *columns = zip(*table)
    if set(batches) != {batch}:
        raise ValueError(f"ranks hold batches of {list(batches)} pairs, not of one size (dataloader_drop_last=True)")
    return [max(column) for column in columns]
