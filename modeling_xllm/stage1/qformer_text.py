# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""The text side of a Q-Former, which stage 1 needs beside the interface and throws away (BLIP-2 sec. 3.1, figure 2).

In BLIP-2 text and queries run through the same layers: they share self-attention and the input LayerNorm, only queries
cross-attend to the picture, and each has a feed-forward block of its own. Text embeddings and text feed-forward blocks
live here, in a module that borrows the interface's Q-Former layer by layer. So the Q-Former trained in stage 1 *is*
the module the composite model has (`use_qformer_text_input=False`): nothing is filtered out when it is handed on.

    encode    text alone, both directions                                        -> ITC
    match     text and queries see each other; queries also see their picture    -> ITM
    decode    text sees all queries and earlier text; queries see no text        -> ITG

Video (deviation; BLIP-2 has images only): each frame's queries see their own frame and, in `match`, the text, but not
other frames' queries: the composite encodes frames one by one. Text sees the queries of every real frame. The windows
that a sound is read in are its frames.

Legend: B texts, L tokens, F frames (1 for an image), N query tokens of a frame, S encoder positions, H, E widths.
"""

from collections.abc import Sequence

import torch
from torch import nn
from transformers import Blip2QFormerConfig, Blip2QFormerModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.bert.modeling_bert import BertPredictionHeadTransform
from transformers.models.blip_2.modeling_blip_2 import (
    Blip2QFormerIntermediate,
    Blip2QFormerLayer,
    Blip2QFormerOutput,
    Blip2TextEmbeddings,
)


def additive_mask(allowed: torch.BoolTensor, dtype: torch.dtype) -> torch.Tensor:
    """(B, queries, keys), True = may see -> (B, 1, queries, keys) to add to attention scores (eager and sdpa)."""
    mask = torch.zeros(allowed.shape, dtype=dtype, device=allowed.device)
    return mask.masked_fill(~allowed, torch.finfo(dtype).min).unsqueeze(1)


class QFormerTextLayer(GradientCheckpointingLayer):
    """Text feed-forward block of one Q-Former layer; attention is borrowed from the layer given to `forward`."""

    def __init__(self, config: Blip2QFormerConfig):
        super().__init__()
        self.intermediate = Blip2QFormerIntermediate(config)
        self.output = Blip2QFormerOutput(config)

    def forward(
        self,
        hidden: torch.Tensor,
        layer: Blip2QFormerLayer,
        mask: torch.Tensor,
        query_states: torch.Tensor | None = None,
        encoder_states: torch.Tensor | None = None,
        num_queries: int = 0,
        encoder_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """One layer for text, or for queries and text: `hidden (B, num_queries + L, H)`, in and out.

        Args:
            layer: of the interface's Q-Former.
            mask (`(B, 1, 1 or rows, keys)`): additive.
            query_states (`(B, F * N, H)`): inputs of `layer` in the queries' own pass; keys and values before the
                text's.
            encoder_states (`(B * F, S, E)`): for the `num_queries` (`F * N`, or 0) queries in `hidden`.
            encoder_mask (`(B * F, 1, 1, S)`): additive.
        """
        if query_states is None:
            attended = layer.attention(hidden, mask)
        else:
            keys = torch.cat([query_states, hidden], dim=1)
            attended = layer.attention(hidden, encoder_hidden_states=keys, encoder_attention_mask=mask)
        queries, text = attended[:, :num_queries], attended[:, num_queries:]
        text = self.output(self.intermediate(text), text)
        if num_queries == 0:
            return text
        if layer.has_cross_attention:
            per_frame = queries.reshape(encoder_states.shape[0], -1, queries.shape[-1])  # (B * F, N, H)
            read = layer.crossattention(
                per_frame, encoder_hidden_states=encoder_states, encoder_attention_mask=encoder_mask
            )
            queries = read.reshape(queries.shape)
        return torch.cat([layer.feed_forward_chunk_query(queries), text], dim=1)


class QFormerTextBranch(nn.Module):
    """Text embeddings, text feed-forward blocks and language-model head around the interface's Q-Former."""

    def __init__(self, config: Blip2QFormerConfig, vocab_size: int, pad_token_id: int, max_positions: int):
        super().__init__()
        sizes = {"vocab_size": vocab_size, "pad_token_id": pad_token_id, "max_position_embeddings": max_positions}
        config = Blip2QFormerConfig(**{**config.to_dict(), **sizes})
        self.embeddings = Blip2TextEmbeddings(config)
        self.layers = nn.ModuleList(QFormerTextLayer(config) for _ in range(config.num_hidden_layers))
        self.lm_transform = BertPredictionHeadTransform(config)
        self.lm_bias = nn.Parameter(torch.zeros(vocab_size))

    def embed(self, qformer: Blip2QFormerModel, input_ids: torch.LongTensor) -> torch.Tensor:
        """(B, L) -> (B, L, H), through the LayerNorm and dropout that text shares with the queries."""
        positions = torch.arange(input_ids.shape[1], device=input_ids.device).unsqueeze(0)
        return _normalize_inputs(qformer, self.embeddings(input_ids, position_ids=positions))

    def encode(
        self, qformer: Blip2QFormerModel, input_ids: torch.LongTensor, attention_mask: torch.Tensor
    ) -> torch.Tensor:
        """Read the text alone, in both directions: (B, L) ids and mask -> (B, L, H)."""
        hidden = self.embed(qformer, input_ids)
        mask = additive_mask(attention_mask.bool()[:, None, :], hidden.dtype)
        for text_layer, layer in zip(self.layers, qformer.encoder.layer):
            hidden = text_layer(hidden, layer, mask)
        return hidden

    def match(
        self,
        qformer: Blip2QFormerModel,
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor,
        query_tokens: torch.Tensor,
        encoder_states: torch.Tensor,
        frame_mask: torch.BoolTensor,
        encoder_mask: torch.BoolTensor | None = None,
    ) -> torch.Tensor:
        """Let queries and text see each other.

        Args:
            input_ids, attention_mask (`(B, L)`): text; 1 = real token.
            query_tokens (`(1, N, H)`): of the interface.
            encoder_states (`(B, F, S, E)`): the pictures; finite also where `frame_mask (B, F)` is False.
            encoder_mask (`(B, F, S)`): real positions of the pictures; `None`: all.

        Returns:
            (B, F * N, H): outputs of the queries; those of masked frames mean nothing.
        """
        B, F = frame_mask.shape
        N, L = query_tokens.shape[1], input_ids.shape[1]
        Q = F * N
        queries = _normalize_inputs(qformer, query_tokens.expand(B, -1, -1).repeat(1, F, 1))  # (B, Q, H)
        hidden = torch.cat([queries, self.embed(qformer, input_ids)], dim=1)
        frame = torch.arange(Q, device=input_ids.device) // N
        sees = torch.ones(Q + L, Q + L, dtype=torch.bool, device=input_ids.device)
        sees[:Q, :Q] = frame[:, None] == frame[None, :]
        keys = torch.cat([frame_mask.repeat_interleave(N, dim=1), attention_mask.bool()], dim=1)
        mask = additive_mask(sees & keys[:, None, :], hidden.dtype)
        encoder_states = encoder_states.flatten(0, 1).to(hidden.dtype)
        if encoder_mask is not None:
            encoder_mask = additive_mask(encoder_mask.flatten(0, 1)[:, None], hidden.dtype)
        for text_layer, layer in zip(self.layers, qformer.encoder.layer):
            hidden = text_layer(hidden, layer, mask, None, encoder_states, Q, encoder_mask)
        return hidden[:, :Q]

    def decode(
        self,
        qformer: Blip2QFormerModel,
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor,
        query_states: Sequence[torch.Tensor],
        query_mask: torch.BoolTensor,
    ) -> torch.Tensor:
        """Causal text that sees every query; queries are not run again and see no text.

        Args:
            input_ids, attention_mask (`(B, L)`): text that starts with `[DEC]`; 1 = real token.
            query_states (each `(B, F * N, H)`): what entered each layer in the queries' own pass.
            query_mask (`(B, F * N)`): True = query of a real frame.

        Returns:
            (B, L, H).
        """
        hidden, L = self.embed(qformer, input_ids), input_ids.shape[1]
        text = attention_mask.bool()[:, None, :].expand(-1, L, -1).tril()
        mask = additive_mask(torch.cat([query_mask[:, None, :].expand(-1, L, -1), text], dim=2), hidden.dtype)
        for text_layer, layer, states in zip(self.layers, qformer.encoder.layer, query_states):
            hidden = text_layer(hidden, layer, mask, states)
        return hidden

    def lm_logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """(..., H) -> (..., vocabulary); the output matrix is the word embedding, as in BERT."""
        return nn.functional.linear(self.lm_transform(hidden), self.embeddings.word_embeddings.weight, self.lm_bias)


def _normalize_inputs(qformer: Blip2QFormerModel, embeds: torch.Tensor) -> torch.Tensor:
    return qformer.dropout(qformer.layernorm(embeds.to(qformer.layernorm.weight.dtype)))
