# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Continuous integrate-and-fire (CIF): from encoder frames to token-level embeddings, without a loop over frames.

Source: Dong & Xu 2020, "CIF: Continuous Integrate-and-Fire for End-to-End Speech Recognition", and the published CIF
code (a neuron fires at 0.99, a token weighs exactly 1.0). In X-LLM (sec. 3.1) it is the first half of the C-Former.

Every frame `t` carries a weight `a_t` in [0, 1]. A token is closed as soon as the weights gathered for it reach the
threshold, and the frame in which that happens is shared between the closed and the next token:

    a_t          0.4    0.5    0.6    0.3    0.7    0.1
              |------|------|-+----|------|----+--|---|
    S_t          0.4    0.9   1.5    1.8    2.5    2.6
                              ^                ^        ^
                            fire             fire     end: 0.6 > 0.5 left, the tail fires too
    token 0 = 0.4 h0 + 0.5 h1 + 0.1 h2
    token 1 =                   0.5 h2 + 0.3 h3 + 0.2 h4
    token 2 = (                                   0.5 h4 + 0.1 h5) / 0.6

With the prefix sum `S_t = a_0 + ... + a_t` the recursion has a closed form, and that is what is computed here:

    fired after t      k_t = floor(S_t - 0.99 + 1)
    frame t, no fire   a_t               goes to token k_t
    frame t, fires     k_{t-1} + 1 - S_{t-1} closes token k_{t-1};   S_t - k_t opens token k_t
    end                A = S_T - k_T > 0.5: the open token is emitted, divided by A; else it is dropped
    targets U          a_t <- a_t U / S_T first; the last token closes at the total, the end rule is not needed

Deviations from the published code, all on purpose: the end rule runs for every row (there: only for rows with
padding); with targets exactly `U` tokens come out (there: rounding loses the last token of every second utterance);
prefix sums are taken in float64 whatever the dtype of the inputs; an all-zero token still counts.

Legend: B batch, T frames, U tokens, D width; S_t prefix sums, k_t tokens closed up to and including frame t.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from transformers.utils import ModelOutput

from .host_reads import Asked


@dataclass
class CIFState:
    """Where a stream stands between two chunks; each call returns a new one, and the old one stays as it was.

    Args:
        total, fired (`(B,)`): weight of all frames so far, tokens closed so far; `total - fired` is the open token's.
        embedding (`(B, D)`): the open token's weighted sum so far.
        frames, end (`(B,)`): frames so far, masked ones included; frames up to the end of the last real one.
        context (`(B, C, D)`), context_mask (`(B, C)`), integrated: with a conv predictor the last frames received,
            which it reads again, and how many of them are integrated; the others wait for their neighbours.
    """

    total: torch.DoubleTensor | None = None
    fired: torch.LongTensor | None = None
    embedding: torch.FloatTensor | None = None
    frames: int = 0
    end: torch.LongTensor | None = None
    context: torch.FloatTensor | None = None
    context_mask: torch.BoolTensor | None = None
    integrated: int = 0


@dataclass
class CIFOutput(ModelOutput):
    """What CIF fires.

    Args:
        embeddings (`(B, U, D)`), mask (`(B, U)`), lengths (`(B,)`): the tokens, zero where `mask` is False, and their
            number, which may be 0.
        fire_frames (`(B, U)`): end of each token in frames from the start of the row: `f + x` when it was completed
            after the part `x` of frame `f`. Multiply by the frame step for seconds. 0 where `mask` is False.
        alphas (`(B, T)`), quantity (`(B,)`), *optional*: the unscaled weights, 0 on padding, and their sum.
        state ([`CIFState`], *optional*): after a chunk that is not the last, what the next chunk needs.
    """

    embeddings: torch.FloatTensor | None = None
    mask: torch.BoolTensor | None = None
    lengths: torch.LongTensor | None = None
    fire_frames: torch.FloatTensor | None = None
    quantity: torch.FloatTensor | None = None
    alphas: torch.FloatTensor | None = None
    state: CIFState | None = None


