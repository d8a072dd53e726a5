# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""First stage of a Q-Former's interface: ITC + ITM + ITG (paper section 3.2; BLIP-2 section 3.1).

`model` is the composite's own encoder model with one interface; everything else in the state dict (`text_branch`,
`media_proj`, `text_proj`, `itm_head`, `temperature`) is thrown away afterwards and kept in a separate file.

Deviations from BLIP-2: ln_vision belongs to the tower and is frozen with it; equal captions are not negatives of each
other (`match_equal_texts`); gathered features carry gradients across ranks; in eval mode ITM takes the hardest
negative instead of drawing one, so that an evaluation repeats; a video (a sound that is read in windows) is compared
through its best query of any real frame, and matched through its best frame.

Legend: B pairs, F frames: what the queries read at a time, a frame of a video or a window of a sound (1 for what is
read whole, as an image is); R real ones of all items; N query tokens of a frame, S encoder positions of a frame,
L text tokens, E, H, P widths of encoder, Q-Former and projection.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import initialization as init
from transformers.models.blip_2.modeling_blip_2 import Blip2QFormerModel, Blip2TextEmbeddings
from transformers.utils import ModelOutput, can_return_tuple, logging

from xllm.modeling_xllm.converters import in_windows
from xllm.modeling_xllm.modeling_encoders import XLLMEncoderModel, XLLMPreTrainedModel, place_frames
from xllm.modeling_xllm.stage1.configuration_qformer_pretraining import QFormerPreTrainingConfig
from xllm.modeling_xllm.stage1.heads import StageOneHeadsMixin
from xllm.modeling_xllm.stage1.qformer_objectives import (
    captioning_loss,
    common_sizes,
    contrastive_loss,
    draw_hard_negatives,
    gather_ranks,
    matching_loss,
    max_similarity,
    pair_positives,
    world_rank,
)
from xllm.modeling_xllm.stage1.qformer_text import QFormerTextBranch


logger = logging.get_logger(__name__)
MIN_TEMPERATURE, MAX_TEMPERATURE = 1e-3, 0.5  # ALBEF's limits


@dataclass
class QFormerPreTrainingOutput(ModelOutput):
    """Losses of stage 1 and the similarities behind them.

    Args:
        loss: `itc_loss + itm_loss + itg_loss`, each a mean over the batch; `None` with `return_loss=False`. `itm_loss`
            is 0 where no pair of the batch can serve as a negative.
        similarities (`(B, texts of all ranks)`): cosines, not divided by the temperature.
        media_embeds (`(B, F * N, P)`), text_embeds (`(B, P)`): unit vectors.
        media_mask (`(B, F * N)`): True = query of a real frame.
    """

    loss: torch.FloatTensor | None = None
    itc_loss: torch.FloatTensor | None = None
    itm_loss: torch.FloatTensor | None = None
    itg_loss: torch.FloatTensor | None = None
    similarities: torch.FloatTensor | None = None
    media_embeds: torch.FloatTensor | None = None
    text_embeds: torch.FloatTensor | None = None
    media_mask: torch.BoolTensor | None = None


@dataclass
class QueriedMedia:
    """Media after the encoder and the queries' own pass through the Q-Former: `encoder_states (B, F, S, E)`, zero in
    masked frames; `encoder_mask (B, F, S)`: their real positions, or `None`: all; `frame_mask (B, F)`; `query_states`:
    what entered each layer, then the output, `(B, F * N, H)` each; `query_mask (B, F * N)`."""

    encoder_states: torch.Tensor
    encoder_mask: torch.BoolTensor | None
    frame_mask: torch.BoolTensor
    query_states: tuple[torch.Tensor, ...]
    query_mask: torch.BoolTensor


