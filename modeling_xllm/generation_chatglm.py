# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""ChatGLM's prompt layout and what `generate` must know about it (GLM, arXiv 2103.10360, sec. 2; paper sec. 3).

    tokens      x x x x [gMASK] <sop> a b c        x: media and prompt, seen in both directions
    channel 0   0 1 2 3    4      4   4 4 4        place in the prefix; the answer sits where the mask is
    channel 1   0 0 0 0    0      1   2 3 4        place in the answer
    token type  0 0 0 0    0      1   1 1 1        0 = bidirectional prefix, 1 = causal

Tokens with attention mask 0 (padding on either side, speech slots that did not fire) take no position: places are counted
over the others. Such a token repeats the place of the one before it, so that decoding can go on from any last column.

Deviation: the published code counts padding and takes the first row's layout for the whole batch.
"""

from typing import Any

import torch
from transformers import Cache, PreTrainedConfig
from transformers.generation import GenerationMixin
from transformers.masking_utils import create_causal_mask, create_masks_for_generate
from transformers.utils import ModelOutput
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


def prefix_block_ids(token_type_ids: torch.Tensor) -> torch.Tensor:
    """`block_sequence_ids` of transformers' mask functions: the prefix is one bidirectional block (0), the rest causal."""
    return -token_type_ids.long()


def _freeze_answer(position_ids: torch.LongTensor) -> torch.LongTensor:
    """Put channel 0 of all tokens behind `<sop>` back to the mask's place.

    Assisted decoding extends positions by one per drafted token in every channel. `<sop>` itself tells the mask's
    place, or one more under the rule of March 2023 (then the last place of the prefix is the mask's).
    """
    channel_0, channel_1 = position_ids
    sop_place = channel_0.gather(1, (channel_1 == 1).int().argmax(-1, keepdim=True))
    prefix_end = channel_0.masked_fill(channel_1 > 0, 0).amax(-1, keepdim=True)
    return torch.stack((torch.where(channel_1 > 1, torch.minimum(sop_place, prefix_end), channel_0), channel_1))


