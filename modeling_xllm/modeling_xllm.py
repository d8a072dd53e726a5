# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""X-LLM (arXiv 2305.04160): frozen towers, trained X2L interfaces, a frozen language model.

Every modality takes one path: tower -> interface -> embeddings written over the placeholder tokens -> language model.

Deviations from the authors' code: placeholders that no token fills are masked (there, the LLM sees them), and batches
of any mixture are exact (there, one row at a time).

Legend: B rows of text, L tokens, R most real tokens in a row, N items, D width.
"""

import importlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, can_return_tuple

from .cformer import world_size
from .configuration_xllm import X2LConfig, XLLMConfig
from .gaps import hide_gaps, in_columns, remember_gaps, warn_of_gaps
from .generation_xllm import XLLMGenerationMixin
from .host_reads import Asked, check, reads_together
from .language_heads import has_biased_head, logits_and_loss, supervised_tokens
from .language_models import embed_tokens, find_tokens, language_model_of
from .modeling_chatglm import ChatGLMLanguageModel
from .modeling_encoders import FeatureGetters, XLLMEncoderModel, XLLMPreTrainedModel, is_trainable, train_unless_frozen
from .packing import computed_tokens
from .x2l_interfaces import X2LOutput, join_items, place_media


# Arguments of `forward` that only a row of the table can read.
MEDIA_ARGUMENTS = ("pixel_values", "pixel_values_videos", "video_frame_mask", "input_features", "input_features_mask")


@dataclass
class XLLMModelOutputWithPast(BaseModelOutputWithPast):
    """Output of the language model without its head, and what each modality given in this call became."""

    modality_features: dict[str, X2LOutput] | None = None


@dataclass
class XLLMCausalLMOutputWithPast(CausalLMOutputWithPast):
    """`logits (B, L or logits_to_keep, vocab)`, `loss` when labels are given, and `modality_features` as above."""

    modality_features: dict[str, X2LOutput] | None = None


class XLLMModel(XLLMEncoderModel):
    """X-LLM without the language model's head."""

    main_input_name = "input_ids"
    _supports_flash_attn = _supports_flex_attn = True  # as far as the language model does

    def __init__(self, config: XLLMConfig):
        language = language_model_of(config).checked()  # before encoders are made
        super().__init__(config)
        self.language_model = language.build()
        self.post_init()

    def media_in(self, arguments: dict) -> dict[str, tuple]:
        """The media among `forward`'s arguments, popped: modality -> (inputs, mask). Rows may share one."""
        rows = self.config.modalities.items()
        names = {name for _, row in rows for name in (row.input_name, row.mask_name)}
        given = {name: arguments.pop(name, None) for name in names}
        media = {name: (given[row.input_name], given[row.mask_name]) for name, row in rows}
        return {name: (inputs, mask) for name, (inputs, mask) in media.items() if inputs is not None}

    def placeholder_ids(self, without: Iterable[str] = ()) -> list[int]:
        """Token ids that stand for media, but those of the modalities `without`."""
        rows = self.config.modalities.items()
        return [row.token_id for name, row in rows if row.token_id is not None and name not in without]

    def placeholder_mask(self, input_ids: torch.LongTensor, without: Iterable[str] = ()) -> torch.BoolTensor:
        """True at the placeholder tokens of any modality but those of `without`, `(B, L)`."""
        found = torch.zeros_like(input_ids, dtype=torch.bool)
        for token_id in self.placeholder_ids(without):  # a tensor of the ids would have to be sent to the device
            found = found | (input_ids == token_id)
        return found

    def encode_items(
        self,
        media: dict[str, tuple],
        earlier: dict[str, X2LOutput] | None = None,
        rows: int = 1,
        stand_ins: list[torch.Tensor] | None = None,
    ) -> dict[str, X2LOutput]:
        """Encode all media of a batch once: modality -> its items, in order of appearance in the text of `rows` rows.

        Args:
            media: modality -> (inputs, mask), as `media_in` returns.
            earlier: items encoded before; the new ones come behind them. With several rows, whose order is then
                unknown, both of one modality are a `ValueError`.
            stand_ins: gets the `stand_in` of each modality without media that takes all processes; in the order of
                the table, so that they meet.
        """
        features = dict(earlier or {})
        series = {name for name, row in self.config.modalities.items() if row.num_frames is not None}
        # How many pictures they hold is asked first and read last: with what a C-Former has to know, if there is one.
        masks = {} if torch.compiler.is_compiling() else {name: media[name][1] for name in series.intersection(media)}
        real = {name: {"real": Asked(mask.bool().sum())} for name, mask in masks.items() if mask is not None}
        for name in sorted(dict.fromkeys([*self.config.modalities, *media]), key=series.__contains__):
            if name not in media:
                if stand_ins is not None and (stand_in := self.stand_in(name)) is not None:
                    stand_ins.append(stand_in)
                continue
            new = self._features(name, *media[name], **real.get(name, {}))
            if name in features and rows > 1:
                raise ValueError(
                    f"{name}: got modality_features and new items for {rows} rows, but which row holds which is "
                    "unknown; answer one row at a time, or give all items as modality_features"
                )
            features[name] = join_items(features[name], new) if name in features else new
        return {
            name: features[name] for name in dict.fromkeys([*self.config.modalities, *features]) if name in features
        }

    def place_features(
        self, input_ids: torch.LongTensor, attention_mask: torch.Tensor | None, features: dict[str, X2LOutput], seen=0
    ) -> tuple[torch.FloatTensor, torch.Tensor]:
        """Write encoded media, `features` as `encode_items` returns them, over the placeholders of a text.

        Args:
            input_ids (`(B, L)`), attention_mask (`(B, M)`): the text, with M - L cached tokens before it.
            seen: how many of the L are cached as well; a modality whose placeholders are all there may be missing.

        Returns:
            `media_embeds (B, L, D)`, zero outside the placeholders, and the attention mask `(B, M)` without those that
            no token fills.

        Raises:
            ValueError: placeholders and media disagree; the message names modality and both numbers.
        """
        shape = (*input_ids.shape, self.config.get_text_config().hidden_size)
        dtype = next(self.get_input_embeddings().parameters()).dtype  # the rest of it may be elsewhere
        media_embeds = torch.zeros(shape, dtype=dtype, device=input_ids.device)
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        for name, items in features.items():
            row = self.config.modalities[name]
            if row.token_id is None:
                raise ValueError(f"modalities[{name!r}].token_id is not set: no token stands for this modality")
            embeds, keep = place_media(input_ids == row.token_id, items, name)  # (B, L, D), (B, L)
            media_embeds = media_embeds + embeds.to(media_embeds)
            keep = nn.functional.pad(keep, (attention_mask.shape[1] - keep.shape[1], 0), value=True)
            attention_mask = attention_mask * keep.to(attention_mask)
        orphans = self.placeholder_mask(input_ids, without=features)[:, seen:]
        check(
            ~orphans,
            lambda: f"input_ids hold {int(orphans.sum())} placeholder tokens of a modality that no media is given for",
        )
        return media_embeds, attention_mask

    def _embed(self, input_ids, inputs_embeds, attention_mask, media_embeds, media: dict, earlier, past_length):
        """Text and media as one sequence of embeddings `(B, L, D)`, the attention mask, the features."""
        if input_ids is None and (media or earlier):
            input_ids = find_tokens(inputs_embeds, self.get_input_embeddings(), self.placeholder_ids())
        B = (inputs_embeds if input_ids is None else input_ids).shape[0]
        stand_ins: list[torch.Tensor] | None = [] if world_size() > 1 and past_length == 0 else None
        features = self.encode_items(media, earlier, B, stand_ins) or None
        if input_ids is not None:
            inputs_embeds, attention_mask = self._place(
                input_ids, inputs_embeds, attention_mask, media_embeds, features, past_length
            )
        if stand_ins:  # before the language model, whose layers other processes may hold
            inputs_embeds = inputs_embeds + sum(stand_ins).to(inputs_embeds)
        return inputs_embeds, attention_mask, features

    def _place(self, input_ids, inputs_embeds, attention_mask, media_embeds, features, past_length):
        """The embeddings `(B, L, D)` of a text with its media, and the attention mask."""
        if features:
            media_embeds, attention_mask = self.place_features(input_ids, attention_mask, features)
        placeholders = self.placeholder_mask(input_ids)  # (B, L)
        # Behind a prompt, a drafted or compiled step may read anything.
        if media_embeds is None and (isinstance(past_length, torch.Tensor) or past_length == 0):
            check(
                ~(placeholders.any() & (past_length == 0)),
                lambda: f"input_ids hold {int(placeholders.sum())} placeholder tokens but no media is given",
            )
        if inputs_embeds is None:  # placeholder ids never reach the embedding as themselves
            inputs_embeds = embed_tokens(self.get_input_embeddings(), input_ids.masked_fill(placeholders, 0))
            inputs_embeds = inputs_embeds.to(input_ids.device)  # a device map may keep the embedding elsewhere
        if media_embeds is not None:
            media_embeds = media_embeds.to(inputs_embeds)
            inputs_embeds = torch.where(placeholders[..., None], media_embeds, inputs_embeds)  # (B, L, D)
        return inputs_embeds, attention_mask

    @reads_together
    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        media_embeds: torch.FloatTensor | None = None,
        modality_features: dict[str, X2LOutput] | None = None,
        use_cache: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> XLLMModelOutputWithPast:
        """See `XLLMForConditionalGeneration.forward`, also for the media; returns `last_hidden_state (B, L, D)`."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        media = self.media_in(kwargs)
        if unused := [name for name in MEDIA_ARGUMENTS if kwargs.pop(name, None) is not None]:
            raise ValueError(f"{', '.join(unused)} given, but no row of config.modalities reads it")
        past_length = 0 if past_key_values is None else past_key_values.get_seq_length()
        if past_key_values is not None and (media or hasattr(past_key_values, "attended")):
            if attention_mask is None:
                tokens: Any = input_ids if inputs_embeds is None else inputs_embeds[..., 0]
                attention_mask = nn.functional.pad(torch.ones_like(tokens), (int(past_length), 0), value=1).long()
            else:
                attention_mask = in_columns(past_key_values, attention_mask)
            attention_mask = hide_gaps(past_key_values, attention_mask)
        inputs_embeds, attention_mask, features = self._embed(
            input_ids, inputs_embeds, attention_mask, media_embeds, media, modality_features, past_length
        )
        language = language_model_of(self.config)
        given = {"position_ids": position_ids, "token_type_ids": token_type_ids}
        layout: dict[str, torch.Tensor] = {name: value for name, value in given.items() if value is not None}
        if position_ids is None:
            layout = {**language.layout(input_ids, attention_mask, past_length), **layout}
        use_cache = False if self.training and use_cache is None else use_cache
        how = kwargs.pop("packing", False), attention_mask, past_key_values, use_cache, kwargs
        may_move = self.training or features is not None or media_embeds is not None
        computed, seen = computed_tokens(self, *how) if may_move else None, attention_mask
        if computed is None and features is not None:
            warn_of_gaps(self.config, attention_mask)
        if computed is not None:
            inputs_embeds = computed.take_states(inputs_embeds)  # (B, L, D) -> (B, R, D)
            layout = {name: computed.take(value) for name, value in layout.items()}  # (..., B, L) -> (..., B, R)
            seen = computed.seen(language, inputs_embeds, layout, position_ids is None)
        outputs = self.language_model(
            inputs_embeds=inputs_embeds,
            past_key_values=past_key_values,
            use_cache=use_cache,
            **language.inputs(inputs_embeds, seen, past_key_values, layout),
            **kwargs,
        )
        if features is not None and attention_mask.dim() == 2 and not torch.compiler.is_exporting():
            remember_gaps(outputs.past_key_values, attention_mask)
        if computed is not None:
            states = outputs.last_hidden_state.to(inputs_embeds.device)
            outputs.last_hidden_state = computed.put_back(states)  # (B, R, D) -> (B, L, D)
        if self.training and torch.is_grad_enabled() and not outputs.last_hidden_state.requires_grad:
            # Text alone, or media of frozen modalities: nothing is learnt from them, and backward() finds an end.
            outputs.last_hidden_state.requires_grad_(is_trainable(self))
        return XLLMModelOutputWithPast(**outputs, modality_features=features)


class XLLMForConditionalGeneration(XLLMPreTrainedModel, FeatureGetters, XLLMGenerationMixin):
    """X-LLM: text, images, videos and speech in, text out.

    ```python
    inputs = processor.apply_chat_template(messages, tokenize=True, return_dict=True, add_generation_prompt=True)
    answer = model.generate(**inputs)[:, inputs["input_ids"].shape[1] :]
    ```
    """

    _supports_flash_attn = _supports_flex_attn = True
    _tp_plan = {"lm_head": "colwise_gather_output"}

    def __init__(self, config: XLLMConfig):
        super().__init__(config)
        text = config.get_text_config()
        self.model = XLLMModel(config)
        self.lm_head = nn.Linear(text.hidden_size, text.vocab_size, bias=has_biased_head(text))
        if config.tie_word_embeddings:
            name = next(name for name, module in self.named_modules() if module is self.get_input_embeddings())
            self._tied_weights_keys = {"lm_head.weight": f"{name}.weight"}
        self.post_init()

    @classmethod
    def from_towers(
        cls,
        language_model: str | None = None,
        encoders: dict[str, str] | None = None,
        interfaces: dict[str, str] | None = None,
        modalities: dict[str, X2LConfig] | None = None,
        dtype: torch.dtype | str = "auto",
        **config_fields,
    ) -> "XLLMForConditionalGeneration":
        """Compose a new model from published towers; its checkpoints will name them instead of storing them.

        Args:
            language_model: folder or Hub id ("repo" or "repo@revision") of a causal LM; by default what the interfaces
                were trained with.
            encoders: "vision", "audio", a name of yours, or a modality -> folder or Hub id.
            interfaces: modality -> where it starts: a BLIP-2, BERT, X-LLM or published `.pth` file.
            modalities, config_fields: the table, by default the paper's three rows; further fields of `XLLMConfig`.

        Raises:
            StageCheckpointError, ConversionError: a source cannot be had, or has not the tensors that are needed.
            ValueError: an interface cannot start from what is named.
        """
        try:  # composing does not travel with a checkpoint's code
            towers = importlib.import_module("xllm.modeling_xllm.composition.towers")
        except ImportError as error:
            raise ImportError("from_towers needs the package: pip install xllm-transformers") from error
        config, tensors = towers.compose(language_model, encoders, interfaces, modalities, **config_fields)
        cls.check_towers(config, tensors)
        model = cls.from_pretrained(None, config=config, state_dict=tensors, dtype=dtype)
        model.generation_config.update(**towers.end_tokens(config))
        return model

    def get_features(self, modality: str, inputs: torch.Tensor, mask: torch.Tensor | None = None, **kwargs):
        """See `XLLMEncoderModel.get_features`."""
        return self.model.get_features(modality, inputs, mask, **kwargs)

    def train(self, mode: bool = True):
        super().train(mode)
        train_unless_frozen(self.lm_head, mode)
        return self

    @reads_together
    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        media_embeds: torch.FloatTensor | None = None,
        modality_features: dict[str, X2LOutput] | None = None,
        pixel_values: torch.FloatTensor | None = None,
        pixel_values_videos: torch.FloatTensor | None = None,
        video_frame_mask: torch.Tensor | None = None,
        input_features: torch.FloatTensor | None = None,
        input_features_mask: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs: Unpack[TransformersKwargs],
    ) -> XLLMCausalLMOutputWithPast:
        """One pass over text and media; media are flat over the batch, in order of appearance in the text.

        Args:
            input_ids, attention_mask (`(B, L)`): text with placeholder tokens; 1 = attend. In `inputs_embeds`
                `(B, L, D)` instead of ids, placeholders are known by their embeddings.
            position_ids: `(B, L)`, or `(2, B, L)` with ChatGLM; token_type_ids (`(B, L)`, ChatGLM): 0 in the
                bidirectional prefix. Both are derived when not given.
            pixel_values (`(images, 3, H, W)`): images.
            pixel_values_videos (`(videos, F, 3, H, W)`), video_frame_mask (`(videos, F)`): videos, 1 = real frame,
                real frames first.
            input_features (`(clips, frames, 80)`), input_features_mask (`(clips, frames)`): what the speech encoder
                reads: log-mel frames of 10 ms, or samples `(clips, samples)`; 1 = real.
            modality_features (`dict[str, X2LOutput]`): media encoded before, as `encode_media` and an earlier output
                hold them; items given beside them come behind.
            media_embeds (`(B, L', D)`): the same over the placeholders, as `XLLMModel.place_features` returns them.
            labels (`(B, L)`): next-token targets, -100 where there is none, as at placeholders; shifted here.
            logits_to_keep (`int` or index tensor): positions to project to the vocabulary; 0 = all, and in train mode
                with labels only the supervised ones (`logits` is then `None`).
            packing (`bool`): in training, samples may share rows of the language model; see `packing.py`.
            Further modalities come under the `input_name` and `mask_name` of their row.

        Raises:
            ValueError: placeholders and media disagree, or media without a row that reads them.
        """
        media = (pixel_values, pixel_values_videos, video_frame_mask, input_features, input_features_mask)
        media = dict(zip(MEDIA_ARGUMENTS, media))
        if labels is not None:  # collators that copy input_ids would teach it to say placeholders
            labels = labels.masked_fill(self.model.placeholder_mask(labels), -100)
            use_cache = False if use_cache is None and past_key_values is None else use_cache  # as in training
        supervised = supervised_tokens(self, labels, logits_to_keep, kwargs)
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            token_type_ids=token_type_ids,
            media_embeds=media_embeds,
            modality_features=modality_features,
            use_cache=use_cache,
            **media,
            **kwargs,
        )
        logits, loss = logits_and_loss(self, outputs.last_hidden_state, labels, logits_to_keep, supervised, **kwargs)
        others = {name: value for name, value in outputs.items() if name != "last_hidden_state"}
        return XLLMCausalLMOutputWithPast(loss=loss, logits=logits, **others)


# ChatGLM, the paper's language model, is known wherever this module is: its own one registers it.
__all__ = [
    "ChatGLMLanguageModel",
    "XLLMEncoderModel",
    "XLLMForConditionalGeneration",
    "XLLMModel",
    "XLLMPreTrainedModel",
]