class XLLMForQFormerPreTraining(StageOneHeadsMixin, XLLMPreTrainedModel):
    """Stage 1 for an interface whose converter is a Q-Former: contrast, match and caption; one caption per item.

    Freeze the tower before training (`model.model.vision_tower.requires_grad_(False)` or `freeze_for_stage`): it then
    runs in eval mode and without gradient memory. The adapter takes no part in stage 1.

        media --tower--> (B, F, S, E) --queries--> (B, F * N, H) --media_proj--> (B, F * N, P) --+
        text  --Q-Former without pictures--> (B, L, H) --[CLS], text_proj--> (B, P) -------------+-- ITC
        queries and text together, itm_head --> (B, 2)                                           ITM
        text after the queries, word embedding --> (B, L, V)                                     ITG
    """

    config: QFormerPreTrainingConfig
    main_input_name = "input_ids"
    heads_name = "qformer_pretraining_heads.safetensors"
    # Not in LAVIS's files, and not used in stage 1.
    _keys_to_ignore_on_load_missing = [r"model\.interfaces\..+\.adapter\."]
    # The losses are means over the batch, not sums over num_items_in_batch: with False the Trainer divides by the
    # number of accumulation steps itself (transformers 5.23, trainer.py:517 and :2107).
    accepts_loss_kwargs = False

    def __init__(self, config: QFormerPreTrainingConfig):
        super().__init__(config)
        self.model = XLLMEncoderModel(config)
        qformer_config = config.row_of_converter(config.modality).qformer_config
        H, P = qformer_config.hidden_size, config.projection_size
        self.text_branch = QFormerTextBranch(
            qformer_config, config.text_vocab_size, config.text_pad_token_id, config.text_max_positions
        )
        self.media_proj = nn.Linear(H, P)
        self.text_proj = nn.Linear(H, P)
        self.itm_head = nn.Linear(H, 2)
        self.temperature = nn.Parameter(torch.full((1,), config.initial_temperature))
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, XLLMForQFormerPreTraining):
            init.constant_(module.temperature, self.config.initial_temperature)
        elif isinstance(module, QFormerTextBranch):
            init.zeros_(module.lm_bias)
        elif isinstance(module, Blip2TextEmbeddings):
            init.copy_(module.position_ids, torch.arange(module.position_ids.shape[-1]).expand((1, -1)))

    def get_input_embeddings(self) -> nn.Module:
        return self.text_branch.embeddings.word_embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.text_branch.embeddings.word_embeddings = value

    @property
    def query_tokens(self) -> nn.Parameter:
        """(1, N, H), of the interface that is trained."""
        return self.model.interfaces[self.config.modality].converter.query_tokens

    @property
    def qformer(self) -> Blip2QFormerModel:
        """The Q-Former that is trained: the interface's own, or the one it shares."""
        owner = self.config.row.shares_converter_with or self.config.modality
        return self.model.interfaces[owner].converter.qformer

    def query_media(
        self,
        pixel_values: torch.FloatTensor | None = None,
        pixel_values_videos: torch.FloatTensor | None = None,
        video_frame_mask: torch.Tensor | None = None,
        **media: torch.Tensor | None,
    ) -> QueriedMedia:
        """Run the tower, then the queries, on images `(B, 3, H, W)`, videos `(B, F, 3, H, W)` with mask `(B, F)`, or
        what else the row reads, under its `input_name` and `mask_name`. Media that the interface does not take, or an
        item without a real frame, are a `ValueError`."""
        row, name = self.config.row, self.config.modality
        media |= {"video_frame_mask": video_frame_mask, "pixel_values_videos": pixel_values_videos}
        given = {key: value for key, value in {"pixel_values": pixel_values, **media}.items() if value is not None}
        mask = None if row.mask_name is None else given.pop(row.mask_name, None)
        if list(given) != [row.input_name]:
            got = " and ".join(given) or "no media"
            raise ValueError(f"the {name!r} interface reads {row.input_name}, got {got}")
        if mask is not None and not (mask := mask.bool()).any(dim=1).all():
            raise ValueError(f"{row.mask_name} has a row of zeros: each {name} needs at least one real frame")
        states, real, frame_mask = self._encode(given[row.input_name], mask)
        queried = self.qformer(
            query_embeds=self.query_tokens.expand(states.shape[0], -1, -1),
            encoder_hidden_states=states,
            encoder_attention_mask=None if real is None else real.to(states.dtype),
            output_hidden_states=True,
        )
        query_states = tuple(place_frames(hidden, frame_mask).flatten(1, 2) for hidden in queried.hidden_states)
        query_mask = frame_mask.repeat_interleave(self.query_tokens.shape[1], dim=1)
        real = None if real is None else place_frames(real, frame_mask)
        return QueriedMedia(place_frames(states, frame_mask), real, frame_mask, query_states, query_mask)

    def _encode(self, media: torch.Tensor, mask: torch.BoolTensor | None):
        """Encoder states `(R, S, E)` of the real frames, their real positions `(R, S)`, or `None`: all, and which
        frames are real, `(B, F)`."""
        row, name = self.config.row, self.config.modality
        is_series, window = row.num_frames is not None, self.model.interfaces[name].converter.window
        if mask is None and (is_series or row.encoder is None):
            mask = torch.ones(media.shape[:2], dtype=torch.bool, device=media.device)
        encoded, real = self.model.encode(name, media, mask)
        states = encoded.last_hidden_state
        if is_series:
            return states, real, mask
        if window is None:
            return states, real, torch.ones(len(states), 1, dtype=torch.bool, device=states.device)
        states, real = in_windows(states, real, window)  # (B, F, S, E), (B, F, S)
        frame_mask = real.any(-1)
        return states[frame_mask], real[frame_mask], frame_mask

    def embed_media(self, media: QueriedMedia) -> torch.Tensor:
        """Unit vectors `(B, F * N, P)`, one per query."""
        hidden = media.query_states[-1].to(self.media_proj.weight.dtype)
        return nn.functional.normalize(self.media_proj(hidden), dim=-1)

    def embed_text(self, input_ids: torch.LongTensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        """Unit vectors `(B, P)` from the first token, `[CLS]`, of texts `(B, L)` that are padded on the right."""
        return self._embed_text(input_ids, self._check_text(input_ids, attention_mask))

    def _embed_text(self, input_ids, attention_mask) -> torch.Tensor:
        hidden = self.text_branch.encode(self.qformer, input_ids, attention_mask)[:, 0]
        return nn.functional.normalize(self.text_proj(hidden), dim=-1)

    def match(
        self, media: QueriedMedia, input_ids: torch.LongTensor, attention_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """ITM logits `(B, 2)`, [apart, together], of item i with text i: mean over the queries of its best frame."""
        attention_mask = self._check_text(input_ids, attention_mask, items=media.frame_mask.shape[0])
        return self._match(media.encoder_states, media.encoder_mask, media.frame_mask, input_ids, attention_mask)

    def _match(self, encoder_states, encoder_mask, frame_mask, input_ids, attention_mask) -> torch.Tensor:
        hidden = self.text_branch.match(
            self.qformer, input_ids, attention_mask, self.query_tokens, encoder_states, frame_mask, encoder_mask
        )
        frames = self.itm_head(hidden).unflatten(1, (frame_mask.shape[1], -1)).mean(dim=2)  # (B, F, 2)
        # A caption belongs to a video if it belongs to one frame: a mean would drown that frame in the others.
        margins = (frames[..., 1] - frames[..., 0]).masked_fill(~frame_mask, float("-inf"))  # (B, F)
        return frames[torch.arange(len(frames), device=frames.device), margins.argmax(dim=1)]

    def caption_states(
        self, media: QueriedMedia, input_ids: torch.LongTensor, attention_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Hidden states `(B, L, H)` of captions, their first token replaced by `[DEC]`; for `lm_logits`."""
        attention_mask = self._check_text(input_ids, attention_mask, items=media.frame_mask.shape[0])
        return self._caption_states(media, input_ids, attention_mask)

    def _caption_states(self, media: QueriedMedia, input_ids, attention_mask) -> torch.Tensor:
        input_ids = input_ids.clone()
        input_ids[:, 0] = self.config.text_bos_token_id
        return self.text_branch.decode(self.qformer, input_ids, attention_mask, media.query_states, media.query_mask)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor | None = None,
        pixel_values: torch.FloatTensor | None = None,
        pixel_values_videos: torch.FloatTensor | None = None,
        video_frame_mask: torch.Tensor | None = None,
        return_loss: bool = True,
        **media: torch.Tensor | None,
    ) -> QFormerPreTrainingOutput:
        """Losses of a batch of pairs (BLIP-2 section 3.1; ITC + ITM + ITG, unweighted).

        Args:
            input_ids, attention_mask (`(B, L)`): captions, `[CLS] ... [SEP]`, padded on the right; 1 = real token.
            pixel_values (`(B, 3, H, W)`): for an image interface.
            pixel_values_videos (`(B, F, 3, H, W)`), video_frame_mask (`(B, F)`, 1 = real): for a video interface.
            return_loss: False for similarities alone.
            Media of any other interface come under the `input_name` and `mask_name` of its row.

        Raises:
            ValueError: media of the wrong kind, another number of items than of texts, text padded on the left, too
                long or shorter than two tokens, ranks with batches of different size.
        """
        queried = self.query_media(pixel_values, pixel_values_videos, video_frame_mask, **media)
        attention_mask = self._check_text(input_ids, attention_mask, items=queried.frame_mask.shape[0])
        input_ids = input_ids.masked_fill(attention_mask == 0, self.config.text_pad_token_id)
        output = QFormerPreTrainingOutput(
            media_embeds=self.embed_media(queried),
            text_embeds=self._embed_text(input_ids, attention_mask),
            media_mask=queried.query_mask,
        )
        if not return_loss:
            output.similarities = max_similarity(output.media_embeds, output.text_embeds, queried.query_mask)
            return output
        everyone, offset = self._gather(queried, output, input_ids, attention_mask)
        if self.training and len(everyone["input_ids"]) == 1:
            logger.warning_once(
                "a step of one pair, which has none to be told apart from: contrast and matching learn nothing from "
                "it; raise per_device_train_batch_size"
            )
        own_ids = everyone["input_ids"][offset : offset + input_ids.shape[0]]
        positives = pair_positives(own_ids, everyone["input_ids"], offset, self.config.match_equal_texts)
        output.similarities = max_similarity(output.media_embeds, everyone["text_embeds"], queried.query_mask)
        text_to_media = max_similarity(everyone["media_embeds"], output.text_embeds, everyone["query_mask"]).T
        temperature = self.temperature.float().clamp(MIN_TEMPERATURE, MAX_TEMPERATURE)
        scores = (output.similarities / temperature, text_to_media / temperature)
        output.itc_loss = contrastive_loss(*scores, positives, self.config.label_smoothing)
        output.itm_loss = self._matching(everyone, offset, scores, positives)
        supervised = attention_mask[:, 1:].bool()  # only positions with a target are projected to the vocabulary
        hidden = self._caption_states(queried, input_ids, attention_mask)[:, :-1][supervised]
        targets = input_ids[:, 1:][supervised]
        output.itg_loss = captioning_loss(self.text_branch.lm_logits(hidden), targets, self.config.label_smoothing)
        output.loss = output.itc_loss + output.itm_loss + output.itg_loss
        return output

    def _gather(self, media: QueriedMedia, output, input_ids, attention_mask) -> tuple[dict[str, Any], int]:
        """All ranks' pairs (W * B of them), padded alike, and the place of this rank's first one."""
        B, F, S = media.encoder_states.shape[:3]
        real = media.encoder_mask
        sizes = (F, S, input_ids.shape[1], -S, real is not None)
        F, S, L, negative_least, is_masked = common_sizes(B, *sizes, device=input_ids.device)
        if real is None and (is_masked or -negative_least < S):  # pictures of another size on another rank
            real = torch.ones(media.encoder_states.shape[:3], dtype=torch.bool, device=input_ids.device)
        Q = F * self.query_tokens.shape[1]
        everyone = {
            "input_ids": gather_ranks(input_ids, (L,), self.config.text_pad_token_id),
            "attention_mask": gather_ranks(attention_mask, (L,)),
            "encoder_states": gather_ranks(media.encoder_states, (F, S)),
            "encoder_mask": None if real is None else gather_ranks(real, (F, S)),
            "frame_mask": gather_ranks(media.frame_mask, (F,)),
            "text_embeds": gather_ranks(output.text_embeds),
            "media_embeds": gather_ranks(output.media_embeds, (Q,)),
            "query_mask": gather_ranks(media.query_mask, (Q,)),
        }
        return everyone, world_rank() * B

    def _matching(self, everyone: dict, offset: int, scores: tuple, positives: torch.BoolTensor) -> torch.Tensor:
        """ITM over 3B pairs: (own, own), (hard item, own text), (own item, hard text)."""
        B = positives.shape[0]
        hard_text, found = draw_hard_negatives(scores[0], positives, hardest=not self.training)
        hard_item, _ = draw_hard_negatives(scores[1], positives, hardest=not self.training)
        own = torch.arange(offset, offset + B, device=positives.device)
        items, texts = torch.cat([own, hard_item, own]), torch.cat([own, own, hard_text])
        media = [everyone[name] for name in ("encoder_states", "encoder_mask", "frame_mask")]
        media = [tensor if tensor is None else tensor[items] for tensor in media]
        logits = self._match(*media, *(everyone[name][texts] for name in ("input_ids", "attention_mask")))
        labels = torch.cat([torch.ones_like(own), torch.zeros_like(own), torch.zeros_like(own)])
        # Positives alone teach nothing but "always together": where nothing is a negative, then for no rank, the whole
        # term is skipped. The graph stays, so that the same parameters have gradients in every step.
        return matching_loss(logits, labels, found.repeat(3))

    def _check_text(self, input_ids, attention_mask=None, items: int | None = None) -> torch.Tensor:
        B, L = input_ids.shape
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        if items is not None and items != B:
            raise ValueError(f"input_ids holds {B} texts for {items} {self.config.modality} items; one text per item")
        if not 2 <= L <= self.config.text_max_positions:
            longest = self.config.text_max_positions
            raise ValueError(f"input_ids has {L} tokens, expected 2 to text_max_positions {longest}")
        if attention_mask.shape != input_ids.shape:
            raise ValueError(f"attention_mask is {tuple(attention_mask.shape)}, input_ids {tuple(input_ids.shape)}")
        if not attention_mask[:, 0].all() or (attention_mask[:, 1:] > attention_mask[:, :-1]).any():
            raise ValueError("attention_mask is not 1...10...0 in every row: pad the text on the right")
        return attention_mask


__all__ = ["QFormerPreTrainingOutput", "QueriedMedia", "XLLMForQFormerPreTraining"]
