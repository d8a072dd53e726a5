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

import torch
from torch import nn
from transformers.generation import LogitsProcessorList, SuppressTokensLogitsProcessor

from .language_models import LanguageModelGenerationMixin
from .x2l_interfaces import X2LOutput


class XLLMGenerationMixin(LanguageModelGenerationMixin):
    """`generate` of a model with `model.encode_items` and `model.place_features` over any language model."""

    @torch.no_grad()
    def encode_media(
        self, inputs: Mapping[str, torch.Tensor], earlier: dict[str, X2LOutput] | None = None
    ) -> dict[str, X2LOutput]:
        """Encode the media among a processor's `inputs`, behind those of `earlier` turns of one conversation, for
        several calls of `forward` or `generate`, which take the result as `modality_features`."""
        return self.model.encode_items(self.model.media_in(dict(inputs)), earlier)

    @torch.no_grad()
    def generate(self, inputs: torch.Tensor | None = None, *args, **kwargs):
        """`GenerationMixin.generate`; media are encoded once, and placeholders are never part of an answer."""
        placeholders = self.model.placeholder_ids()
        given = (inputs, kwargs.get("input_ids"), kwargs.get("inputs_embeds"))
        device = next((tensor.device for tensor in given if tensor is not None), self.device)
        kwargs["logits_processor"] = LogitsProcessorList(
            [SuppressTokensLogitsProcessor(placeholders, device=device), *(kwargs.get("logits_processor") or [])]
        )
        media, features = self.model.media_in(kwargs), kwargs.pop("modality_features", None)
        if media or features:
            inputs = kwargs.pop("input_ids", None) if inputs is None else inputs
            if inputs is None:
                raise ValueError("media need input_ids: nothing else says where the placeholders are")
            features = self.model.encode_items(media, features, rows=inputs.shape[0])
            kwargs["media_embeds"], kwargs["attention_mask"] = self.model.place_features(
                inputs, kwargs.get("attention_mask"), features
            )
        return super().generate(inputs, *args, **kwargs)

    def prepare_inputs_for_generation(self, input_ids, media_embeds=None, inputs_embeds=None, **kwargs) -> dict:
        model_inputs = super().prepare_inputs_for_generation(input_ids, inputs_embeds=inputs_embeds, **kwargs)
        if media_embeds is not None and model_inputs.get("input_ids") is not None:
            L = model_inputs["input_ids"].shape[1]
            media_embeds = media_embeds[:, input_ids.shape[1] - L :][:, :L]  # (B, L', D): of this step's tokens
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
