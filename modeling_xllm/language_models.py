# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""What composite, `generate` and checkpoints need to know of a language model: one small class, found by `model_type`.

[`LanguageModel`] is any causal language model of transformers, which makes mask and positions itself;
[`PrefixLanguageModel`] one that reads its prompt in both directions, such as ChatGLM (`modeling_chatglm`). Another
language model with an unusual mask or positions is a subclass and one call of [`register_language_model`].

The rest is what ChatGLM and the composite both do in front of their layers; what they do behind them is in
`language_heads`.

Legend: B rows, L tokens, D width.
"""

import inspect
from typing import Any

import torch
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, Cache, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import DynamicLayer
from transformers.generation import GenerationConfig, GenerationMixin
from transformers.masking_utils import create_causal_mask, create_masks_for_generate

from .host_reads import check, reads_together


# Families that count positions, or distances, in the mask, and whose config does not say so.
MASK_READERS = ("biogpt", "bloom", "mpt", "opt")


class LanguageModel:
    """Any causal language model of transformers, known by its config."""

    # Opens a checkpoint of it, head included.
    causal_lm_class: type = AutoModelForCausalLM

    def __init__(self, config: PreTrainedConfig):
        self.config = config

    def build(self) -> PreTrainedModel:
        """The model without its head."""
        return AutoModel.from_config(self.config)

    def checked(self) -> "LanguageModel":
        """Itself; a `ValueError` where it has a `problem`."""
        if problem := self.problem():
            raise ValueError(f"text_config: {problem}; give another language model")
        return self

    def problem(self) -> str:
        """Why it cannot stand in an X-LLM, in a few words; empty where it can, as what is registered can."""
        config, kind = self.config, self.config.model_type
        if type(self) is not LanguageModel:
            return ""
        if type(config) not in AutoModel._model_mapping:
            return f"transformers opens no {kind} without the parts around it"
        found: Any = AutoModel._model_mapping[type(config)]
        takes = inspect.signature((found[0] if isinstance(found, tuple) else found).forward).parameters.keys()
        if "decoder_input_ids" in takes or hasattr(config, "is_decoder") and "encoder_hidden_states" in takes:
            return f"a {kind} is an encoder, or has one, and no causal language model"
        if not {"inputs_embeds", "past_key_values"} <= takes:
            return (
                f"a {kind} hands on a state instead of keys and values (past_key_values), by which an X-LLM places "
                "media, masks padding and goes on generating"
            )
        if "hash_moe" in (getattr(config, "mlp_layer_types", None) or ()):
            return f"a {kind} chooses experts by token ids, and media have none"
        if (width := getattr(config, "word_embed_proj_dim", config.hidden_size)) != config.hidden_size:
            return f"its embeddings are {width} wide, its layers {config.hidden_size}"
        return ""

    def note(self) -> str:
        """A remark for `xllm init` to print, on one line; empty for none."""
        return ""

    def layout(
        self, input_ids: torch.LongTensor | None, attention_mask: torch.Tensor | None, past_length: int = 0
    ) -> dict[str, torch.Tensor]:
        """Arguments of `forward` that say where the tokens `(B, L)` behind the `past_length` cached ones stand; in the
        mask `(B, past_length + L)` 1 = attended, and only those take a position.
        """
        if attention_mask is None or attention_mask.dim() != 2:
            return {}
        return {"position_ids": (attention_mask.long().cumsum(-1) - 1).clamp(min=0)[:, past_length:]}

    def inputs(
        self,
        inputs_embeds: torch.Tensor,
        attention_mask: torch.Tensor | None,
        past_key_values: Cache | None,
        layout: dict[str, torch.Tensor],
    ) -> dict[str, Any]:
        """`layout` and mask as the model's `forward` takes them."""
        return {"attention_mask": attention_mask, **layout}

    def counts_alone(self) -> bool:
        """Whether rows without padding before their tokens need neither mask nor positions in training."""
        # A loss over all tokens, as routers of experts have, must not count padding behind them.
        return type(self).inputs is LanguageModel.inputs and not getattr(self.config, "output_router_logits", False)

    def counts_columns(self, length: int | None = None) -> bool:
        """Whether, in a text of `length` tokens (default: of any), one that is not attended changes what others see:
        windows, chunks and distances count it, states pass through it."""
        kinds = set(getattr(self.config, "layer_types", None) or ["full_attention"])
        has_states = getattr(AutoModel._model_mapping.get(type(self.config), None), "_is_stateful", False)
        if has_states or self.config.model_type in MASK_READERS or getattr(self.config, "alibi", None):
            return True
        spans = [getattr(self.config, name, None) for name in ("sliding_window", "attention_chunk_size")]
        if kinds <= {"full_attention", "sliding_attention", "chunked_attention"} and any(spans):
            return length is None or length > min(span for span in spans if span)
        return kinds != {"full_attention"}

    def sees_all_before(self) -> bool:
        """Whether all layers take the mask of scaled dot product attention, `(B, 1, L, M)`, True = seen."""
        return self.config._attn_implementation == "sdpa" and not self.counts_columns()

    def check_generation(self, generation_config: GenerationConfig) -> None:
        """Raises a `ValueError` for a way of generating that the model does not support."""

    def layout_tokens(self) -> list[int]:
        """Ids that `layout` looks for: where a text is given as embeddings, they are found there."""
        return []

    def prompt_layout(self, input_ids: torch.Tensor, model_kwargs: dict[str, Any]) -> dict[str, torch.Tensor] | None:
        """`layout` of a prompt, kept for all steps of `generate`; `None`: what transformers does by itself."""

    def empty_prompt(self) -> list[int] | None:
        """The shortest prompt, for guidance without a negative one; `None`: as in transformers, the last token."""

    def next_positions(self, position_ids: torch.LongTensor, number: int) -> torch.LongTensor | None:
        """Positions `(..., B, L)` and those of `number` further tokens, `(..., B, L + number)`; `None`: as above."""

    def drafted_positions(self, position_ids: torch.LongTensor) -> torch.LongTensor:
        """Corrects positions that transformers has extended by one for each drafted token."""
        return position_ids

    def generation_mask(self, token_type_ids: torch.Tensor | None, is_first_iteration: bool, **kwargs):
        """Mask of one step over a cache of fixed length; the arguments are those of transformers' function."""
        return create_masks_for_generate(**kwargs)


