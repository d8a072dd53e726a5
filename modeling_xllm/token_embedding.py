# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Token ids to embeddings, with an error that says what is wrong instead of an index out of range."""

import torch
from torch import nn
from transformers.utils import torch_compilable_check


def embed_tokens(embedding: nn.Embedding, input_ids: torch.LongTensor) -> torch.FloatTensor:
    """`embedding(input_ids)`, `(B, L)` to `(B, L, D)`.

    Raises:
        ValueError: an id outside the vocabulary; the message gives its range and that of the ids.
    """
    rows = embedding.num_embeddings
    if input_ids.shape[1] > 1:  # single tokens come from our own logits; the check would stall each decoding step
        torch_compilable_check(
            ((input_ids >= 0) & (input_ids < rows)).all(),
            lambda: (
                f"input_ids must lie in 0..{rows - 1}, got {int(input_ids.min())}..{int(input_ids.max())}: the "
                "tokenizer is not this model's (of ChatGLM-6B two vocabularies were published, 130528 and 150528)"
            ),
        )
    return embedding(input_ids)


__all__ = ["embed_tokens"]
