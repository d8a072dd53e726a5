# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Which answers of a conversation carry loss, and where they stand among the tokens of a prompt.

A causal language model may learn all answers of a conversation in one pass, as each sees only what stands before it.
That is done where it is exact: the template must write an earlier answer as it is said when it is asked for (Qwen3's
does not: the empty thought stands in the generation prompt only), and no token may reach over the answer's ends.
"""

from collections.abc import Collection, Sequence
from typing import Any

import torch


def answers_with_loss(messages: list[dict], loss_on: str) -> list[int]:
    """Indices of the turns that carry loss: those whose `loss` says so, and, of the others, the last or all.

    Raises:
        ValueError: none does.
    """
    turns = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    default = turns if loss_on == "all" else turns[-1:]
    chosen = [index for index in turns if messages[index].get("loss", index in default)]
    if not chosen:
        raise ValueError("no answer of a sample carries loss: each has `loss` or `weight` 0")
    return chosen


def earlier_answers(
    processor: Any, messages: list[dict], ends: Sequence[int], stop_ids: Collection[int] = ()
) -> list[tuple[int, int]] | None:
    """(first, end) character of the answers `ends` in the prompt of the last message, before placeholders are written
    out; None if the template writes one of them in another way, or the tokenizer cannot tell where its tokens are.
    """
    if not processor.tokenizer.is_fast:
        return None
    whole = processor.apply_chat_template(messages[:-1], tokenize=False, add_generation_prompt=True)
    found = []
    for end in ends:
        prompt = processor.apply_chat_template(messages[:end], tokenize=False, add_generation_prompt=True)
        answer = processor.answer_text(messages[: end + 1], stop_ids)
        if not whole.startswith(prompt + answer):
            return None
        found.append((len(prompt), len(prompt) + len(answer)))
    return found


def located(
    batch: dict[str, Any], mask: torch.Tensor, spans: Sequence[Sequence[tuple[int, int]]]
) -> list[list[int] | None]:
    """Indices of the tokens of each row's spans among its real tokens; None where a token reaches over an end.

    Args:
        batch: of the processor; `offset_mapping` `(B, L, 2)` and `text_replacement_offsets` are taken out of it.
        mask (`torch.BoolTensor` of shape `(B, L)`): real tokens.
        spans: (first, end) characters of the text before placeholders were written out.
    """
    offsets, moved = batch.pop("offset_mapping", None), batch.pop("text_replacement_offsets", None)
    return [
        _tokens_in(torch.as_tensor(offsets[row])[mask[row]].tolist(), moved[row], places) if places else []
        for row, places in enumerate(spans)
    ]


def _tokens_in(tokens: list[list[int]], moved: list[dict], spans: Sequence[tuple[int, int]]) -> list[int] | None:
    found = []
    for span in spans:
        first, end = (_written(moved, place) for place in span)
        inside = [index for index, (start, stop) in enumerate(tokens) if start < stop and stop > first and start < end]
        if not inside or tokens[inside[0]][0] < first or tokens[inside[-1]][1] > end:
            return None
        found += inside
    return found


def _written(moved: list[dict], place: int) -> int:
    """Where a character of the text stands once placeholders are written out."""
    before = [(one["span"], one["new_span"]) for one in moved if one["span"][1] <= place]
    return place + (before[-1][1][1] - before[-1][0][1] if before else 0)


__all__ = ["answers_with_loss", "earlier_answers", "located"]
