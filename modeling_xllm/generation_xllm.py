# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""What `generate` must know about media: they are encoded once, whatever the decoding mode, and kept between turns.

A conversation that goes on gives the media of earlier turns as `modality_features` and only the new ones as tensors:

    features = model.encode_media(first_inputs)
    model.generate(input_ids, modality_features=features)                     # first turn
    model.generate(longer_input_ids, modality_features=features, **new_media)  # second turn

With a causal language model `past_key_values` of the first turn may be passed on as well. A `PrefixLanguageModel`
such as ChatGLM reads its prompt in both directions: the states of an earlier turn never saw the later ones, so a kept
cache is refused and the prompt is read anew, over the kept features.

Legend: B rows of text, L tokens, L' tokens of the prompt, D width.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers.generation import LogitsProcessor, LogitsProcessorList

from .gaps import (
    columns_behind,
    columns_read,
    hide_gaps,
    left_padded,
    remember_gaps,
    take_columns,
    with_whole_prompt,
)
from .host_reads import check, reads_together
from .language_models import LanguageModelGenerationMixin, find_tokens, language_model_of
from .x2l_interfaces import X2LOutput


class SuppressPlaceholders(LogitsProcessor):
    """Placeholders are never said; transformers' own processor for this compares the whole vocabulary in each step."""

    def __init__(self, ids: list[int], device: torch.device):
        self.ids = torch.tensor(ids, dtype=torch.long, device=device)

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        return scores.index_fill(-1, self.ids.to(scores.device), -torch.inf)


class InVocabulary(LogitsProcessorList):
    """Processors that look up the scores of a prompt's tokens: a placeholder behind the vocabulary has none."""

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **kwargs) -> torch.FloatTensor:
        return super().__call__(input_ids.where(input_ids < scores.shape[-1], 0), scores, **kwargs)


