# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""The C-Former (X-LLM, arXiv 2305.04160, section 3.1): speech frames in, one embedding per spoken token out.

    frames (B, T, De) --CIF--> tokens (B, U, 512) --Linear, ReLU--> (B, U, 768) --12-layer BERT encoder--> (B, U, 768)

The S-Adapter behind it belongs to the interface (`x2l_interfaces`).

Deviations from the authors' code: CIF is part of the module (there, a private service delivered its output); padding
is zeroed before the convolution of its weight predictor, so that a clip does not depend on its batch; the idle word
embeddings and pooler of BERT are left out; tokens that did not fire are zero and masked (there, the LLM saw them);
clips of more than `max_position_embeddings` tokens (512, about two minutes) are read in overlapping windows.

Legend: B clips, T encoder frames, U tokens, P positions of the transformer, W windows, H width.
"""

from typing import Any

import torch
from torch import distributed, nn
from torch.nn import functional as F
from transformers import BertModel, PreTrainedModel
from transformers import initialization as init

from .cif import CIFOutput, CIFState, integrate_and_fire
from .configuration_cformer import CFormerConfig
from .host_reads import Asked, true_places


class ContinuousIntegrateAndFire(nn.Module):
    """CIF with its weight predictor and output projection (Dong & Xu 2020 sec. 3; the published CIF code).

    `alphas = sigmoid(w . f(hidden) + b)` with `f` by `config.cif_predictor`: "conv" (as published: Conv1d over
    `cif_conv_kernel` frames, dropout, no activation), "dense" (Linear, ReLU, dropout) or "linear" (identity). A Linear
    without bias follows where `config.cif_hidden_size` differs from `config.encoder_hidden_size`.
    """

    def __init__(self, config: CFormerConfig):
        super().__init__()
        self.config = config
        width = config.encoder_hidden_size
        predictor_size = config.cif_predictor_size or width
        self.conv = self.dense = self.output_proj = None
        if config.cif_predictor == "conv":
            kernel = config.cif_conv_kernel
            self.conv = nn.Conv1d(width, predictor_size, kernel, padding=kernel // 2)
        elif config.cif_predictor == "dense":
            self.dense = nn.Linear(width, predictor_size)
        self.dropout = nn.Dropout(config.cif_dropout)
        self.weight_proj = nn.Linear(width if config.cif_predictor == "linear" else predictor_size, 1)
        if config.cif_hidden_size != width:
            self.output_proj = nn.Linear(width, config.cif_hidden_size, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier-uniform linear maps with zero bias, as published; a convolution starts as torch starts one."""
        for linear in filter(None, (self.dense, self.weight_proj, self.output_proj)):
            init.xavier_uniform_(linear.weight)
            if linear.bias is not None:
                init.zeros_(linear.bias)

    def predict_alphas(self, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Frame weights `(B, T)` in float32, 0 where `mask` is 0."""
        if hidden.shape[1] == 0:  # a convolution refuses to see nothing
            return hidden.new_empty(mask.shape).float()
        features = hidden.masked_fill(~mask[..., None], 0)
        if self.conv is not None:
            features = self.conv(features.transpose(1, 2)).transpose(1, 2)
        elif self.dense is not None:
            features = F.relu(self.dense(features))
        if self.config.cif_predictor != "linear":
            features = self.dropout(features)
        alphas = self.weight_proj(features).squeeze(-1).float().sigmoid()
        return alphas.masked_fill(~mask, 0)

    def forward(
        self,
        hidden: torch.Tensor,
        mask: torch.Tensor | None = None,
        target_lengths: torch.Tensor | None = None,
        max_tokens: int | None = None,
        state: CIFState | None = None,
        is_last: bool = True,
    ) -> CIFOutput:
        """Fires `hidden (B, T, D)` into `(B, U, cif_hidden_size)`; arguments and errors as [`integrate_and_fire`].
        `quantity` and `alphas` of the output are the weights before any scaling to `target_lengths`, for the quantity
        loss. In a stream they are those of the frames that this call integrated: with a conv predictor a frame waits
        for the `cif_conv_kernel // 2` frames after it, at the latest for the last chunk."""
        mask = torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device) if mask is None else mask.bool()
        start, end = 0, hidden.shape[1]
        reach = 0 if self.conv is None else self.conv.kernel_size[0] // 2
        if state is not None:
            held: Any = state
            hidden, mask = torch.cat([held.context, hidden], 1), torch.cat([held.context_mask, mask], 1)
            start, end = held.integrated, hidden.shape[1]
        if not is_last:
            end = max(start, end - reach)
        alphas = self.predict_alphas(hidden, mask)[:, start:end]
        names = ("fire_threshold", "tail_threshold", "one_token_per_frame")
        rule = {name: getattr(self.config, f"cif_{name}") for name in names}
        frames = (hidden[:, start:end], alphas, mask[:, start:end], target_lengths)
        fired: Any = integrate_and_fire(*frames, max_tokens=max_tokens, state=state, is_last=is_last, **rule)
        if fired.state is not None:
            kept = max(0, end - reach)
            fired.state.context, fired.state.context_mask = hidden[:, kept:], mask[:, kept:]
            fired.state.integrated = end - kept
        if self.output_proj is not None:
            fired.embeddings = self.output_proj(fired.embeddings)
        fired.quantity, fired.alphas = alphas.sum(1), alphas
        return fired


def world_size() -> int:
    """Processes that compute one model together; 1 outside torch.distributed."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def _with_room(fired: Any) -> CIFOutput:
    """Room for a token where nothing has fired, so that every process runs every layer, whatever its clips hold."""
    fired.embeddings, fired.mask = F.pad(fired.embeddings, (0, 0, 0, 1)), F.pad(fired.mask, (0, 1))
    if fired.quantity is not None:
        fired.embeddings = fired.embeddings + 0.0 * fired.quantity[:, None, None]
        fired.fire_frames = F.pad(fired.fire_frames, (0, 1))
    return fired


class CFormer(PreTrainedModel):
    """CIF, then a transformer over the fired tokens: `CFormer(CFormerConfig())(frames, frame_mask)`."""

    config: CFormerConfig
    base_model_prefix = "cformer"
    main_input_name = "hidden"
    input_modalities = ("audio",)
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_attention_backend = True
    _no_split_modules = ["BertLayer"]

    def __init__(self, config: CFormerConfig):
        super().__init__(config)
        if config.cif_predictor == "none" and config.encoder_hidden_size != config.cif_hidden_size:
            widths = (
                f"encoder_hidden_size {config.encoder_hidden_size} must be cif_hidden_size {config.cif_hidden_size}"
            )
            raise ValueError(f"without a CIF the inputs are its tokens: their width {widths}")
        self.cif = None if config.cif_predictor == "none" else ContinuousIntegrateAndFire(config)
        self.pre_proj = self.bert = None
        if config.transformer == "bert":
            self.pre_proj = nn.Linear(config.cif_hidden_size, config.hidden_size)
            attention = {"attn_implementation": config._attn_implementation}
            self.bert = BertModel._from_config(config.bert_config(), add_pooling_layer=False, **attention)
            self.bert.embeddings.word_embeddings = None  # tokens arrive as embeddings
        self.word_head = None if config.num_words is None else nn.Linear(config.hidden_size, config.num_words)
        self.post_init()

    @classmethod
    def is_custom_code(cls) -> bool:
        return cls.is_remote_code()  # see XLLMPreTrainedModel

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if self.cif is None:
            return
        if module is self.cif.conv:
            init.kaiming_uniform_(module.weight, a=5**0.5)
        elif module in (self.cif.dense, self.cif.weight_proj, self.cif.output_proj):
            init.xavier_uniform_(module.weight)

    def get_input_embeddings(self) -> None:
        """There are none: the input is a sequence of frames."""

    def forward(
        self,
        hidden: torch.Tensor,
        mask: torch.Tensor | None = None,
        target_lengths: torch.Tensor | None = None,
        token_level: bool = False,
    ) -> CIFOutput:
        """Turns the frames of each clip into tokens.

        Args:
            hidden (`(B, T, encoder_hidden_size)`), mask (`(B, T)`): frames of the speech encoder, True at real ones.
            target_lengths (`(B,)`): tokens to fire (training).
            token_level: `hidden (B, U, cif_hidden_size)` holds tokens that a CIF has fired before, the real ones
                first; ours is passed by. Always so with `cif_predictor="none"`. Targets are then a `ValueError`, and
                times and weights are not known.

        Returns:
            [`CIFOutput`], its `embeddings (B, U, output_size)`, U = the longest clip; when compiled or exported U = T.
        """
        fired: Any
        if token_level or self.cif is None:
            if target_lengths is not None:
                raise ValueError("token-level features are fired already: target_lengths have nothing to set")
            mask = (
                torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device) if mask is None else mask.bool()
            )
            fired = CIFOutput(hidden.masked_fill(~mask[..., None], 0), mask, mask.sum(1))
        else:
            # A graph cannot wait for the number of tokens: it has room for one per frame, which is never too little.
            max_tokens = hidden.shape[1] if torch.compiler.is_compiling() and target_lengths is None else None
            fired = self.cif(hidden, mask, target_lengths, max_tokens)
        if fired.embeddings.shape[1] == 0 and world_size() > 1:
            fired = _with_room(fired)
        embeddings = fired.embeddings
        if self.bert is not None:
            embeddings = F.relu(self.pre_proj(embeddings))
            if embeddings.shape[1] > self.config.max_position_embeddings:
                embeddings = self._contextualise_windows(embeddings, fired.mask, fired.lengths)
            elif embeddings.numel():
                embeddings = self._contextualise(embeddings, fired.mask)
        if self.word_head is not None:
            embeddings = self.word_head(embeddings).softmax(-1, dtype=torch.float32).to(embeddings.dtype)
        fired.embeddings = embeddings.masked_fill(~fired.mask[..., None].to(embeddings.device), 0)
        return fired

    def _contextualise(self, embeddings: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        attention_mask = mask.clone()
        attention_mask[:, 0] = True  # a clip without tokens attends to something, or its softmax is NaN
        bert: Any = self.bert
        if bert.config._attn_implementation == "sdpa":  # as it will be: to look whether it is needed is to wait
            U = mask.shape[1]
            attention_mask = attention_mask[:, None, None].expand(-1, -1, U, -1)  # (B, 1, U, U)
        else:
            attention_mask = attention_mask.long()
        return bert(inputs_embeds=embeddings, attention_mask=attention_mask).last_hidden_state

    def _contextualise_windows(self, embeddings, mask, lengths) -> torch.Tensor:
        """The transformer over windows of P positions that overlap by half: linear cost, no untrained positions.
        Window w covers tokens [w P/2, w P/2 + P). A token is read from the window in which it stands nearest to the
        centre, among those its own clip needs, so a clip's result does not depend on its batch and a clip of at most P
        tokens gets exactly what it would get alone."""
        B, U, H = embeddings.shape
        P = self.config.max_position_embeddings
        step = P // 2
        W = -(-(U - P) // step) + 1
        padding = (W - 1) * step + P - U
        tokens = F.pad(embeddings, (0, 0, 0, padding)).unfold(1, P, step).transpose(2, 3)  # (B, W, P, H)
        windows_needed = ((lengths - P).clamp(min=0) + step - 1) // step + 1  # (B,)
        needed = torch.arange(W, device=lengths.device) < windows_needed[:, None]  # (B, W)
        token_mask = F.pad(mask, (0, padding)).unfold(1, P, step)  # (B, W, P)
        places = true_places(needed, *Asked(needed.sum()).values())
        tokens, token_mask = (tensor.flatten(0, 1).index_select(0, places) for tensor in (tokens, token_mask))
        contextual = self._contextualise(tokens, token_mask)
        windows = contextual.new_empty(B * W, P, H).index_copy(0, places, contextual).unflatten(0, (B, W))
        position = torch.arange(U, device=lengths.device)
        window = ((position - P // 4) // step).clamp(min=0).minimum(windows_needed[:, None] - 1)  # (B, U)
        flat = window * P + (position - window * step).clamp(0, P - 1)
        return windows.flatten(1, 2).gather(1, flat[..., None].expand(-1, -1, H))


__all__ = ["CFormer", "CFormerConfig", "ContinuousIntegrateAndFire"]