class PrefixLanguageModel(LanguageModel):
    """A model whose prompt is seen in both directions: token type 0 in the prefix, 1 in the causal answer."""

    def token_types(self, input_ids: torch.LongTensor, attention_mask: torch.Tensor | None) -> torch.LongTensor:
        """Types `(B, L)` of the tokens of whole prompts, with or without an answer."""
        raise NotImplementedError

    def layout(self, input_ids, attention_mask, past_length=0) -> dict[str, torch.Tensor]:
        layout = super().layout(input_ids, attention_mask, past_length)
        if not past_length and input_ids is not None:  # behind them, the answer: causal
            layout["token_type_ids"] = self.token_types(input_ids, attention_mask)
        return layout

    def layout_tokens(self) -> list[int]:
        raise ValueError(
            "inputs_embeds alone: add the input_ids they were made from, or position_ids and token_type_ids"
        )

    def inputs(self, inputs_embeds, attention_mask, past_key_values, layout) -> dict[str, Any]:
        mask = self.mask(inputs_embeds, attention_mask, past_key_values, layout.get("token_type_ids"))
        return {"attention_mask": mask, **{name: one for name, one in layout.items() if name != "token_type_ids"}}

    def mask(
        self,
        inputs_embeds: torch.Tensor,
        attention_mask: torch.Tensor | None,
        past_key_values: Cache | None,
        token_type_ids: torch.Tensor | None,
    ) -> torch.Tensor | None:
        """Mask of all layers: the prefix sees itself in both directions, all else is causal. A 4-D mask is kept."""
        if attention_mask is not None and attention_mask.dim() == 4:
            return attention_mask
        # Behind a filled cache all tokens are causal (the prefix cannot be split), and one token needs no block.
        is_prefill = past_key_values is None or past_key_values.get_seq_length() == 0
        has_prefix = is_prefill and token_type_ids is not None and token_type_ids.shape[1] > 1
        # Positions stay out: transformers would take their repeats for the borders of packed sequences.
        return create_causal_mask(
            config=self.config,
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            block_sequence_ids=-token_type_ids.long() if has_prefix else None,  # 0: a block, -1: none
        )

    def check_generation(self, generation_config: GenerationConfig) -> None:
        if generation_config.prefill_chunk_size is not None:
            raise ValueError(
                f"prefill_chunk_size={generation_config.prefill_chunk_size}: the prompt of a {self.config.model_type} "
                "is seen in both directions and cannot be read in chunks; leave it None"
            )

    def prompt_layout(self, input_ids: torch.Tensor, model_kwargs: dict[str, Any]) -> dict[str, torch.Tensor]:
        attention_mask, cache = (model_kwargs.get(name) for name in ("attention_mask", "past_key_values"))
        past_length = 0 if cache is None else int(cache.get_seq_length())
        attention_mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        if attention_mask.shape[1] != input_ids.shape[1]:
            hint = ": with past_key_values give the whole sequence, the cached tokens included" if past_length else ""
            widths = f"{attention_mask.shape[1]} columns, input_ids {input_ids.shape[1]}"
            raise ValueError(f"attention_mask has {widths}{hint}")
        layout = self.layout(input_ids, attention_mask)
        new_prefix = (layout["token_type_ids"] == 0) & attention_mask.bool()
        if past_length and new_prefix[:, past_length:].any():
            raise ValueError(
                f"past_key_values holds {past_length} tokens but the prompt's bidirectional prefix is longer: what is "
                "cached did not see the rest of it. Reuse a cache that holds the whole prefix, or start without one"
            )
        return layout

    def next_positions(self, position_ids: torch.LongTensor, number: int) -> torch.LongTensor:
        steps = torch.arange(1, number + 1, device=position_ids.device)
        return torch.cat((position_ids, position_ids[..., -1:] + steps), dim=-1)

    def generation_mask(self, token_type_ids, is_first_iteration, **kwargs):
        given = {name: kwargs[name] for name in ("inputs_embeds", "attention_mask", "past_key_values")}
        return self.mask(**given, token_type_ids=token_type_ids if is_first_iteration else None)


