# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""ChatGLM's prompt layout and what `generate` must know about it (GLM, arXiv 2103.10360, sec. 2; paper sec. 3).

    tokens      x x x x [gMASK] <sop> a b c        x: media and prompt, seen in both directions
    channel 0   0 1 2 3    4      4   4 4 4        place in the prefix; the answer sits where the mask is
    channel 1   0 0 0 0    0      1   2 3 4        place in the answer
    token type  0 0 0 0    0      1   1 1 1        0 = bidirectional prefix, 1 = causal

Tokens with attention mask 0 (padding on either side, speech slots that did not fire) take no position: places are
counted over the others. Such a token repeats the place of the one before it, so that decoding can follow any column.

Deviation: the published code counts padding and takes the first row's layout for the whole batch.
"""

import torch
from transformers import PreTrainedConfig
from transformers.utils.import_utils import torch_compilable_check


def chatglm_positions(
    input_ids: torch.LongTensor, attention_mask: torch.Tensor | None, config: PreTrainedConfig
) -> tuple[torch.LongTensor, torch.LongTensor]:
    """Positions and token types of whole prompts (with or without an answer behind `<sop>`).

    Args:
        input_ids (`torch.LongTensor` of shape `(batch_size, sequence_length)`): only the ids of `<sop>`, `[gMASK]` and
            `[MASK]` matter; placeholders of media may be any other id, also outside the vocabulary.
        attention_mask (`torch.Tensor` of shape `(batch_size, sequence_length)`, *optional*): 1 = real, 0 anywhere.
        config (`ChatGLMConfig`): ids, longest input, position rule.

    Returns:
        `position_ids` (`torch.LongTensor` of shape `(2, batch_size, sequence_length)`) and `token_type_ids`
        (`torch.LongTensor` of shape `(batch_size, sequence_length)`).

    Raises:
        ValueError: a row without `<sop>`, or without `[gMASK]` and `[MASK]`, or with more real tokens than
            `max_position_embeddings`.

    Source: ChatGLM-6B `get_masks` and `get_position_ids`.
    """
    keep = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
    place = keep.cumsum(-1).sub_(1).clamp_(min=0)
    sop_place, has_sop = _first_place(input_ids == config.bos_token_id, keep, place)
    mask_place, has_mask = _first_place(input_ids == config.gmask_token_id, keep, place)
    uses_gmask = has_mask
    if config.mask_token_id is not None:
        plain_place, has_plain = _first_place(input_ids == config.mask_token_id, keep, place)
        mask_place = torch.where(uses_gmask, mask_place, plain_place)
        has_mask = uses_gmask | has_plain
    _check_layout(keep, has_sop, has_mask, config)

    answer = place >= sop_place
    channel_0 = torch.where(answer, mask_place, place)
    if config.legacy_sop_position:
        # March 2023 wrote [gMASK] right before <sop>, gave <sop> its running place and decoded at the mask's.
        legacy = torch.where(place == sop_place, place, torch.where(answer, sop_place - 1, place))
        channel_0 = torch.where(uses_gmask, legacy, channel_0)
    channel_1 = (place - sop_place + 1).clamp_(min=0)
    return torch.stack((channel_0, channel_1)), answer.long()


def _first_place(hits: torch.Tensor, keep: torch.Tensor, place: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Place of the first unmasked hit per row, and whether there is one; both `(batch_size, 1)`."""
    hits = hits & keep
    return place.gather(1, hits.int().argmax(-1, keepdim=True)), hits.any(-1, keepdim=True)


def _check_layout(keep: torch.Tensor, has_sop: torch.Tensor, has_mask: torch.Tensor, config: PreTrainedConfig) -> None:
    is_empty = ~keep.any(-1, keepdim=True)
    if keep.shape[1] > config.max_position_embeddings:
        lengths = keep.sum(-1)
        torch_compilable_check(
            (lengths <= config.max_position_embeddings).all(),
            lambda: (
                f"input_ids has {int(lengths.max())} tokens in a row, the model takes max_sequence_length="
                f"{config.max_position_embeddings}: cut the history from the left or use fewer frames"
            ),
        )

    def describe(found: torch.Tensor, wanted: str) -> str:
        row = int((~found).int().argmax())
        return (
            f"row {row} of input_ids has no {wanted}: a ChatGLM prompt ends with [gMASK]<sop>, which its tokenizer "
            "appends (add_special_tokens=True) and its chat template writes; both generations have ids of their own"
        )

    ok = has_sop | is_empty
    torch_compilable_check(ok.all(), lambda: describe(ok, f"<sop> (id {config.bos_token_id})"))
    has_mask = has_mask | is_empty
    names = f"[gMASK] (id {config.gmask_token_id}) nor [MASK] (id {config.mask_token_id})"
    torch_compilable_check(has_mask.all(), lambda: describe(has_mask, names))


def freeze_answer(position_ids: torch.LongTensor) -> torch.LongTensor:
    """Put channel 0 of all tokens behind `<sop>` back to the mask's place.

    Assisted decoding extends positions by one per drafted token in every channel. `<sop>` itself tells the mask's
    place, or one more under the rule of March 2023 (then the last place of the prefix is the mask's).
    """
    channel_0, channel_1 = position_ids
    sop_place = channel_0.gather(1, (channel_1 == 1).int().argmax(-1, keepdim=True))
    prefix_end = channel_0.masked_fill(channel_1 > 0, 0).amax(-1, keepdim=True)
    return torch.stack((torch.where(channel_1 > 1, torch.minimum(sop_place, prefix_end), channel_0), channel_1))


__all__ = ["chatglm_positions", "freeze_answer"]