class ChatGLMGenerationMixin(GenerationMixin):
    """`generate` over a ChatGLM text model: two position channels, a bidirectional prefix, their bookkeeping.

    A composite model inherits it too: everything applies when `config.get_text_config()` is a ChatGLM, and defers to
    transformers otherwise.
    """

    def _is_chatglm(self) -> bool:
        return self.config.get_text_config().model_type == "chatglm"

    def _validate_generation_mode(self, generation_mode, generation_config, generation_mode_kwargs):
        super()._validate_generation_mode(generation_mode, generation_config, generation_mode_kwargs)
        if self._is_chatglm() and generation_config.prefill_chunk_size is not None:
            raise ValueError(
                f"prefill_chunk_size={generation_config.prefill_chunk_size}: the prompt of a ChatGLM is seen in both "
                "directions and cannot be read in chunks; leave it None"
            )

    def _prepare_position_ids_for_generation(self, inputs_tensor: torch.Tensor, model_kwargs: dict[str, Any]):
        """Positions of the prompt; also sets `model_kwargs["token_type_ids"]`.

        Raises:
            ValueError: embeddings without ids, or a cache that ends inside the bidirectional prefix.
        """
        if not self._is_chatglm():
            return super()._prepare_position_ids_for_generation(inputs_tensor, model_kwargs)
        input_ids = model_kwargs.get("input_ids")
        input_ids = inputs_tensor if input_ids is None or input_ids.shape[1] == 0 else input_ids
        if input_ids.is_floating_point():
            raise ValueError(
                "generate got inputs_embeds alone: add the input_ids they were made from (they give positions and mask), "
                "or position_ids (2, batch, length) and token_type_ids (batch, length)"
            )
        attention_mask = model_kwargs.get("attention_mask")
        cache = model_kwargs.get("past_key_values")
        past_length = 0 if cache is None else int(cache.get_seq_length())
        if attention_mask is not None and attention_mask.shape[1] != input_ids.shape[1]:
            raise ValueError(
                f"attention_mask has {attention_mask.shape[1]} columns, input_ids {input_ids.shape[1]}"
                + (": with past_key_values give the whole sequence, the cached tokens included" if past_length else "")
            )
        position_ids, token_type_ids = chatglm_positions(input_ids, attention_mask, self.config.get_text_config())
        if past_length:
            new_prefix = token_type_ids[:, past_length:] == 0
            if attention_mask is not None:
                new_prefix = new_prefix & attention_mask[:, past_length:].bool()
            if new_prefix.any():
                raise ValueError(
                    f"past_key_values holds {past_length} tokens but the prompt's bidirectional prefix is longer: what "
                    "is cached did not see the rest of it. Reuse a cache from <sop> on only, or start without one"
                )
        model_kwargs["token_type_ids"] = token_type_ids
        return position_ids

    def _expand_inputs_for_generation(
        self, expand_size: int = 1, is_encoder_decoder: bool = False, input_ids=None, **model_kwargs
    ):
        input_ids, model_kwargs = super()._expand_inputs_for_generation(
            expand_size, is_encoder_decoder, input_ids, **model_kwargs
        )
        if self._is_chatglm() and model_kwargs.get("position_ids") is not None:
            model_kwargs["position_ids"] = _freeze_answer(model_kwargs["position_ids"])
        return input_ids, model_kwargs

    def prepare_inputs_for_generation(
        self,
        input_ids: torch.LongTensor,
        next_sequence_length: int | None = None,
        past_key_values: Cache | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        is_first_iteration: bool | None = False,
        **kwargs,
    ) -> dict[str, Any]:
        """transformers' inputs of one step; drafted tokens (more than one new token) get ChatGLM's positions."""
        position_ids = kwargs.get("position_ids")
        if self._is_chatglm() and position_ids is not None and next_sequence_length != 1:
            kwargs["position_ids"] = _freeze_answer(position_ids)
        return super().prepare_inputs_for_generation(
            input_ids,
            next_sequence_length=next_sequence_length,
            past_key_values=past_key_values,
            attention_mask=attention_mask,
            inputs_embeds=inputs_embeds,
            is_first_iteration=is_first_iteration,
            **kwargs,
        )

    def _update_model_kwargs_for_generation(
        self,
        outputs: ModelOutput,
        model_kwargs: dict[str, Any],
        is_encoder_decoder: bool = False,
        num_new_tokens: int = 1,
    ) -> dict[str, Any]:
        """Grow mask, positions and token types by the tokens just generated."""
        if not self._is_chatglm():
            return super()._update_model_kwargs_for_generation(
                outputs, model_kwargs, is_encoder_decoder, num_new_tokens
            )
        position_ids = model_kwargs.pop("position_ids", None)
        token_type_ids = model_kwargs.pop("token_type_ids", None)
        model_kwargs = super()._update_model_kwargs_for_generation(
            outputs, model_kwargs, is_encoder_decoder, num_new_tokens
        )
        if position_ids is not None:
            last = position_ids[..., -1:]
            steps = torch.arange(1, num_new_tokens + 1, device=last.device).expand(last.shape[1], -1)
            new = torch.stack((last[0].expand(-1, num_new_tokens), last[1] + steps))
            position_ids = torch.cat((position_ids, new), dim=-1)
            if self.config.get_text_config().legacy_sop_position:
                position_ids = _freeze_answer(position_ids)
            model_kwargs["position_ids"] = position_ids
        if token_type_ids is not None:
            ones = token_type_ids.new_ones((token_type_ids.shape[0], num_new_tokens))
            model_kwargs["token_type_ids"] = torch.cat((token_type_ids, ones), dim=-1)
        return model_kwargs

    @staticmethod
    def create_masks_for_generate(
        config: PreTrainedConfig,
        inputs_embeds: torch.Tensor,
        attention_mask: torch.Tensor | None,
        past_key_values: Cache | None,
        position_ids: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        is_first_iteration: bool | None = False,
        **kwargs,
    ):
        """4-D mask of one step for caches of fixed length; the arguments are those of transformers' function."""
        text_config = config.get_text_config()
        if text_config.model_type != "chatglm":
            return create_masks_for_generate(
                config, inputs_embeds, attention_mask, past_key_values, position_ids, **kwargs
            )
        block_ids = None
        if is_first_iteration and token_type_ids is not None and token_type_ids.shape[1] > 1:
            block_ids = prefix_block_ids(token_type_ids)
        # Positions stay out: transformers would take their repeats for the borders of packed sequences.
        return create_causal_mask(
            config=text_config,
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            block_sequence_ids=block_ids,
        )


__all__ = ["ChatGLMGenerationMixin", "chatglm_positions"]