class CacheNote(frozenset):
    """A tensor `(..., M)` about the M tokens of a cache, kept as an attribute of it; in a frozen set, which exporters
    carry along without taking it for an output of the model."""

    @staticmethod
    def read(cache: Cache, name: str) -> torch.Tensor | None:
        """The tensor, if there is one, as long as the cache at most, which may have been cropped."""
        if (note := getattr(cache, name, None)) is None:
            return None
        (tensor,) = note
        tensor = tensor[..., : int(cache.get_seq_length())]
        setattr(cache, name, CacheNote([tensor]))
        return tensor


LANGUAGE_MODELS: dict[str, type[LanguageModel]] = {}


def register_language_model(model_type: str, language_model: type[LanguageModel]) -> None:
    """Register what the composite needs to know of language models whose config is of `model_type`."""
    LANGUAGE_MODELS[model_type] = language_model


def language_model_of(config: PreTrainedConfig) -> LanguageModel:
    """The language model of a config, which may be a composite's; [`LanguageModel`] where none is registered."""
    config = config.get_text_config()
    return LANGUAGE_MODELS.get(config.model_type, LanguageModel)(config)


def float8_saturates() -> bool:
    """Whether what is too large for a float8 becomes the largest one; with torch 2.11 it becomes NaN."""
    return not torch.tensor(1e4).to(torch.float8_e4m3fn).isnan()


