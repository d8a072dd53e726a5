# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Continuous integrate-and-fire (CIF): from encoder frames to token-level embeddings, without a loop over frames.

Source: Dong & Xu 2020, "CIF: Continuous Integrate-and-Fire for End-to-End Speech Recognition"; X-LLM (arXiv
2305.04160) sec. 3.1, where CIF is the first half of the C-Former. The constants are those of the published CIF code (a
neuron fires at 0.99, a token weighs exactly 1.0).

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
prefix sums are taken in float64 whatever the dtype of the inputs; an all-zero token still counts; padding is zeroed
before the convolution of the weight predictor, so that a row does not depend on the batch it is in.

Legend: B batch, T frames, U tokens, D width.
"""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F
from transformers import initialization as init
from transformers.utils import ModelOutput

from .cif_arithmetic import check_arguments, count_fires, last_end, pick_width, prepare, split_weights, sum_tokens
from .configuration_cformer import CFormerConfig


@dataclass
class CIFState:
    """Where a stream stands between two chunks; each call returns a new one, and the old one stays as it was.

    Args:
        total (`torch.DoubleTensor` of shape `(B,)`): weight of all frames integrated so far.
        fired (`torch.LongTensor` of shape `(B,)`): tokens closed so far; `total - fired` is the open token's weight.
        embedding (`torch.FloatTensor` of shape `(B, D)`): the open token's weighted sum so far.
        frames (`int`): frames integrated so far, masked ones included.
        end (`torch.LongTensor` of shape `(B,)`): frames up to the end of the last real one.
        context (`torch.FloatTensor` of shape `(B, C, D)`), context_mask (`(B, C)`), integrated (`int`): of
            [`ContinuousIntegrateAndFire`] with a conv predictor: the last frames received, which it reads again, and
            how many of them are integrated already; the others wait for their right neighbours.
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
        embeddings (`torch.FloatTensor` of shape `(B, U, D)`): the tokens, zero behind the last one of a row.
        mask (`torch.BoolTensor` of shape `(B, U)`): True where a token fired.
        lengths (`torch.LongTensor` of shape `(B,)`): tokens per row; 0 is possible.
        fire_frames (`torch.FloatTensor` of shape `(B, U)`): end of each token, in frames from the start of the row:
            `f + x` when it was completed after the part `x` of frame `f`. Multiply by the frame step for seconds. 0
            where `mask` is False.
        quantity (`torch.FloatTensor` of shape `(B,)`, *optional*): sum of the unscaled weights, i.e. the soft token
            count.
        alphas (`torch.FloatTensor` of shape `(B, T)`, *optional*): the unscaled weights, 0 on padding.
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
    before it returned. The tokens are those of the whole, each in the chunk that completes it; the tail rule follows
    the last chunk, which may be empty.

    Args:
        hidden (`torch.FloatTensor` of shape `(B, T, D)`): encoder states.
        alphas (`torch.FloatTensor` of shape `(B, T)`): weights >= 0, ordinarily in [0, 1]; ignored where `mask` is 0.
        mask (`torch.BoolTensor` of shape `(B, T)`, *optional*): True on real frames; all are real by default.
        target_lengths (`torch.LongTensor` of shape `(B,)`, *optional*): the weights are scaled to sum to these,
            exactly so many tokens come out, and the tail rule does not apply. Without it: the published inference
            rule.
        fire_threshold (`float`): a token closes when its gathered weight reaches this; its quantum is 1.0 all the
            same.
        tail_threshold (`float`): weight above which the token left open at the end of a row is emitted.
        one_token_per_frame (`bool`): as published; weight beyond it waits for the next frame, and with targets the
            last real frame closes what is still missing. False: a frame closes as many tokens as its weight completes,
            so targets may exceed the number of frames. Without targets and with weights <= 1 the two are the same.
        max_tokens (`int`, *optional*): fixed width U. Nothing is then read back from the device (for captured graphs):
            values are not checked, and rows that fire more are cut to it. By default U is the longest row.
        state ([`CIFState`], *optional*): of the chunk before; None at the start of a stream.
        is_last (`bool`): whether the rows end here.

    Returns:
        [`CIFOutput`], its `fire_frames` counted from the start of the stream, without `quantity` and `alphas`. A row
        that fires nothing has length 0.

    Raises:
        ValueError: shapes that do not fit; a stream with `target_lengths` or `max_tokens`; thresholds out of range;
            NaN, Inf or negative weights; a target beyond the real frames of its row while `one_token_per_frame`, or
            for a row without any.

    Source: Dong & Xu 2020, Algorithm 1; thresholds of the published CIF code.
    """
    check_arguments(hidden, alphas, mask, target_lengths, fire_threshold, tail_threshold)
    if state is not None or not is_last:
        if target_lengths is not None or max_tokens is not None:
            raise ValueError(
                "a stream takes no target_lengths and no max_tokens: its total is not known before its end"
            )
        return _integrate_chunk(
            hidden, alphas, mask, state, is_last, fire_threshold, tail_threshold, one_token_per_frame
        )  # fmt: skip
    hidden, alphas, mask, target_lengths = prepare(hidden, alphas, mask, target_lengths)
    sums = alphas.cumsum(1)
    fired = count_fires(sums, mask, target_lengths, fire_threshold, one_token_per_frame)
    lengths = fired[:, -1]
    if target_lengths is None:
        lengths = lengths + (sums[:, -1] - lengths > tail_threshold)
    U = pick_width(alphas, sums, lengths, mask, target_lengths, one_token_per_frame, max_tokens)
    if max_tokens is not None:
        fired, lengths = fired.clamp(0, U).cummax(1).values, lengths.clamp(0, U)
    has_tail = lengths > fired[:, -1]
    rest = torch.where(has_tail, sums[:, -1] - fired[:, -1] + 1e-10, 1.0)[:, None]
    carry = torch.zeros_like(rest)
    *parts, fire_frames = split_weights(alphas, sums, mask, fired, lengths, U, carry, rest)
    embeddings = sum_tokens(hidden, *parts[:2], fired, parts[2], mask)
    lengths = lengths.to(hidden.device)
    fired_mask = torch.arange(U, device=hidden.device) < lengths[:, None]
    return CIFOutput(embeddings, fired_mask, lengths, fire_frames.float().to(hidden.device))


def _integrate_chunk(
    hidden, alphas, mask, state, is_last, fire_threshold, tail_threshold, one_token_per_frame
) -> CIFOutput:  # fmt: skip
    """Continues a stream: the open token comes in with the state and, the stream not ending here, goes out with it."""
    B, T, D = hidden.shape
    hidden, alphas, mask, _ = prepare(hidden, alphas, mask, None)
    if state is None:
        zero = torch.zeros_like(mask[:, 0], dtype=torch.long)
        state = CIFState(zero.double(), zero, hidden.new_zeros(B, D), 0, zero)
    if state.embedding.shape != (B, D):
        raise ValueError(f"the state is of a stream with (B, D) = {tuple(state.embedding.shape)}, not {(B, D)}")
    before = state.fired[:, None]
    # One running sum over the whole stream, so that rounding is that of the whole.
    sums = torch.cat([state.total[:, None], alphas], 1).cumsum(1)[:, 1:]
    fired = count_fires(sums, mask, None, fire_threshold, one_token_per_frame, before)
    total, sums, fired = sums[:, -1], sums - before, fired - before
    closed, weight = fired[:, -1], sums[:, -1] - fired[:, -1]
    has_tail = (weight > tail_threshold) & is_last
    U = pick_width(alphas, sums, closed + has_tail, mask, None, one_token_per_frame, None)
    *parts, fire_frames = split_weights(
        alphas, sums, mask, fired, closed + 1, U + 1, state.total[:, None] - before, torch.ones_like(weight)[:, None]
    )
    tokens = sum_tokens(hidden, *parts[:2], fired, parts[2], mask)
    tokens = torch.cat([tokens[:, :1] + state.embedding[:, None], tokens[:, 1:]], 1)
    place = torch.arange(U + 1, device=mask.device)
    end = torch.where(mask.any(1), state.frames + last_end(mask), state.end)
    fire_frames = torch.where(place < closed[:, None], state.frames + fire_frames, end[:, None])
    closed, weight, has_tail = (value.to(hidden.device)[:, None] for value in (closed, weight, has_tail))
    place = place.to(hidden.device)
    is_open = place == closed
    opened = tokens.masked_fill(~is_open[..., None], 0).sum(1)
    tokens = tokens / torch.where(is_open & has_tail, weight + 1e-10, 1.0)[..., None].to(tokens.dtype)
    fired_mask = place[:U] < closed + has_tail
    return CIFOutput(
        embeddings=tokens[:, :U].masked_fill(~fired_mask[..., None], 0),
        mask=fired_mask,
        lengths=fired_mask.sum(1),
        fire_frames=fire_frames[:, :U].float().to(hidden.device).masked_fill(~fired_mask, 0),
        state=None if is_last else CIFState(total, state.fired + fired[:, -1], opened, state.frames + T, end),
    )


class ContinuousIntegrateAndFire(nn.Module):
    """CIF with its weight predictor and output projection.

    `alphas = sigmoid(w . f(hidden) + b)` with `f` by `config.cif_predictor`: "conv" (as published: Conv1d over
    `cif_conv_kernel` frames, dropout, no activation), "dense" (Linear, ReLU, dropout) or "linear" (identity). A Linear
    without bias follows where `config.cif_hidden_size` differs from `config.encoder_hidden_size`.

    Source: Dong & Xu 2020 sec. 3; weight predictor of the published CIF code.
    """

    def __init__(self, config: CFormerConfig):
        super().__init__()
        self.config = config
        width = config.encoder_hidden_size
        predictor_size = config.cif_predictor_size or width
        self.conv = self.dense = self.output_proj = None
        if config.cif_predictor == "conv":
            kernel = config.cif_conv_kernel
            self.conv = nn.Conv1d(width, predictor_size, kernel, padding=kernel // 2)
        elif config.cif_predictor == "dense":
            self.dense = nn.Linear(width, predictor_size)
        self.dropout = nn.Dropout(config.cif_dropout)
        self.weight_proj = nn.Linear(width if config.cif_predictor == "linear" else predictor_size, 1)
        if config.cif_hidden_size != width:
            self.output_proj = nn.Linear(width, config.cif_hidden_size, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier-uniform linear maps with zero bias, as published; a convolution starts as torch starts one."""
        for linear in filter(None, (self.dense, self.weight_proj, self.output_proj)):
            init.xavier_uniform_(linear.weight)
            if linear.bias is not None:
                init.zeros_(linear.bias)

    def predict_alphas(self, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Frame weights `(B, T)` in float32, 0 where `mask` is 0."""
        if hidden.shape[1] == 0:  # a convolution refuses to see nothing
            return hidden.new_zeros(mask.shape, dtype=torch.float32)
        features = hidden.masked_fill(~mask[..., None], 0)
        if self.conv is not None:
            features = self.conv(features.transpose(1, 2)).transpose(1, 2)
        elif self.dense is not None:
            features = F.relu(self.dense(features))
        if self.config.cif_predictor != "linear":
            features = self.dropout(features)
        alphas = self.weight_proj(features).squeeze(-1).float().sigmoid()
        return alphas.masked_fill(~mask, 0)

    def forward(
        self,
        hidden: torch.Tensor,
        mask: torch.Tensor | None = None,
        target_lengths: torch.Tensor | None = None,
        max_tokens: int | None = None,
        state: CIFState | None = None,
        is_last: bool = True,
    ) -> CIFOutput:
        """Fires `hidden (B, T, D)` into `(B, U, cif_hidden_size)`; arguments and errors as [`integrate_and_fire`].

        `quantity` and `alphas` of the output are the weights before any scaling to `target_lengths`, for the quantity
        loss. In a stream they are those of the frames that this call integrated: with a conv predictor a frame waits
        for the `cif_conv_kernel // 2` frames after it, at the latest for the last chunk.
        """
        mask = torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device) if mask is None else mask.bool()
        start, end = 0, hidden.shape[1]
        reach = 0 if self.conv is None else self.conv.kernel_size[0] // 2
        if state is not None:
            hidden, mask = torch.cat([state.context, hidden], 1), torch.cat([state.context_mask, mask], 1)
            start, end = state.integrated, hidden.shape[1]
        if not is_last:
            end = max(start, end - reach)
        alphas = self.predict_alphas(hidden, mask)[:, start:end]
        fired = integrate_and_fire(
            hidden[:, start:end],
            alphas,
            mask[:, start:end],
            target_lengths,
            fire_threshold=self.config.cif_fire_threshold,
            tail_threshold=self.config.cif_tail_threshold,
            one_token_per_frame=self.config.cif_one_token_per_frame,
            max_tokens=max_tokens,
            state=state,
            is_last=is_last,
        )
        if fired.state is not None:
            kept = max(0, end - reach)
            fired.state.context, fired.state.context_mask = hidden[:, kept:], mask[:, kept:]
            fired.state.integrated = end - kept
        if self.output_proj is not None:
            fired.embeddings = self.output_proj(fired.embeddings)
        fired.quantity, fired.alphas = alphas.sum(1), alphas
        return fired


__all__ = ["CIFOutput", "CIFState", "ContinuousIntegrateAndFire", "integrate_and_fire"]