def integrate_and_fire(
    hidden: torch.Tensor,
    alphas: torch.Tensor,
    mask: torch.Tensor | None = None,
    target_lengths: torch.Tensor | None = None,
    fire_threshold: float = 0.99,
    tail_threshold: float = 0.5,
    one_token_per_frame: bool = True,
    max_tokens: int | None = None,
    state: CIFState | None = None,
    is_last: bool = True,
) -> CIFOutput:
    """Integrates frame weights and fires one embedding per unit of weight (picture and equations: module docstring).

    Differentiable in `hidden` and `alphas`. O(B*T*D) time and memory; beside `hidden` itself the backward pass keeps
    only index and weight vectors of length T + U per row.

    A stream is given chunk by chunk, of any lengths: `is_last=False`, and each call gets the `state` that the call
    before it returned. Tokens and `fire_frames` are those of the whole, each in the chunk that completes it; the tail
    rule follows the last chunk, which may be empty. A whole is a stream of one chunk.

    Args:
        hidden (`(B, T, D)`): encoder states.
        alphas (`(B, T)`): weights >= 0, ordinarily in [0, 1]; ignored where `mask (B, T)` is 0.
        target_lengths (`(B,)`): the weights are scaled to sum to these, exactly so many tokens come out, and the tail
            rule does not apply. Without it: the published inference rule.
        fire_threshold: a token closes when its gathered weight reaches this; its quantum is 1.0 all the same.
        tail_threshold: weight above which the token left open at the end of a row is emitted.
        one_token_per_frame: as published; weight beyond it waits for the next frame, and with targets the last real
            frame closes what is still missing. False: a frame closes as many tokens as its weight completes, so
            targets may exceed the number of frames. Without targets and with weights <= 1 the two are the same.
        max_tokens: fixed width U. Nothing is then read back from the device (for captured graphs): values are not
            checked, and rows that fire more are cut to it. By default U is the longest row; it may be 0.

    Raises:
        ValueError: shapes that do not fit; a stream with `target_lengths` or `max_tokens`; thresholds out of range;
            NaN, Inf or negative weights; a target beyond the real frames of its row while `one_token_per_frame`, or
            for a row without any.
    """
    _check_arguments(hidden, alphas, mask, target_lengths, fire_threshold, tail_threshold)
    is_stream = state is not None or not is_last
    if is_stream and not (target_lengths is None and max_tokens is None):
        raise ValueError("a stream takes no target_lengths and no max_tokens: its total is known at its end only")
    B, T, D = hidden.shape
    hidden, alphas, mask, target_lengths = _prepare(hidden, alphas, mask, target_lengths)
    held: Any = state
    if held is None:
        zero = torch.zeros_like(mask[:, 0], dtype=torch.long)
        held = CIFState(zero.double(), zero, hidden.new_zeros(B, D), 0, zero)
    if held.embedding.shape != (B, D):
        raise ValueError(f"the state is of a stream with (B, D) = {tuple(held.embedding.shape)}, not {(B, D)}")
    before = held.fired[:, None]
    # One running sum over the whole stream, so that rounding is that of the whole.
    sums = torch.cat([held.total[:, None], alphas], 1).cumsum(1)[:, 1:]
    fired = _count_fires(sums, mask, target_lengths, fire_threshold, one_token_per_frame, before)
    total, sums, fired = sums[:, -1], sums - before, fired - before
    lengths = fired[:, -1]
    if is_last and target_lengths is None:
        lengths = lengths + (sums[:, -1] - lengths > tail_threshold)
    U = _pick_width(alphas, sums, lengths, mask, target_lengths, one_token_per_frame, max_tokens)
    if max_tokens is not None:
        fired, lengths = fired.clamp(0, U).cummax(1).values, lengths.clamp(0, U)
    closed = fired[:, -1:]
    rest = torch.where(lengths[:, None] > closed, sums[:, -1:] - closed + 1e-10, 1.0)
    kept = int(not is_last)  # one place more for the token that stays open
    opening, closing, frames, fire_frames = _split_weights(
        alphas, sums, mask, fired, lengths + kept, U + kept, held.total[:, None] - before, rest
    )
    embeddings = _sum_tokens(hidden, opening, closing, fired, frames, mask)  # (B, U + kept, D)
    if kept or max_tokens is not None:  # there may be no real frame at all to read in place of padding: 0 * NaN
        embeddings = embeddings.masked_fill(~mask.any(1).to(hidden.device)[:, None, None], 0)
    last_end = (mask * torch.arange(1, mask.shape[1] + 1, device=mask.device)).amax(1)
    end = torch.where(mask.any(1), held.frames + last_end, held.end)
    is_closed = torch.arange(U, device=fired.device) < closed
    fire_frames = torch.where(is_closed, held.frames + fire_frames[:, :U], end[:, None]).float().to(hidden.device)
    lengths = lengths.to(hidden.device)
    fired_mask = torch.arange(U, device=hidden.device) < lengths[:, None]
    output = CIFOutput(embeddings, fired_mask, lengths, fire_frames.masked_fill(~fired_mask, 0))
    if is_stream:  # token 0 goes on with what was open before; one that stays open is none of this chunk's
        opened = held.embedding / torch.where(closed == 0, rest, 1.0).to(held.embedding)
        embeddings = torch.cat([embeddings[:, :1] + opened[:, None], embeddings[:, 1:]], 1)
        output.embeddings = embeddings[:, :U].masked_fill(~fired_mask[..., None], 0)
    if not is_last:
        opened = embeddings.gather(1, closed.to(hidden.device)[..., None].expand(-1, -1, D)).squeeze(1)
        output.state = CIFState(total, held.fired + closed.squeeze(1), opened, held.frames + T, end)
    return output


