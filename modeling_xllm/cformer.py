# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""The C-Former (X-LLM, arXiv 2305.04160, section 3.1): speech frames in, one embedding per spoken token out.

    frames (B, T, De) --CIF--> tokens (B, U, 512) --Linear, ReLU--> (B, U, 768) --12-layer BERT encoder--> (B, U, 768)

The S-Adapter behind it belongs to the interface (`x2l_interfaces`).

Deviations from the authors' code: CIF is part of the module (there, a private service delivered its output); the idle
word embeddings and pooler of BERT are left out; tokens that did not fire are zero and masked (there, the LLM saw
them); clips of more than `max_position_embeddings` tokens (512, about two minutes of speech) are read in overlapping
windows.

Legend: B clips, T encoder frames, U tokens, P positions of the transformer, W windows, H width.
"""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F
from transformers import BertModel, PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput

from .cif import CIFOutput, ContinuousIntegrateAndFire
from .configuration_cformer import CFormerConfig


@dataclass
class CFormerOutput(ModelOutput):
    """Tokens of a batch of clips.

    Args:
        embeddings (`torch.FloatTensor` of shape `(B, U, H)`): the tokens, zero where none fired.
        mask (`torch.BoolTensor` of shape `(B, U)`): True where a token fired; a clip's tokens come first.
        lengths (`torch.LongTensor` of shape `(B,)`): tokens per clip, 0 for a clip that fires nothing.
        fire_frames (`torch.FloatTensor` of shape `(B, U)`): end of each token, in (fractional) encoder frames. None,
            like the two below, where the inputs were tokens already.
        alphas (`torch.FloatTensor` of shape `(B, T)`): frame weights before any scaling.
        quantity (`torch.FloatTensor` of shape `(B,)`): their sum, the soft token count.
    """

    embeddings: torch.FloatTensor | None = None
    mask: torch.BoolTensor | None = None
    lengths: torch.LongTensor | None = None
    fire_frames: torch.FloatTensor | None = None
    alphas: torch.FloatTensor | None = None
    quantity: torch.FloatTensor | None = None


def _as_fired(tokens, mask, target_lengths) -> CIFOutput:
    """Tokens of another CIF, whose weights and times are not known."""
    if target_lengths is not None:
        raise ValueError("token-level features are fired already: target_lengths have nothing to set")
    mask = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device) if mask is None else mask.bool()
    return CIFOutput(embeddings=tokens.masked_fill(~mask[..., None], 0), mask=mask, lengths=mask.sum(1))


class CFormer(PreTrainedModel):
    """CIF, then a transformer over the fired tokens.

    Example:

    ```python
    >>> cformer = CFormer(CFormerConfig())
    >>> tokens = cformer(frames, frame_mask)
    ```
    """

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
            raise ValueError(
                f"without a CIF the inputs are its tokens: their width encoder_hidden_size "
                f"{config.encoder_hidden_size} must be cif_hidden_size {config.cif_hidden_size}"
            )
        self.cif = None if config.cif_predictor == "none" else ContinuousIntegrateAndFire(config)
        self.pre_proj = self.bert = None
        if config.transformer == "bert":
            self.pre_proj = nn.Linear(config.cif_hidden_size, config.hidden_size)
            self.bert = BertModel._from_config(
                config.bert_config(), attn_implementation=config._attn_implementation, add_pooling_layer=False
            )
            self.bert.embeddings.word_embeddings = None  # tokens arrive as embeddings
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
    ) -> CFormerOutput:
        """Turns the frames of each clip into tokens.

        Args:
            hidden (`torch.FloatTensor` of shape `(B, T, encoder_hidden_size)`): frames of the speech encoder.
            mask (`torch.BoolTensor` of shape `(B, T)`, *optional*): True at real frames.
            target_lengths (`torch.LongTensor` of shape `(B,)`, *optional*): tokens to fire (training).
            token_level (`bool`): `hidden (B, U, cif_hidden_size)` holds tokens that a CIF has fired before, the real
                ones first; ours is passed by. Always so with `cif_predictor="none"`.

        Returns:
            [`CFormerOutput`] with U = the longest clip; under `torch.export` and `torch.compile` U = T.

        Raises:
            ValueError: as [`integrate_and_fire`]; at token level, targets.
        """
        if token_level or self.cif is None:
            fired = _as_fired(hidden, mask, target_lengths)
        else:
            # A graph cannot wait for the number of tokens: it has room for one per frame, which is never too little.
            max_tokens = hidden.shape[1] if torch.compiler.is_compiling() and target_lengths is None else None
            fired = self.cif(hidden, mask, target_lengths, max_tokens)
        embeddings = fired.embeddings
        if self.bert is not None:
            embeddings = F.relu(self.pre_proj(embeddings))
            if embeddings.shape[1] > self.config.max_position_embeddings:
                embeddings = self._contextualise_windows(embeddings, fired.mask, fired.lengths)
            elif embeddings.numel():
                embeddings = self._contextualise(embeddings, fired.mask)
            embeddings = embeddings.masked_fill(~fired.mask[..., None], 0)
        return CFormerOutput(
            embeddings=embeddings,
            mask=fired.mask,
            lengths=fired.lengths,
            fire_frames=fired.fire_frames,
            alphas=fired.alphas,
            quantity=fired.quantity,
        )

    def _contextualise(self, embeddings: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        attention_mask = mask.clone()
        attention_mask[:, 0] = True  # a clip without tokens attends to something, or its softmax is NaN
        return self.bert(inputs_embeds=embeddings, attention_mask=attention_mask.long()).last_hidden_state

    def _contextualise_windows(self, embeddings, mask, lengths) -> torch.Tensor:
        """The transformer over windows of P positions that overlap by half: linear cost, no untrained positions.

        Window w covers tokens [w P/2, w P/2 + P). A token is read from the window in which it stands nearest to the
        centre, among those its own clip needs, so a clip's result does not depend on its batch and a clip of at most P
        tokens gets exactly what it would get alone.
        """
        B, U, H = embeddings.shape
        P = self.config.max_position_embeddings
        step = P // 2
        W = -(-(U - P) // step) + 1
        padding = (W - 1) * step + P - U
        tokens = F.pad(embeddings, (0, 0, 0, padding)).unfold(1, P, step).transpose(2, 3)  # (B, W, P, H)
        windows_needed = ((lengths - P).clamp(min=0) + step - 1) // step + 1  # (B,)
        needed = torch.arange(W, device=lengths.device) < windows_needed[:, None]  # (B, W)
        token_mask = F.pad(mask, (0, padding)).unfold(1, P, step)  # (B, W, P)
        contextual = self._contextualise(tokens[needed], token_mask[needed])
        windows = contextual.new_zeros(B, W, P, H)
        windows[needed] = contextual
        position = torch.arange(U, device=lengths.device)
        window = ((position - P // 4) // step).clamp(min=0).minimum(windows_needed[:, None] - 1)  # (B, U)
        flat = window * P + (position - window * step).clamp(0, P - 1)
        return windows.flatten(1, 2).gather(1, flat[..., None].expand(-1, -1, H))


__all__ = ["CFormer", "CFormerConfig", "CFormerOutput"]
