# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Retrieval by a Q-Former of stage 1: which caption belongs to a picture, and which picture to a caption.

By image-text contrast alone (the cosine of a text with the best query of a picture, of a film of any frame), without
BLIP-2's second look by its matching head. R@k of a picture is 1 if any of its captions is among the k nearest of all.
Captions that read alike belong to all pictures that have one of them.
"""

from typing import Any

import torch

from xllm.modeling_xllm.stage1.qformer_objectives import max_similarity
from xllm.training.batches.collator import XLLMDataCollator, pad_rows, text_ids
from xllm.training.data.dataset import ChatDataset
from xllm.training.data.media_rows import DataError
from xllm.training.data.samples import Sample
from xllm.training.evaluation.intervals import bootstrap_interval
from xllm.training.evaluation.other_media import media_key
from xllm.training.progress import ProgressLine


KS = (1, 5, 10)
DIRECTIONS = ("media_to_text", "text_to_media")


def captions_of(sample: Sample) -> list[str]:
    """The texts that belong to a sample's medium: its captions, or the last answer of its conversation.

    Raises:
        DataError: it has not one medium, or no text.
    """
    texts = sample.answers
    if sample.messages is not None:
        texts = ["".join(part["text"] for part in sample.messages[-1]["content"] if part["type"] == "text")]
    texts = [text.strip() for text in texts if text.strip()]
    if (count := sum(part["type"] != "text" for part in sample.parts())) != 1 or not texts:
        lacks = "no caption" if not texts else f"{count} media"
        raise DataError(f"{sample.where}: has {lacks}: retrieval is over rows of one medium and its captions")
    return texts


@torch.no_grad()
def embed_media(learner: Any, data: ChatDataset, batch_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Unit vectors `(N, Q, P)` of the media of `data`, and which of them are of real frames, `(N, Q)`."""
    row = learner.config.row
    collator = XLLMDataCollator(
        data.processor, task="contrast", modality=learner.config.modality, text_tokenizer=learner.tokenizer
    )
    line, vectors, masks = ProgressLine("retrieval", "medium", len(data)), [], []
    for start in range(0, len(data), batch_size):
        items = [data[number] for number in range(start, min(start + batch_size, len(data)))]
        batch = collator(items)
        names = [name for name in (row.input_name, row.mask_name) if name is not None]
        queried = learner.query_media(**{name: batch[name].to(learner.device) for name in names if name in batch})
        vectors.append(learner.embed_media(queried).float().cpu())
        masks.append(queried.query_mask.cpu())
        line.update(start + len(items), is_last=start + len(items) == len(data))
    return torch.cat(vectors), torch.cat(masks)


@torch.no_grad()
def embed_texts(learner: Any, texts: list[str], batch_size: int) -> torch.Tensor:
    """Unit vectors `(T, P)`; texts are cut as in training."""
    special, longest = text_ids(learner.tokenizer), learner.config.max_text_length - 2
    found = []
    for start in range(0, len(texts), batch_size):
        some = texts[start : start + batch_size]
        ids = [learner.tokenizer(text, add_special_tokens=False)["input_ids"][:longest] for text in some]
        ids = [[special.cls, *row, special.sep] for row in ids]
        mask = pad_rows([[1] * len(row) for row in ids], 0).to(learner.device)
        found.append(learner.embed_text(pad_rows(ids, special.pad).to(learner.device), mask).float().cpu())
    return torch.cat(found)


def recalls(similarities: torch.Tensor, positives: torch.Tensor) -> dict[str, Any]:
    """R@k of the rows of `similarities (N, T)` and `positives (N, T)`; of equal ones a wrong column comes first.

    Returns:
        `{"R@1", "R@5", "R@10", "R@1_interval", ..., "n"}`.
    """
    best = similarities.masked_fill(~positives, float("-inf")).amax(1, keepdim=True)
    ahead = ((similarities >= best) & ~positives).sum(1)  # wrong ones that are not behind the first right one
    found: dict[str, Any] = {}
    for k in KS:
        hits = (ahead < k).tolist()
        found[f"R@{k}"] = sum(hits) / len(hits)
        found[f"R@{k}_interval"] = list(bootstrap_interval([(hit, 1) for hit in hits]))
    return {**found, "n": len(similarities)}


def run_retrieval(learner: Any, processor: Any, samples: list[Sample], batch_size: int = 16) -> dict:
    """R@k in both directions over a table of pictures (films) and captions; rows with the same medium are one.

    Args:
        learner (`XLLMForQFormerPreTraining`): with its `tokenizer`, see `open_stage_one`.

    Raises:
        DataError: a row without one medium and a text, or fewer than two media. SampleError: one cannot be decoded.
    """
    own: dict[tuple, list[str]] = {}
    first: dict[tuple, Sample] = {}
    for sample in samples:
        own.setdefault(media_key(sample), []).extend(captions_of(sample))
        first.setdefault(media_key(sample), sample)
    if len(own) < 2:
        raise DataError(f"retrieval is among several media, and there is {len(own)}")
    vectors, mask = embed_media(learner, ChatDataset([list(first.values())], processor), batch_size)
    texts = list(dict.fromkeys(text for captions in own.values() for text in captions))
    similarities = max_similarity(vectors, embed_texts(learner, texts, batch_size), mask)  # (N, T)
    place = {text: number for number, text in enumerate(texts)}
    positives = torch.zeros(similarities.shape, dtype=torch.bool)
    for number, captions in enumerate(own.values()):
        positives[number, [place[text] for text in captions]] = True
    both = (recalls(similarities, positives), recalls(similarities.T, positives.T))
    return {"task": "retrieval", "media": len(own), "texts": len(texts), **dict(zip(DIRECTIONS, both))}


__all__ = ["captions_of", "recalls", "run_retrieval"]
