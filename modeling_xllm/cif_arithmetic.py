# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Arithmetic of CIF: counting fires, sharing frames between tokens, and the weighted sums (equations in `cif`).

Legend: B batch, T frames, U tokens, D width; S_t prefix sums, k_t tokens closed up to and including frame t.
"""

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


def _paired_dots(table: torch.Tensor, index: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
    """`table[index[i]] . vectors[i]` for all i, in blocks that stay in a CPU's cache; at least in float32."""
    exact = torch.promote_types(vectors.dtype, torch.float32)  # fp16 products overflow
    step = max(1, (1 << 18 if vectors.device.type == "cpu" else 1 << 26) // vectors.shape[1])
    blocks = zip(index.split(step), vectors.split(step))
    return torch.cat([(table.index_select(0, ids).to(exact) * block.to(exact)).sum(-1) for ids, block in blocks])


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
        ctx.save_for_backward(hidden, weights, token_ids, frame_starts, source, fired, close_frames)
        out = F.embedding_bag(
            frame_ids, hidden.reshape(B * T, D), token_starts, mode="sum", per_sample_weights=weights
        )
        return out.view(B, U, D)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        hidden, weights, token_ids, frame_starts, source, fired, close_frames = ctx.saved_tensors
        B, T, D = hidden.shape
        U = grad.shape[1]
        hidden, grad = hidden.reshape(B * T, D), grad.reshape(B * U, D).to(hidden.dtype)
        rows = torch.arange(B, device=hidden.device)[:, None]
        grad_hidden = grad_open = grad_close = None
        if ctx.needs_input_grad[0]:
            grad_hidden = F.embedding_bag(token_ids, grad, frame_starts, mode="sum", per_sample_weights=weights)
            grad_hidden = grad_hidden.view(B, T, D)
        if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
            token_of_frame = (fired.clamp(max=U - 1) + rows * U).flatten()
            frame_of_token = (close_frames + rows * T).flatten()
            grad_open = _paired_dots(grad, token_of_frame, hidden).view(B, T)
            grad_close = _paired_dots(hidden, frame_of_token, grad).view(B, U)
        return grad_hidden, grad_open, grad_close, None, None, None


def check_arguments(hidden, alphas, mask, target_lengths, fire_threshold, tail_threshold) -> None:
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


def prepare(hidden, alphas, mask, target_lengths):
    """The arguments where and in the precision in which prefix sums are taken, the weights scaled to their targets."""
    if mask is None:
        mask = torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device)
    if hidden.shape[1] == 0:  # one masked frame keeps the arithmetic defined
        hidden, alphas, mask = F.pad(hidden, (0, 0, 0, 1)), F.pad(alphas, (0, 1)), F.pad(mask, (0, 1))
    # float64 keeps 20,000 frames of rounding below 1e-11; MPS has none, so there the (B, T) vectors visit the CPU.
    device = torch.device("cpu") if hidden.device.type == "mps" else hidden.device
    mask = mask.to(device).bool()
    alphas = torch.where(mask, alphas.to(device), 0).double()
    if target_lengths is not None:
        target_lengths = target_lengths.to(device).long()
        alphas = _scale_to_targets(alphas, mask, target_lengths)
    return hidden, alphas, mask, target_lengths


def _scale_to_targets(alphas: torch.Tensor, mask: torch.Tensor, target_lengths: torch.Tensor) -> torch.Tensor:
    """a_t U / sum(a): the weights of a row sum to its target. A row of zeros is spread evenly over its real frames."""
    total = alphas.sum(1, keepdim=True)
    silent = total <= 0
    spread = torch.where(silent, mask.to(alphas.dtype), alphas)
    total = torch.where(silent, mask.sum(1, keepdim=True).to(alphas.dtype).clamp(min=1), total)
    return spread * (target_lengths.to(alphas.dtype)[:, None] / total)


@torch.no_grad()
def count_fires(sums, mask, target_lengths, fire_threshold, one_token_per_frame, before=0) -> torch.Tensor:
    """k_t, the tokens closed up to and including frame t, `(B, T)` int64; `before (B, 1)` of them before frame 0."""
    fired = torch.floor(sums + (1.0 - fire_threshold)).long()
    real = mask.long().cumsum(1)
    if one_token_per_frame:
        # k_t = min(k_{t-1} + 1, n_t) without its recursion: the tightest of the bounds n_s + (t - s), s <= t.
        fired = real + torch.cummin(fired - real, 1).values.clamp(max=before)
    if target_lengths is not None:
        at_end = real == real[:, -1:]
        target = target_lengths.long()[:, None]
        fired = torch.where(at_end & (real > 0), target, torch.minimum(fired, target))
    return fired