def _paired_dots(
    first: torch.Tensor, ids: torch.Tensor, second: torch.Tensor, other_ids: torch.Tensor
) -> torch.Tensor:
    """`first[ids[i]] . second[other_ids[i]]` for all i in float32, as fp16 products overflow; in blocks that stay in a
    CPU's cache."""
    step = max(1, (1 << 18 if first.device.type == "cpu" else 1 << 26) // first.shape[1])
    blocks = zip(ids.split(step), other_ids.split(step))
    return torch.cat(
        [(first.index_select(0, one).float() * second.index_select(0, two).float()).sum(-1) for one, two in blocks]
    )


class _WeightedSegmentSum(torch.autograd.Function):
    """Tokens as weighted sums of runs of frames, and the gradients, with nothing of size B*T*D in between.

    One list of T + U (frame, token) pairs per row serves both directions, because along it neither index ever falls:
    read token by token it is the forward pass, read frame by frame the gradient of `hidden`.
    """

    @staticmethod
    def forward(ctx, hidden, open_weights, close_weights, fired, fire_index, source):
        B, T, D = hidden.shape
        U = close_weights.shape[1]
        rows = torch.arange(B, device=hidden.device)[:, None]
        steps = torch.arange(T, device=hidden.device)
        tokens = torch.arange(U, device=hidden.device)
        # Frame t opens after k_t tokens have closed; token u closes after f_u frames have opened.
        open_slots, close_slots = steps + fired, fire_index + tokens
        slots = torch.cat([open_slots, close_slots], 1)
        close_frames = source.gather(1, fire_index.clamp(max=T - 1))

        def merge(opened, closed):
            merged = torch.cat([opened, closed], 1)
            return torch.empty_like(merged).scatter_(1, slots, merged).flatten()

        frame_ids = merge(source + rows * T, close_frames + rows * T)
        token_ids = merge(fired.clamp(max=U - 1) + rows * U, (tokens + rows * U).contiguous())
        weights = merge(open_weights.to(hidden.dtype), close_weights.to(hidden.dtype))
        first = torch.zeros_like(rows)
        token_starts = (torch.cat([first, close_slots[:, :-1] + 1], 1) + rows * (T + U)).flatten()
        frame_starts = (torch.cat([first, open_slots[:, :-1] + 1], 1) + rows * (T + U)).flatten()
        ctx.save_for_backward(hidden, weights, frame_ids, token_ids, frame_starts, open_slots, close_slots)
        out = F.embedding_bag(
            frame_ids, hidden.reshape(B * T, D), token_starts, mode="sum", per_sample_weights=weights
        )
        return out.view(B, U, D)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        hidden, weights, frame_ids, token_ids, frame_starts, open_slots, close_slots = ctx.saved_tensors
        B, T, D = hidden.shape
        U = grad.shape[1]
        hidden, grad = hidden.reshape(B * T, D), grad.reshape(B * U, D).to(hidden.dtype)
        grad_hidden = grad_open = grad_close = None
        if ctx.needs_input_grad[0]:
            grad_hidden = F.embedding_bag(token_ids, grad, frame_starts, mode="sum", per_sample_weights=weights)
            grad_hidden = grad_hidden.view(B, T, D)
        if ctx.needs_input_grad[1]:  # and [2], which comes of the same alphas
            if hidden.dtype.itemsize < 4:
                dots = _paired_dots(grad, token_ids, hidden, frame_ids)
            else:
                # It reads no starts: `token_ids` says all.
                dots = torch.ops.aten._embedding_bag_per_sample_weights_backward(
                    grad, hidden, frame_ids, frame_starts, token_ids, 0
                )
            dots = dots.view(B, T + U)
            grad_open, grad_close = dots.gather(1, open_slots), dots.gather(1, close_slots)
        return grad_hidden, grad_open, grad_close, None, None, None


def _check_arguments(hidden, alphas, mask, target_lengths, fire_threshold, tail_threshold) -> None:
    """Raises the ValueErrors of `integrate_and_fire` that need no look at the values."""
    if hidden.dim() != 3:
        raise ValueError(f"hidden must have shape (B, T, D), got {tuple(hidden.shape)}")
    for name, tensor, expected in (
        ("alphas", alphas, hidden.shape[:2]),
        ("mask", mask, hidden.shape[:2]),
        ("target_lengths", target_lengths, hidden.shape[:1]),
    ):
        if tensor is not None and tensor.shape != expected:
            raise ValueError(f"{name} must have shape {tuple(expected)} beside hidden, got {tuple(tensor.shape)}")
    if not 0 < fire_threshold <= 1:
        raise ValueError(f"fire_threshold must lie in (0, 1], got {fire_threshold}")
    if not 0 <= tail_threshold <= 1:
        raise ValueError(f"tail_threshold must lie in [0, 1], got {tail_threshold}")


def _prepare(hidden, alphas, mask, target_lengths):
    """The arguments where and in the precision in which prefix sums are taken, the weights scaled to their targets."""
    if mask is None:
        mask = torch.ones_like(alphas)
    if hidden.shape[1] == 0:  # one masked frame keeps the arithmetic defined
        hidden, alphas, mask = F.pad(hidden, (0, 0, 0, 1)), F.pad(alphas, (0, 1)), F.pad(mask, (0, 1))
    # float64 keeps 20,000 frames of rounding below 1e-11; MPS has none, so there the (B, T) vectors visit the CPU.
    device = torch.device("cpu") if hidden.device.type == "mps" else hidden.device
    mask = mask.to(device).bool()
    alphas = torch.where(mask, alphas.to(device), 0).double()
    if target_lengths is not None:
        target_lengths = target_lengths.to(device).long()
        # a_t U / sum(a); a row of zeros is spread evenly over its real frames.
        alphas = torch.where(alphas.sum(1, keepdim=True) <= 0, mask.double(), alphas)
        total = alphas.sum(1, keepdim=True)
        alphas = alphas * (target_lengths[:, None] / torch.where(total == 0, 1.0, total))
    return hidden, alphas, mask, target_lengths


@torch.no_grad()
def _count_fires(sums, mask, target_lengths, fire_threshold, one_token_per_frame, before) -> torch.Tensor:
    """k_t, the tokens closed up to and including frame t, `(B, T)` int64; `before (B, 1)` of them before frame 0."""
    fired = torch.floor(sums + (1.0 - fire_threshold)).long()
    real = mask.long().cumsum(1)
    if one_token_per_frame:
        # k_t = min(k_{t-1} + 1, n_t) without its recursion: the tightest of the bounds n_s + (t - s), s <= t.
        fired = real + torch.cummin(fired - real, 1).values.clamp(max=before)
    if target_lengths is not None:
        at_end = real == real[:, -1:]
        target = target_lengths[:, None]
        fired = torch.where(at_end & (real > 0), target, torch.minimum(fired, target))
    return fired


@torch.no_grad()
def _pick_width(alphas, sums, lengths, mask, target_lengths, one_token_per_frame, max_tokens) -> int:
    """Width U of the result. One transfer from the device carries it and the verdict on the values."""
    if max_tokens is not None or lengths.numel() == 0:
        return max_tokens or 0
    valid = (alphas >= 0).all() & sums[:, -1].isfinite().all()
    missing, frames = torch.zeros_like(lengths), mask.sum(1)
    if target_lengths is not None:
        room = frames if one_token_per_frame else torch.where(frames > 0, target_lengths, 0)
        missing = (target_lengths - room).clamp(min=0)
    width, valid, lost = Asked(torch.stack([lengths.max(), valid.long(), missing.max()])).values()
    if not valid:
        raise ValueError("alphas must be finite and not negative, got NaN, Inf or less than 0: check the encoder")
    if lost:
        row = int(missing.argmax())
        target, real = int(target_lengths[row]), int(frames[row])
        hint = " or set one_token_per_frame=False to let several tokens fire in one frame" if real else ""
        raise ValueError(f"target_lengths[{row}] is {target} but the row has {real} real frames: drop it{hint}")
    return width


def _split_weights(alphas, sums, mask, fired, lengths, U, carry, rest):
    """What each frame gives to the token it leaves open `(B, T)` and to the token it closes `(B, U)`; the closing
    frame of every token (T: none) and its end in fractional frames, both `(B, U)`. `carry (B, 1)` is the weight
    gathered before frame 0, a part of `sums`; `rest (B, 1)` divides the last open token."""
    B, T = alphas.shape
    sums_before, fired_before = torch.cat([carry, sums[:, :-1]], 1), F.pad(fired[:, :-1], (1, 0))
    open_weights = torch.where(fired == fired_before, alphas, sums - fired)
    open_weights = torch.where(fired == fired[:, -1:], open_weights / rest, open_weights)
    open_weights = torch.where(mask & (fired < lengths[:, None]), open_weights, 0.0)

    tokens = torch.arange(U, device=fired.device).expand(B, U).contiguous()
    fire_index = torch.searchsorted(fired.contiguous(), tokens, right=True)
    frame = fire_index.clamp(max=T - 1)
    missing = tokens + 1 - sums_before.gather(1, frame)
    # A token that opens and closes inside one frame takes 1.0 of it; only the first to close continues an older one.
    close_weights = torch.where(fired_before.gather(1, frame) == tokens, missing, 1.0)
    close_weights = torch.where(fire_index < T, close_weights, 0.0)
    with torch.no_grad():
        fire_frames = frame + (missing / alphas.gather(1, frame).clamp(min=1e-12)).clamp(0, 1)
    return open_weights, close_weights, fire_index, fire_frames


def _sum_tokens(hidden, open_weights, close_weights, fired, fire_index, mask) -> torch.Tensor:
    """The tokens `(B, U, D)`: weighted sums of `hidden`, with the weights and indices of `_split_weights`."""
    B, U = close_weights.shape
    if U == 0 or B == 0:
        return hidden.new_empty(B, U, hidden.shape[2])
    vectors = (open_weights, close_weights, fired, fire_index, _last_real_frame(mask))
    return _WeightedSegmentSum.apply(hidden, *(vector.to(hidden.device) for vector in vectors))


def _last_real_frame(mask: torch.Tensor) -> torch.Tensor:
    """For each frame the last real one up to it, so that padding, which may hold NaN, is not read. Before the first
    real frame: that one; in a row without any: one of another row, as an index that leaves the row."""
    B, T = mask.shape
    first = mask.long().argmax(1, keepdim=True)
    last = torch.where(mask, torch.arange(T, device=mask.device), first).cummax(1).values
    elsewhere = mask.flatten().long().argmax() - torch.arange(B, device=mask.device)[:, None] * T
    return torch.where(mask.any(1, keepdim=True), last, elsewhere)