class LanguageModelGenerationMixin(GenerationMixin):
    """`generate` over any language model: for the model itself, and for a composite with one in it."""

    config: Any
    get_input_embeddings: Any

    def _validate_generation_mode(self, generation_mode, generation_config, generation_mode_kwargs):
        super()._validate_generation_mode(generation_mode, generation_config, generation_mode_kwargs)
        language_model_of(self.config).check_generation(generation_config)
        if (generation_config.cache_config or {}).get("backend") == "fp8" and not float8_saturates():
            message = f"torch {torch.__version__} makes NaN of states beyond the largest of the prompt"
            raise ValueError(f"cache_config, backend 'fp8': {message}; update torch, or take backend 'quanto'")

    @reads_together
    def _prompt_layout(self, inputs_tensor: torch.Tensor, model_kwargs: dict[str, Any]) -> dict | None:
        language, input_ids = language_model_of(self.config), model_kwargs.get("input_ids")
        input_ids = inputs_tensor if input_ids is None or input_ids.shape[1] == 0 else input_ids
        if input_ids.is_floating_point():
            input_ids = find_tokens(input_ids, self.get_input_embeddings(), language.layout_tokens())
        return language.prompt_layout(input_ids, model_kwargs)

    def _prepare_position_ids_for_generation(self, inputs_tensor: torch.Tensor, model_kwargs: dict[str, Any]):
        """Positions of the prompt; sets `model_kwargs["token_type_ids"]` where the language model uses them."""
        if (layout := self._prompt_layout(inputs_tensor, model_kwargs)) is None:
            return super()._prepare_position_ids_for_generation(inputs_tensor, model_kwargs)
        model_kwargs["token_type_ids"] = layout["token_type_ids"]
        return layout["position_ids"]

    def _expand_inputs_for_generation(self, *args, **kwargs):
        input_ids, model_kwargs = super()._expand_inputs_for_generation(*args, **kwargs)
        cache, position_ids = model_kwargs.get("past_key_values"), model_kwargs.get("position_ids")
        if position_ids is None:
            return input_ids, model_kwargs
        if "token_type_ids" not in model_kwargs and (cache is None or cache.get_seq_length() == 0):
            inputs = model_kwargs.get("inputs_embeds")  # positions are the caller's
            if layout := self._prompt_layout(input_ids if inputs is None else inputs, model_kwargs):
                model_kwargs["token_type_ids"] = layout["token_type_ids"]
                position_ids = layout["position_ids"] if layout["position_ids"].dim() > 2 else position_ids
        model_kwargs["position_ids"] = language_model_of(self.config).drafted_positions(position_ids)
        return input_ids, model_kwargs

    def _maybe_initialize_input_ids_for_generation(self, inputs, bos_token_id, model_kwargs):
        ids = super()._maybe_initialize_input_ids_for_generation(inputs, bos_token_id, model_kwargs)
        shortest = language_model_of(self.config).empty_prompt()
        if inputs is not None or ids.shape[1] == 0 or shortest is None:
            return ids
        return torch.tensor([shortest], device=ids.device).expand(ids.shape[0], -1)

    def _get_logits_processor(self, generation_config, *args, negative_prompt_ids=None, **kwargs):
        shortest = language_model_of(self.config).empty_prompt()
        if negative_prompt_ids is None and shortest is not None and generation_config.guidance_scale is not None:
            copies = max(generation_config.num_beams, generation_config.num_return_sequences)
            rows = [shortest] * (copies * kwargs["encoder_input_ids"].shape[0])
            negative_prompt_ids = torch.tensor(rows, device=kwargs["device"])
        return super()._get_logits_processor(
            generation_config, *args, negative_prompt_ids=negative_prompt_ids, **kwargs
        )

    def prepare_inputs_for_generation(self, input_ids, next_sequence_length=None, inputs_embeds=None, **kwargs):
        """transformers' inputs of one step; drafted tokens (more than one new token) get the model's own positions."""
        language, cache = language_model_of(self.config), kwargs.get("past_key_values")
        position_ids, mask = kwargs.get("position_ids"), kwargs.get("attention_mask")
        if position_ids is not None and next_sequence_length != 1:
            kwargs["position_ids"] = language.drafted_positions(position_ids)
        elif position_ids is not None and mask is not None and mask.dim() == 2 and language.sees_all_before():
            layers = getattr(cache, "layers", [])
            if layers and all(isinstance(layer, DynamicLayer) and not layer.is_sliding for layer in layers):
                # (B, 1, 1, M): whether all are ones is not asked
                kwargs["attention_mask"] = mask.bool()[:, None, None]
        kwargs.update(next_sequence_length=next_sequence_length, inputs_embeds=inputs_embeds)
        return super().prepare_inputs_for_generation(input_ids, **kwargs)

    def _update_model_kwargs_for_generation(
        self, outputs, model_kwargs: dict[str, Any], is_encoder_decoder: bool = False, num_new_tokens: int = 1
    ) -> dict[str, Any]:
        """Grow mask, positions and token types by the tokens just generated; over a cache, only the last position is
        kept, from which all others follow."""
        language, position_ids = language_model_of(self.config), model_kwargs.get("position_ids")
        grown = None if position_ids is None else language.next_positions(position_ids, num_new_tokens)
        if grown is not None:
            del model_kwargs["position_ids"]
            token_type_ids = model_kwargs.pop("token_type_ids", None)
        update = super()._update_model_kwargs_for_generation
        model_kwargs = update(outputs, model_kwargs, is_encoder_decoder, num_new_tokens)
        if grown is not None and model_kwargs.get("use_cache") and model_kwargs.get("past_key_values") is not None:
            model_kwargs["position_ids"] = grown[..., -1:].clone(memory_format=torch.contiguous_format)
        elif grown is not None:
            model_kwargs["position_ids"] = grown
            if token_type_ids is not None:
                ones = token_type_ids.new_ones((token_type_ids.shape[0], num_new_tokens))
                model_kwargs["token_type_ids"] = torch.cat((token_type_ids, ones), dim=-1)  # (B, L + number)
        return model_kwargs

    @staticmethod
    def create_masks_for_generate(config, token_type_ids=None, is_first_iteration=False, **kwargs):
        """4-D mask of one step for caches of fixed length; the arguments are those of transformers' function."""
        return language_model_of(config).generation_mask(token_type_ids, is_first_iteration, config=config, **kwargs)