@torch.no_grad()
def pick_width(alphas, sums, lengths, mask, target_lengths, one_token_per_frame, max_tokens) -> int:
    """Width U of the result. One transfer from the device carries it and the verdict on the values."""
    if max_tokens is not None or lengths.numel() == 0:
        return max_tokens or 0
    valid = (alphas >= 0).all() & sums[:, -1].isfinite().all()
    missing = torch.zeros_like(lengths)
    if target_lengths is not None:
        frames = mask.sum(1)
        room = frames if one_token_per_frame else torch.where(frames > 0, target_lengths.long(), 0)
        missing = (target_lengths.long() - room).clamp(min=0)
    width, valid, lost = torch.stack([lengths.max(), valid.long(), missing.max()]).tolist()
    if not valid:
        raise ValueError(
            "alphas must be finite and not negative, got NaN, Inf or a negative weight: check the encoder"
        )
    if lost:
        row = int(missing.argmax())
        frames = int(mask[row].sum())
        hint = " or set one_token_per_frame=False to let several tokens fire in one frame" if frames else ""
        raise ValueError(
            f"target_lengths[{row}] is {int(target_lengths[row])} but the row has {frames} real frames: drop such "
            f"samples{hint}"
        )
    return width


def split_weights(alphas, sums, mask, fired, lengths, U, carry, rest):
    """What each frame gives to the token it leaves open `(B, T)` and to the token it closes `(B, U)`.

    Also the closing frame of every token (T: none) and the end of every token in fractional frames, both `(B, U)`.
    `carry (B, 1)` is the weight gathered before frame 0, a part of `sums`; `rest (B, 1)` divides the last open token.
    """
    B, T = alphas.shape
    lengths = lengths[:, None]
    sums_before, fired_before = torch.cat([carry, sums[:, :-1]], 1), F.pad(fired[:, :-1], (1, 0))
    open_weights = torch.where(fired == fired_before, alphas, sums - fired)
    open_weights = torch.where(fired == fired[:, -1:], open_weights / rest, open_weights)
    open_weights = torch.where(mask & (fired < lengths), open_weights, 0.0)

    tokens = torch.arange(U, device=fired.device).expand(B, U).contiguous()
    fire_index = torch.searchsorted(fired.contiguous(), tokens, right=True)
    frame = fire_index.clamp(max=T - 1)
    missing = tokens + 1 - sums_before.gather(1, frame)
    # A token that opens and closes inside one frame takes 1.0 of it; only the first to close continues an older one.
    close_weights = torch.where(fired_before.gather(1, frame) == tokens, missing, 1.0)
    close_weights = torch.where(fire_index < T, close_weights, 0.0)
    with torch.no_grad():
        part = (missing / alphas.gather(1, frame).clamp(min=1e-12)).clamp(0, 1)
        fire_frames = torch.where(fire_index < T, frame + part, last_end(mask)[:, None])
        fire_frames = torch.where(tokens < lengths, fire_frames, 0)
    return open_weights, close_weights, fire_index, fire_frames


def last_end(mask: torch.Tensor) -> torch.Tensor:
    """Frames up to the end of the last real one, `(B,)` int64; 0 in a row without any."""
    return (mask * torch.arange(1, mask.shape[1] + 1, device=mask.device)).amax(1)


def sum_tokens(hidden, open_weights, close_weights, fired, fire_index, mask) -> torch.Tensor:
    """The tokens `(B, U, D)`: weighted sums of `hidden`, with the weights and indices of `split_weights`."""
    B, U = close_weights.shape
    if U == 0 or B == 0:
        return hidden.new_zeros(B, U, hidden.shape[2])
    vectors = (open_weights, close_weights, fired, fire_index, _last_real_frame(mask))
    return _WeightedSegmentSum.apply(hidden, *(vector.to(hidden.device) for vector in vectors))


def _last_real_frame(mask: torch.Tensor) -> torch.Tensor:
    """For each frame the last real one up to it, so that padding, which may hold NaN, is never even read.

    Before the first real frame: the first; in a row without any: one of another row, as an index that leaves the row.
    """
    B, T = mask.shape
    last = torch.where(mask, torch.arange(T, device=mask.device), -1).cummax(1).values
    last = torch.where(last < 0, mask.long().argmax(1, keepdim=True), last)
    elsewhere = mask.flatten().long().argmax() - torch.arange(B, device=mask.device)[:, None] * T
    return torch.where(mask.any(1, keepdim=True), last, elsewhere)


__all__ = ["check_arguments", "count_fires", "last_end", "pick_width", "prepare", "split_weights", "sum_tokens"]
