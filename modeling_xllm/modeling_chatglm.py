# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""ChatGLM-6B (first generation), the frozen language model of X-LLM (paper sec. 3; GLM, arXiv 2103.10360).

Parameter names are THUDM's own, so that their checkpoints load without conversion:
`{transformer: {word_embeddings, layers.N.{input_layernorm, attention, post_attention_layernorm, mlp},
final_layernorm}, lm_head}`. Numerically it is the published model: residuals scaled by sqrt(2 * 28) behind the norm,
queries, keys and values fused per head, two rotary axes with frequencies rounded to fp16, a bidirectional prefix up
to `<sop>`:

    tokens      x x x x [gMASK] <sop> a b c        x: media and prompt, seen in both directions
    channel 0   0 1 2 3    4      4   4 4 4        place in the prefix; the answer sits where the mask is
    channel 1   0 0 0 0    0      1   2 3 4        place in the answer
    token type  0 0 0 0    0      1   1 1 1        0 = bidirectional prefix, 1 = causal

Deviations: padding and unfired media slots are masked and take no position (the published code counted them, and took
the first row's layout for the whole batch); such a token repeats the place of the one before it, so that decoding can
follow any column. Angle tables are built in fp32 unless `config.rope_half_precision`; in training only supervised
positions are projected.

Legend: B batch, L tokens, M cached and new tokens, H heads, D head width, V vocabulary.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import Cache, DynamicCache, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_chatglm import ChatGLMConfig
from .host_reads import check, reads_together
from .language_heads import logits_and_loss, supervised_tokens
from .language_models import (
    CacheNote,
    LanguageModelGenerationMixin,
    PrefixLanguageModel,
    embed_tokens,
    find_tokens,
    register_language_model,
)
from .real_tokens import real_tokens


def chatglm_positions(
    input_ids: torch.LongTensor,
    attention_mask: torch.Tensor | None,
    config: PreTrainedConfig,
    place: torch.Tensor | None = None,
) -> tuple[torch.LongTensor, torch.LongTensor]:
    """Positions and token types of whole prompts (with or without an answer behind `<sop>`).

    Args:
        input_ids (`(B, L)`): only the ids of `<sop>`, `[gMASK]` and `[MASK]` matter; placeholders of media may be any
            other id, also outside the vocabulary.
        attention_mask (`(B, L)`): 1 = real, 0 anywhere; place (`(B, L)`): by default the number of real tokens before.

    Returns:
        `position_ids (2, B, L)` and `token_type_ids (B, L)`, as ChatGLM-6B's `get_position_ids` and `get_masks`.

    Raises:
        ValueError: a row without `<sop>`, or without `[gMASK]` and `[MASK]`, or longer than `max_position_embeddings`.
    """
    keep = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
    place = keep.cumsum(-1).sub_(1).clamp_(min=0) if place is None else _checked_places(place, keep)
    sop_place, has_sop = _first_place(input_ids == config.bos_token_id, keep, place)
    mask_place, has_mask = _first_place(input_ids == config.gmask_token_id, keep, place)
    uses_gmask = has_mask
    # CODEPATH: both published vocabularies of chatglm-6b have [MASK]; others may be without.
    if config.mask_token_id is not None:
        plain_place, has_plain = _first_place(input_ids == config.mask_token_id, keep, place)
        mask_place = torch.where(uses_gmask, mask_place, plain_place)
        has_mask = uses_gmask | has_plain
    _check_layout(keep, has_sop, has_mask, config)

    answer = place >= sop_place
    channel_0 = torch.where(answer, mask_place, place)
    # CODEPATH: True for chatglm-6b as of March 2023.
    if config.legacy_sop_position:
        # It wrote [gMASK] right before <sop>, gave <sop> its running place and decoded at the mask's.
        legacy = torch.where(place == sop_place, place, torch.where(answer, sop_place - 1, place))
        channel_0 = torch.where(uses_gmask, legacy, channel_0)
    channel_1 = (place - sop_place + 1).clamp_(min=0)
    return torch.stack((channel_0, channel_1)), answer.long()


def _checked_places(place: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
    place = place.expand_as(keep)
    falls = keep & (place < place.masked_fill(~keep, 0).cummax(1).values)  # also where masked tokens stand between
    check(~falls, lambda: "position_ids fall within a row: ChatGLM reads no rows packed into one")
    return place


def _first_place(hits: torch.Tensor, keep: torch.Tensor, place: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Place of the first unmasked hit per row, and whether there is one; both `(batch_size, 1)`."""
    hits = hits & keep
    return place.gather(1, hits.int().argmax(-1, keepdim=True)), hits.any(-1, keepdim=True)


def _check_layout(keep: torch.Tensor, has_sop: torch.Tensor, has_mask: torch.Tensor, config: PreTrainedConfig) -> None:
    # CODEPATH: every checkpoint takes both; short inputs need no look at the values.
    if keep.shape[1] > config.max_position_embeddings:
        lengths = keep.sum(-1)
        check(
            lengths <= config.max_position_embeddings,
            lambda: (
                f"input_ids has {int(lengths.max())} tokens in a row, the model takes max_sequence_length="
                f"{config.max_position_embeddings}: cut the history from the left, or give fewer or shorter media"
            ),
        )

    masks = f"[gMASK] (id {config.gmask_token_id}) nor [MASK] (id {config.mask_token_id})"
    for found, wanted in ((has_sop, f"<sop> (id {config.bos_token_id})"), (has_mask, masks)):
        ok = found | ~keep.any(-1, keepdim=True)  # or an empty row
        check(
            ok,
            lambda ok=ok, wanted=wanted: (
                f"row {int((~ok).int().argmax())} of input_ids has no {wanted}: a ChatGLM prompt ends with "
                "[gMASK]<sop>, which its tokenizer appends (add_special_tokens=True) and its chat template writes; "
                "both generations have ids of their own"
            ),
        )


def freeze_answer(position_ids: torch.LongTensor) -> torch.LongTensor:
    """Put channel 0 of all tokens behind `<sop>` back to the mask's place; `generate` extends it by one per token.
    `<sop>` itself tells the place, or one more under the rule of March 2023 (then the prefix ends with the mask)."""
    channel_0, channel_1 = position_ids
    sop_place = channel_0.gather(1, (channel_1 == 1).int().argmax(-1, keepdim=True))
    prefix_end = channel_0.masked_fill(channel_1 > 0, 0).amax(-1, keepdim=True)
    # Without the prefix before them the first one, or `<sop>`, tells the place.
    behind = torch.where((channel_1 == 0).any(-1, keepdim=True), torch.minimum(sop_place, prefix_end), sop_place)
    return torch.stack((torch.where(channel_1 > 1, behind, channel_0), channel_1))


class ChatGLMRotaryEmbedding(nn.Module):
    """Cosines and signed sines of both position channels, built once per forward: each head is split in two axes
    (channel 0, channel 1) of two halves; axis and frequency give an angle per position."""

    def __init__(self, config: ChatGLMConfig):
        super().__init__()
        self.config = config
        # The published frequencies are fp16 numbers. Their bits are kept as integers, because a float buffer would be
        # rounded again by `model.to(torch.bfloat16)`, which turns far positions by up to a radian. Integers have 32
        # bits here: DDP broadcasts buffers, and neither gloo nor NCCL knows those of 16.
        self.inv_freq_bits = nn.Buffer(self.compute_inv_freq_bits(config), persistent=False)

    @staticmethod
    def compute_inv_freq_bits(config: ChatGLMConfig) -> torch.Tensor:
        """`base ** (-2i / dim)` over half a head, rounded to fp16: bits of fp32, int32 `(head_dim // 4,)`."""
        dim = config.head_dim // 2
        inv_freq = 1.0 / (config.rope_theta ** (torch.arange(0, dim, 2, dtype=torch.float32, device="cpu") / dim))
        return inv_freq.half().float().view(torch.int32)

    @torch.no_grad()
    def forward(self, position_ids: torch.LongTensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """Channels `(2, B, L)` to tables `(B, L, 1, 1, 2, 2, D // 4)` that broadcast over heads, query and key."""
        inv_freq = self.inv_freq_bits.view(torch.float32)
        # CODEPATH: True repeats THUDM's half-precision run of chatglm-6b; no published config.json sets it.
        table_dtype = torch.float16 if self.config.rope_half_precision else torch.float32
        angles = position_ids.to(table_dtype)[..., None] * inv_freq.to(table_dtype)
        cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
        cos = torch.stack((cos, cos), dim=-2)  # (2, B, L, 2, D // 4): the same for both halves
        sin = torch.stack((-sin, sin), dim=-2)
        return cos.permute(1, 2, 0, 3, 4)[:, :, None, None], sin.permute(1, 2, 0, 3, 4)[:, :, None, None]


def rotate_query_key(query_key: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Turn queries and keys together: `(B, L, H, 2, D)` in and out; the halves (a, b) of an axis become
    (a cos - b sin, b cos + a sin)."""
    halves = query_key.unflatten(-1, (2, 2, -1))
    return torch.addcmul(halves * cos, halves.flip(-2), sin).flatten(-3)


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    **kwargs,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention in plain matrix products. Scores are divided by the layer's number until they are in fp32, as
    published: deep layers overflow fp16 otherwise."""
    coefficient = module.layer_idx + 1
    wide = torch.promote_types(query.dtype, torch.float32)
    scores = torch.matmul(query * (scaling / coefficient), key.transpose(2, 3)).to(wide) * coefficient  # (B, H, L, M)
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = nn.functional.softmax(scores, dim=-1).to(value.dtype)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), weights


class ChatGLMAttention(nn.Module):
    """Multi-head attention; rows of `query_key_value` are ordered (head, query | key | value, head width)."""

    def __init__(self, config: ChatGLMConfig, layer_idx: int):
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.head_dim = config.head_dim
        self.scaling = self.head_dim**-0.5
        self.is_causal = True
        self.query_key_value = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        attention_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        fused = self.query_key_value(hidden_states).unflatten(-1, (-1, 3, self.head_dim))  # (B, L, H, 3, D)
        value = fused[..., 2, :]
        # Back to the value's dtype: under autocast the tables are wider than the projection.
        rotated = rotate_query_key(fused[..., :2, :], *position_embeddings).to(value.dtype)
        query, key = rotated[..., 0, :].transpose(1, 2), rotated[..., 1, :].transpose(1, 2)
        value = value.transpose(1, 2)  # (B, H, L, D), like query and key
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)  # (B, H, M, D)

        attention_interface: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        attended, weights = attention_interface(
            self, query, key, value, attention_mask, scaling=self.scaling, **kwargs
        )
        return self.dense(attended.flatten(-2)), weights


class ChatGLMMLP(nn.Module):
    """Two linear maps with the tanh form of GELU between them."""

    def __init__(self, config: ChatGLMConfig):
        super().__init__()
        self.dense_h_to_4h = nn.Linear(config.hidden_size, config.intermediate_size)
        self.dense_4h_to_h = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.dense_4h_to_h(nn.functional.gelu(self.dense_h_to_4h(hidden_states), approximate="tanh"))


class ChatGLMBlock(GradientCheckpointingLayer):
    """`u = s * n1(x) + attention(n1(x))`, then `s * n2(u) + mlp(n2(u))`, with s = `config.residual_scale`."""

    def __init__(self, config: ChatGLMConfig, layer_idx: int):
        super().__init__()
        self.residual_scale = config.residual_scale
        self.input_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = ChatGLMAttention(config, layer_idx)
        self.post_attention_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = ChatGLMMLP(config)

    def forward(self, hidden_states: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> torch.Tensor:
        normed = self.input_layernorm(hidden_states)
        attended, _ = self.attention(normed, **kwargs)
        normed = self.post_attention_layernorm(torch.add(attended, normed, alpha=self.residual_scale))
        return torch.add(self.mlp(normed), normed, alpha=self.residual_scale)


class ChatGLMPreTrainedModel(PreTrainedModel):
    """Loading, saving and initialisation shared by the ChatGLM classes."""

    config: ChatGLMConfig
    base_model_prefix = "transformer"
    main_input_name = "input_ids"
    input_modalities = ("text",)
    supports_gradient_checkpointing = True
    _no_split_modules = ["ChatGLMBlock"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_sdpa = True
    _supports_flex_attn = True
    # Flash attention knows no bidirectional prefix.
    _supports_flash_attn = False
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {"hidden_states": ChatGLMBlock, "attentions": ChatGLMAttention}
    _input_embed_layer = "word_embeddings"
    # Published files hold the frequencies once per layer; they are recomputed.
    _keys_to_ignore_on_load_unexpected = [r"rotary_emb\.inv_freq$"]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if isinstance(module, ChatGLMRotaryEmbedding):
            init.copy_(module.inv_freq_bits, module.compute_inv_freq_bits(module.config))


class ChatGLMModel(ChatGLMPreTrainedModel):
    """ChatGLM without its head: embeddings or token ids to hidden states."""

    def __init__(self, config: ChatGLMConfig):
        super().__init__(config)
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(ChatGLMBlock(config, index) for index in range(config.num_hidden_layers))
        self.final_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.rotary_emb = ChatGLMRotaryEmbedding(config)
        self.post_init()

    @reads_together
    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPast:
        """Hidden states after the final norm.

        Args:
            input_ids (`(B, L)`), inputs_embeds (`(B, L, hidden_size)`): whole prompts ending in `[gMASK]<sop>` and
                possibly an answer. Beside embeddings, in which these are found too, ids only give positions and mask.
            attention_mask (`(B, M)`): 1 = real, 0 = attended by nobody and without a position, anywhere in the row. A
                4-D mask is used as it is.
            position_ids (`(2, B, L)`), token_type_ids (`(B, L)`): see `chatglm_positions`, which makes them from
                `input_ids` and from positions `(B, L)`, if given. Behind a filled cache they go on from its own.
            past_key_values: keys and values of what came before; must hold the whole prefix.

        Raises:
            ValueError: neither ids nor embeddings; ids outside the vocabulary; positions of another shape; a prompt
                without `<sop>` or longer than `max_position_embeddings`.
        """
        if inputs_embeds is None:
            if input_ids is None:
                raise ValueError("give input_ids or inputs_embeds, got neither")
            inputs_embeds = embed_tokens(self.word_embeddings, input_ids)
        is_laid_out = position_ids is not None and token_type_ids is not None  # by a composite, padding left out
        position_ids, token_type_ids = self._complete_positions(
            input_ids, inputs_embeds, attention_mask, position_ids, token_type_ids, past_key_values
        )
        tokens = None if is_laid_out else real_tokens(self, attention_mask, past_key_values, use_cache, kwargs)
        if tokens is not None:
            inputs_embeds, attention_mask = tokens.take_states(inputs_embeds), tokens.real()
            position_ids, token_type_ids = tokens.take(position_ids), tokens.take(token_type_ids)
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache()
        cache: Any = past_key_values
        is_prompt = cache is not None and inputs_embeds.shape[1] > 1 and not torch.compiler.is_compiling()
        if is_prompt and cache.get_seq_length() == 0:
            cache.first_positions = CacheNote([position_ids])  # what follows without positions goes on from them
        mask = PrefixLanguageModel(self.config).mask(inputs_embeds, attention_mask, past_key_values, token_type_ids)
        position_embeddings = self.rotary_emb(position_ids, inputs_embeds.dtype)
        hidden_states = inputs_embeds  # (B, L, hidden size), as behind every layer
        for layer in self.layers:
            hidden_states = layer(
                hidden_states,
                position_embeddings=position_embeddings,
                attention_mask=mask,
                past_key_values=past_key_values,
                **kwargs,
            )
        hidden_states = self.final_layernorm(hidden_states)
        if tokens is not None:
            hidden_states = tokens.put_back(hidden_states)
        return BaseModelOutputWithPast(last_hidden_state=hidden_states, past_key_values=past_key_values)

    def _complete_positions(
        self, input_ids, inputs_embeds, attention_mask, position_ids, token_type_ids, past_key_values
    ) -> tuple[torch.LongTensor, torch.LongTensor]:
        """Positions `(2, B, L)` and token types `(B, L)`, computed from ids, embeddings or cache where not given."""
        shape = inputs_embeds.shape[:2]
        place = position_ids if position_ids is not None and position_ids.dim() == 2 else None
        past_length = 0 if past_key_values is None else past_key_values.get_seq_length()
        if position_ids is None and past_length > 0:
            position_ids = self._positions_behind(past_key_values, past_length, attention_mask, shape)
        elif position_ids is None or (place is not None and past_length == 0):
            if input_ids is None:
                wanted = ChatGLMLanguageModel(self.config).layout_tokens()
                input_ids = find_tokens(inputs_embeds, self.word_embeddings, wanted)
            flat_mask = attention_mask if attention_mask is not None and attention_mask.ndim == 2 else None
            position_ids, _ = chatglm_positions(input_ids, flat_mask, self.config, place)
        if position_ids.shape != (2, *shape):
            raise ValueError(
                f"position_ids must have shape (2, batch, length) = {(2, *shape)}, got {tuple(position_ids.shape)}: "
                "chatglm_positions(input_ids, attention_mask, config) makes them"
            )
        return position_ids, (position_ids[1] > 0).long() if token_type_ids is None else token_type_ids

    @staticmethod
    def _positions_behind(past_key_values, past_length, attention_mask, shape) -> torch.LongTensor:
        """Positions `(2, B, L)` that follow those of a cache, which keeps its first ones (`forward`)."""
        first = CacheNote.read(past_key_values, "first_positions")
        if first is None or first.shape[1] != shape[0]:
            hint = "give the position_ids (2, batch, length) of the new ones too, or use generate, which keeps count"
            raise ValueError(f"past_key_values holds {int(past_length)} tokens: {hint}")
        if attention_mask is None or attention_mask.dim() != 2:
            attention_mask = first.new_ones(shape[0], int(past_length) + shape[1])
        steps = attention_mask[:, first.shape[-1] :].long().cumsum(-1)  # a masked token takes no position
        return freeze_answer(torch.cat((first, first[..., -1:] + steps), dim=-1))[..., -shape[1] :]


class ChatGLMForConditionalGeneration(ChatGLMPreTrainedModel, LanguageModelGenerationMixin):
    """ChatGLM with its language modelling head: `transformer` and `lm_head`, as THUDM's checkpoints name them.

    ```python
    model = ChatGLMForConditionalGeneration.from_pretrained("THUDM/chatglm-6b", dtype=torch.float16)
    answer = model.generate(**tokenizer("你好", return_tensors="pt"), max_new_tokens=64)
    ```
    """

    _tied_weights_keys = {"lm_head.weight": "transformer.word_embeddings.weight"}
    _tp_plan = {"lm_head": "colwise_gather_output"}

    def __init__(self, config: ChatGLMConfig):
        super().__init__(config)
        self.transformer = ChatGLMModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

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
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs: Unpack[TransformersKwargs],
    ) -> CausalLMOutputWithPast:
        """Logits, and the loss where labels are given. Arguments not listed are those of `ChatGLMModel.forward`.

        Args:
            labels (`(B, L)`): ids to predict, -100 where none is asked for; shifted here. The published data asks for
                `<sop>`, the answer and `<eop>`.
            logits_to_keep: positions to project, 0 = all. In train mode with labels and 0 only supervised positions
                are projected and `logits` is `None`; pass the length to get all of them.

        Returns:
            `loss` (mean cross-entropy over the labels, or sum / `num_items_in_batch`), `logits (B, positions, V)`.
        """
        if self.training and labels is not None and use_cache is None:
            use_cache = False
        supervised = supervised_tokens(self, labels, logits_to_keep, kwargs)
        outputs: BaseModelOutputWithPast = self.transformer(  # by name: hooks read them so
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            token_type_ids=token_type_ids,
            use_cache=use_cache,
            **kwargs,
        )
        logits, loss = logits_and_loss(self, outputs.last_hidden_state, labels, logits_to_keep, supervised, **kwargs)
        return CausalLMOutputWithPast(
            loss, logits, outputs.past_key_values, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


class ChatGLMLanguageModel(PrefixLanguageModel):
    """ChatGLM as the language model of an X-LLM: two position channels; its model makes the mask itself."""

    causal_lm_class = ChatGLMForConditionalGeneration

    def build(self) -> ChatGLMModel:
        return ChatGLMModel._from_config(self.config)

    def note(self) -> str:
        # CODEPATH: True repeats THUDM's half-precision run of chatglm-6b; no published config.json sets it.
        if str(self.config.dtype).removeprefix("torch.") != "float16" or self.config.rope_half_precision:
            return ""
        numbers = "text_config.rope_half_precision = true in config.json gives the numbers of the published fp16 model"
        return f"rotary angles are computed in float32; {numbers}"

    def layout_tokens(self) -> list[int]:
        ids = (self.config.gmask_token_id, self.config.bos_token_id, self.config.mask_token_id)
        return [token_id for token_id in ids if token_id is not None]

    def empty_prompt(self) -> list[int]:
        return [self.config.gmask_token_id, self.config.bos_token_id]

    def prompt_layout(self, input_ids, model_kwargs) -> dict[str, torch.Tensor]:
        layout = super().prompt_layout(input_ids, model_kwargs)
        if (place := model_kwargs.get("position_ids")) is not None and place.dim() == 2:
            layout["position_ids"], _ = chatglm_positions(
                input_ids, model_kwargs.get("attention_mask"), self.config, place
            )
        return layout

    def layout(self, input_ids, attention_mask, past_length=0) -> dict[str, torch.Tensor]:
        if past_length or input_ids is None:
            return {}  # the model derives them, or says what is missing
        return dict(zip(("position_ids", "token_type_ids"), chatglm_positions(input_ids, attention_mask, self.config)))

    def inputs(self, inputs_embeds, attention_mask, past_key_values, layout) -> dict:
        return {"attention_mask": attention_mask, **layout}

    def next_positions(self, position_ids: torch.LongTensor, number: int) -> torch.LongTensor:
        grown = super().next_positions(position_ids, number)
        if position_ids.shape[-1] > 1:
            return freeze_answer(grown)
        grown[0] = position_ids[0]  # the last of an answer: all others follow at its place
        return grown

    def drafted_positions(self, position_ids: torch.LongTensor) -> torch.LongTensor:
        return freeze_answer(position_ids) if position_ids.dim() == 3 else position_ids


register_language_model(ChatGLMConfig.model_type, ChatGLMLanguageModel)


__all__ = [
    "ChatGLMForConditionalGeneration",
    "ChatGLMLanguageModel",
    "ChatGLMModel",
    "ChatGLMPreTrainedModel",
    "chatglm_positions",
]