def find_tokens(inputs_embeds: torch.Tensor, embedding: nn.Module, ids: list[int]) -> torch.LongTensor:
    """Which of the tokens `ids` an embedded text `(B, L, D)` holds, told by their embeddings as in transformers' own
    models: `(B, L)`, the id at such a token, -1 everywhere else.
    """
    found = torch.full(inputs_embeds.shape[:2], -1, device=inputs_embeds.device)
    rows: Any = embedding.num_embeddings
    for token_id in (token_id for token_id in ids if token_id < rows):  # those behind the vocabulary have no embedding
        row = embedding(torch.full((), token_id, device=inputs_embeds.device)).to(inputs_embeds)
        found = found.masked_fill((inputs_embeds == row).all(-1), token_id)
    return found


def embed_tokens(embedding: nn.Embedding, input_ids: torch.LongTensor) -> torch.FloatTensor:
    """`embedding(input_ids)`, `(B, L)` to `(B, L, D)`; raises a `ValueError` with both ranges for ids outside the
    vocabulary."""
    rows = embedding.num_embeddings
    if input_ids.shape[1] > 1:  # single tokens come from our own logits; the check would stall each decoding step
        check(
            (input_ids >= 0) & (input_ids < rows),
            lambda: (
                f"input_ids must lie in 0..{rows - 1}, got {int(input_ids.min())}..{int(input_ids.max())}: the "
                "tokenizer is not this model's (ChatGLM-6B was published with two vocabularies, 130528 and 150528)"
            ),
        )
    return embedding(input_ids)
