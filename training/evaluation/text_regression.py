# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Is a language model still what it was? Texts without media, read by an X-LLM and by the bare language model.

While the language model is frozen there is no difference, not in the last bit; after LoRA, say, there is one.
"""

from typing import Any

import torch
from torch.nn.functional import cross_entropy

from xllm.training.batches.collator import XLLMDataCollator, chat_settings
from xllm.training.data.dataset import ChatDataset
from xllm.training.data.media_rows import DataError


def _logits(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    return model(**{name: value.to(model.device) for name, value in batch.items()}).logits.float().cpu()


@torch.no_grad()
def compare_with_bare(model: Any, bare: Any, processor: Any, data: ChatDataset, batch_size: int = 16) -> dict:
    """Losses of the answers of texts, by an X-LLM and by its bare language model.

    Returns:
        `{"loss", "bare_loss", "tokens", "largest_difference", "n"}`: mean negative log-likelihoods per token, and the
        largest difference of any logit.

    Raises:
        DataError: a row has media, or the vocabularies differ.
    """
    collator = XLLMDataCollator(processor, **chat_settings(model.config, model.generation_config))
    sums, tokens, largest = [0.0, 0.0], 0, 0.0
    for start in range(0, len(data), batch_size):
        items = [data[number] for number in range(start, min(start + batch_size, len(data)))]
        for item in items:
            if any(part["type"] != "text" for turn in item["messages"] for part in turn["content"]):
                raise DataError(f"{item['where']}: has media, which the bare language model cannot read")
        batch = collator(items)
        labels, given = batch["labels"][:, 1:], {name: batch[name] for name in ("input_ids", "attention_mask")}
        both = [_logits(one, given) for one in (model, bare)]
        if both[0].shape != both[1].shape:
            sizes = " and ".join(str(logits.shape[-1]) for logits in both)
            raise DataError(f"the vocabularies of the model and of the bare language model differ: {sizes}")
        learnt = labels != -100
        for place, logits in enumerate(both):
            sums[place] += float(cross_entropy(logits[:, :-1][learnt], labels[learnt], reduction="sum"))
        attended = batch["attention_mask"].bool()
        largest = max(largest, float((both[0] - both[1])[attended].abs().max()))
        tokens += int(learnt.sum())
    losses = {"loss": sums[0] / tokens, "bare_loss": sums[1] / tokens}
    return {"task": "text", **losses, "tokens": tokens, "largest_difference": largest, "n": len(data)}


__all__ = ["compare_with_bare"]
