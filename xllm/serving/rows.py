# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Rows that are decoded together, each of which joins and leaves on its own (continuous batching).

`generate` prepares a prompt as always, media, positions and mask included; in place of transformers' decoding loop
(`custom_generate`) stands one that reads the prompt and hands out what it left: cache, mask and positions. Of two such
states the shorter one is padded on its left, which the mask hides, and their rows decode as one batch.

Legend: B rows, M tokens of the longest one, V vocabulary.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn.functional import pad
from transformers.cache_utils import DynamicLayer
from transformers.generation import LogitsProcessorList


@dataclass
class Rows:
    """What decoding needs of rows whose prompts have been read.

    Args:
        mask (`(B, M + 1)`): of all tokens in the cache and the one that comes next.
        position_ids (`(..., B, 1)`, *optional*): of the one that comes next.
        processors: one per row, from the model's generation settings.
    """

    cache: Any
    mask: torch.Tensor
    position_ids: torch.Tensor | None
    options: dict[str, Any]
    processors: list[LogitsProcessorList] = field(default_factory=list)

    def __len__(self) -> int:
        return self.mask.shape[0]

    @property
    def can_join(self) -> bool:
        """Whether the cache keeps every token's states: not of windows, nor recurrent."""
        layers = getattr(self.cache, "layers", [])
        return bool(layers) and all(type(layer) is DynamicLayer for layer in layers)

    def join(self, others: "Rows") -> "Rows":
        """The rows of both."""
        width = max(self.mask.shape[1], others.mask.shape[1])
        both = (self, others)
        lacking = [width - rows.mask.shape[1] for rows in both]
        for mine, theirs in zip(self.cache.layers, others.cache.layers):
            for name in ("keys", "values"):  # (B, heads, M, D)
                states = [pad(getattr(layer, name), (0, 0, more, 0)) for layer, more in zip((mine, theirs), lacking)]
                setattr(mine, name, torch.cat(states))
        position_ids = None
        if self.position_ids is not None and others.position_ids is not None:
            position_ids = torch.cat([self.position_ids, others.position_ids], dim=-2)
        mask = torch.cat([pad(rows.mask, (more, 0)) for rows, more in zip(both, lacking)])
        return Rows(self.cache, mask, position_ids, self.options, [*self.processors, *others.processors])

    def keep(self, places: list[int]) -> None:
        """Only the rows at these places, without what is padding in all of them."""
        chosen = torch.tensor(places, device=self.mask.device)
        mask = self.mask[chosen]
        first = int(mask.any(0).byte().argmax()) if self.can_join else 0
        self.mask = mask[:, first:]
        if self.can_join:
            for layer in self.cache.layers:
                layer.keys, layer.values = (states[chosen, :, first:] for states in (layer.keys, layer.values))
        else:
            self.cache.batch_select_indices(chosen)
        if self.position_ids is not None:
            self.position_ids = self.position_ids.index_select(-2, chosen)
        self.processors = [self.processors[place] for place in places]

    def step(self, model: Any, tokens: list[int]) -> torch.Tensor:
        """Scores `(B, V)` of what follows when each row goes on with a token."""
        ids = torch.tensor(tokens, device=self.mask.device)[:, None]
        state = {"past_key_values": self.cache, "attention_mask": self.mask, **self.options}
        if self.position_ids is not None:
            state["position_ids"] = self.position_ids
        outputs = model(**model.prepare_inputs_for_generation(ids, next_sequence_length=1, **state), return_dict=True)
        self._take(model._update_model_kwargs_for_generation(outputs, state))
        return outputs.logits[:, -1].float()

    def _take(self, state: dict[str, Any]) -> None:
        self.cache, mask = state["past_key_values"], state["attention_mask"]
        # transformers leaves out a mask of ones
        self.mask = self.mask.new_ones(len(self), int(self.cache.get_seq_length()) + 1) if mask is None else mask
        position_ids = state.get("position_ids")
        self.position_ids = None if position_ids is None else position_ids[..., -1:]


def read_prompts(model: Any, **inputs: Any) -> tuple[Rows, torch.Tensor]:
    """Reads prompts `(B, L)`, padded on their left, as `generate` does; what they leave, and scores `(B, V)`."""

    def loop(model, input_ids, logits_processor, stopping_criteria, generation_config, **state):
        prepared = model.prepare_inputs_for_generation(input_ids, is_first_iteration=True, **state)
        outputs = model(**prepared, return_dict=True)
        state = model._update_model_kwargs_for_generation(outputs, state)
        options = {name: value for name, value in state.items() if isinstance(value, (bool, int))}
        rows = Rows(None, torch.ones_like(input_ids), None, options, [logits_processor] * len(input_ids))
        rows._take(state)
        return rows, outputs.logits[:, -1].float()

    loop.reads_shortened = True  # type: ignore[attr-defined]  # placeholders that no token fills may go
    # Tokens are chosen, and counted, by each answer's own settings.
    options = {"do_sample": False, "num_beams": 1, "use_cache": True, "max_new_tokens": 1}
    return model.generate(**inputs, custom_generate=loop, **options)