class XLLMGenerationMixin(LanguageModelGenerationMixin):
    """`generate` of a model with `model.encode_items` and `model.place_features` over any language model."""

    model: Any
    device: Any

    @torch.no_grad()
    @reads_together
    def encode_media(
        self, inputs: Mapping[str, torch.Tensor], earlier: dict[str, X2LOutput] | None = None
    ) -> dict[str, X2LOutput]:
        """Encode the media among a processor's `inputs`, behind those of `earlier` turns of one conversation, for
        several calls of `forward` or `generate`, which take the result as `modality_features`."""
        return self.model.encode_items(self.model.media_in(dict(inputs)), earlier)

    def _sayable(self, placeholders: list[int]) -> list[int]:
        return [token_id for token_id in placeholders if token_id < self.config.get_text_config().vocab_size]

    def _get_logits_processor(self, *args, **kwargs) -> LogitsProcessorList:
        processors, placeholders = super()._get_logits_processor(*args, **kwargs), self.model.placeholder_ids()
        return processors if self._sayable(placeholders) == placeholders else InVocabulary(processors)

    @torch.no_grad()
    def generate(self, inputs: torch.Tensor | None = None, *args, **kwargs):
        """`GenerationMixin.generate`; media are encoded once, and placeholders are never part of an answer."""
        generate: Any = super().generate
        placeholders = self.model.placeholder_ids()
        inputs, embeds = kwargs.pop("input_ids", None) if inputs is None else inputs, kwargs.get("inputs_embeds")
        text: Any = embeds if inputs is None else inputs
        device = self.device if text is None else text.device
        kwargs["logits_processor"] = LogitsProcessorList(
            [SuppressPlaceholders(self._sayable(placeholders), device), *(kwargs.get("logits_processor") or [])]
        )
        media, features = self.model.media_in(kwargs), kwargs.pop("modality_features", None)
        cache, mask = kwargs.get("past_key_values"), kwargs.get("attention_mask")
        media_embeds = columns = None
        if media or features:
            if text is None:
                raise ValueError("media need input_ids or inputs_embeds: nothing else says where the placeholders are")
            ids = find_tokens(text, self.get_input_embeddings(), placeholders) if inputs is None else inputs
            may_shorten = embeds is None and self._may_shorten(kwargs)
            media_embeds, mask, columns = self._read_media(ids, mask, media, features, cache, may_shorten)
            if embeds is not None:
                is_medium = self.model.placeholder_mask(ids)[..., None]  # (B, L, 1)
                kwargs["inputs_embeds"] = torch.where(is_medium, media_embeds.to(embeds), embeds)
            else:  # of the whole text, also where its beginning is in the cache and not among the ids
                before = mask.shape[1] - ids.shape[1]
                kwargs["media_embeds"] = nn.functional.pad(media_embeds, (0, 0, before, 0))
        elif not hasattr(cache, "attended"):
            return generate(inputs, *args, **kwargs)
        if mask is None:
            mask = torch.ones(text.shape[:2], dtype=torch.long, device=device)
        if columns is None:
            columns = columns_behind(self.config, cache, mask)
        kwargs["attention_mask"], given = mask, inputs
        if columns is not None:
            inputs = take_columns(columns, mask.shape[1], inputs, kwargs, self.generation_config)
        kwargs["attention_mask"] = mask = hide_gaps(cache, kwargs["attention_mask"])
        for note in ("attended", "columns"):  # while it is generated the mask tells it
            getattr(cache, "__dict__", {}).pop(note, None)
        try:
            output = generate(inputs, *args, **kwargs)
        finally:
            remember_gaps(cache, mask, columns)
        remember_gaps(getattr(output, "past_key_values", None), mask, columns)
        return output if columns is None or given is None else with_whole_prompt(output, given, inputs)

    @reads_together
    def _read_media(self, ids, mask, media, features, cache, may_shorten: bool):
        """Media over the placeholders `(B, L, D)`, the attention mask without empty ones, and the columns that stay
        where these can go."""
        features = self.model.encode_items(media, features, rows=ids.shape[0])
        cached = columns_read(cache)
        before = 0 if mask is None else mask.shape[1] - ids.shape[1]  # the ids may be those behind the cache alone
        media_embeds, mask = self.model.place_features(ids, mask, features, seen=max(0, cached - before))
        if may_shorten:
            return media_embeds, mask, left_padded(mask)
        ends_in_gap = self.model.placeholder_mask(ids)[:, -1] & (mask[:, -1] == 0)
        check(
            ~ends_in_gap,
            lambda: (
                f"{int(ends_in_gap.sum())} prompts end in a placeholder that no token fills, so nothing says what "
                "comes next: put text behind the media, or call generate without what needs the whole prompt "
                "(return_dict_in_generate, stopping criteria, ...)"
            ),
        )
        columns = None
        if language_model_of(self.config).counts_columns():
            columns = left_padded(mask) if cached == 0 else columns_behind(self.config, cache, mask, may_drop=True)
        return media_embeds, mask, columns

    def _may_shorten(self, kwargs: dict) -> bool:
        """Whether nobody can tell that `generate` reads a shorter prompt, without placeholders that no token fills."""
        config, streamer = kwargs.get("generation_config") or self.generation_config, kwargs.get("streamer")

        def asked(name: str) -> Any:
            return kwargs.get(name, getattr(config, name, None))

        loop = kwargs.get("custom_generate")
        tells = ("return_dict_in_generate", "min_length", "no_repeat_ngram_size")
        given = ("past_key_values", "position_ids", "token_type_ids", "stopping_criteria", "prefix_allowed_tokens_fn")
        if loop is not None and not getattr(loop, "reads_shortened", False):
            return False
        if any(map(asked, tells)) or any(kwargs.get(name) is not None for name in given):
            return False
        is_alone = len(kwargs["logits_processor"]) == 1 and (
            streamer is None or getattr(streamer, "skip_prompt", False)
        )
        return is_alone and asked("max_new_tokens") is not None

    def prepare_inputs_for_generation(self, input_ids, media_embeds=None, inputs_embeds=None, **kwargs) -> dict:
        model_inputs = super().prepare_inputs_for_generation(input_ids, inputs_embeds=inputs_embeds, **kwargs)
        if media_embeds is not None and model_inputs.get("input_ids") is not None:
            L, cache = model_inputs["input_ids"].shape[1], model_inputs.get("past_key_values")
            start = input_ids.shape[1] - L
            if start == 0 and cache is not None:  # a part of the text behind what is cached, given alone
                start = int(cache.get_seq_length())
            media_embeds = media_embeds[:, start:][:, :L]  # (B, L', D): of this step's tokens
            missing = L - media_embeds.shape[1]
            if missing < L:  # else past the prompt
                model_inputs["media_embeds"] = nn.functional.pad(media_embeds, (0, 0, 0, missing))
        return model_inputs

    def _get_candidate_generator(self, *args, model_kwargs: dict, assistant_model=None, **kwargs):
        # A language model without interfaces drafts from the text alone; drafts are checked all the same.
        if assistant_model is not None and not isinstance(assistant_model, XLLMGenerationMixin):
            model_kwargs = {name: value for name, value in model_kwargs.items() if name != "media_embeds"}
        return super()._get_candidate_generator(
            *args, model_kwargs=model_kwargs, assistant_model=assistant_model, **kwargs
        )
