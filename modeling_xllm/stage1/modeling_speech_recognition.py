# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""First stage of a speech interface: CIF-based recognition (paper sections 3.1 and 3.2; Dong & Xu 2020).

    clips (N, frames, 80) --tower--> frames (N, T, E) --+-- ctc_head ----------------------> CTC        (encoder)
                                                        +-- C-Former: alphas --------------> quantity   (CIF)
                                                        +-- C-Former: tokens -- token_head -> CE        (C-Former)

    loss = (sum CE + quantity_weight * sum_n |sum_t alpha_nt - U_n| + ctc_weight * sum CTC) / tokens

`model` is the composite's own encoder model with one interface; the heads are thrown away afterwards (`save_heads`).

Deviations: the published CIF recognisers decode the fired tokens with an autoregressive transformer; here the
C-Former's own 12 layers stand in its place and one Linear reads each token, since the decoder would be thrown away
with what it has learned. The published loss cuts prediction and target to the shorter one; here exactly as many tokens
fire as the target has.

Legend: N clips, T encoder frames, U tokens, E and H widths of encoder and C-Former, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers.utils import ModelOutput, can_return_tuple

from xllm.modeling_xllm.cformer import CFormer
from xllm.modeling_xllm.modeling_encoders import XLLMEncoderModel, XLLMPreTrainedModel
from xllm.modeling_xllm.stage1.configuration_speech_recognition import SpeechRecognitionConfig
from xllm.modeling_xllm.stage1.ctc_beam_search import ctc_prefix_beam_search
from xllm.modeling_xllm.stage1.heads import StageOneHeadsMixin


IGNORE = -100


@dataclass
class SpeechRecognitionOutput(ModelOutput):
    """Losses and token logits of a batch of clips.

    Args:
        loss: weighted sum of the three below, when `labels` are given.
        ce_loss, quantity_loss, ctc_loss: unweighted, each a sum over the batch divided by the number of tokens.
            `ctc_loss` is None without a CTC head.
        logits (`(N, U, V)`): of the fired tokens; with `labels`, one per label, in their order.
        lengths (`(N,)`): tokens fired per clip.
        fire_frames (`(N, U)`): end of each token, in (fractional) encoder frames.
    """

    loss: torch.FloatTensor | None = None
    ce_loss: torch.FloatTensor | None = None
    quantity_loss: torch.FloatTensor | None = None
    ctc_loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    lengths: torch.LongTensor | None = None
    fire_frames: torch.FloatTensor | None = None


class XLLMForSpeechRecognition(StageOneHeadsMixin, XLLMPreTrainedModel):
    """Stage 1 for a speech interface: recognise, with heads that are thrown away.

    Whether the tower is trained too is decided by `requires_grad` alone; a frozen one runs in eval mode without
    gradient memory. The adapter takes no part in stage 1.

    ```python
    >>> model = XLLMForSpeechRecognition(SpeechRecognitionConfig(vocab_size=len(tokenizer)))
    >>> model(input_features=features, input_features_mask=mask, labels=labels).loss.backward()
    >>> model.eval().transcribe(features, mask)
    >>> XLLMForSpeechRecognition.from_pretrained("runs/a/stage1-speech")  # tower, interface and heads of a run
    ```
    """

    config: SpeechRecognitionConfig
    main_input_name = "input_features"
    input_modalities = ("audio",)
    heads_name = "speech_recognition_heads.safetensors"

    def __init__(self, config: SpeechRecognitionConfig):
        super().__init__(config)
        self.model = XLLMEncoderModel(config)
        self.dropout = nn.Dropout(config.cformer_config.hidden_dropout_prob)
        self.token_head = nn.Linear(config.cformer_config.hidden_size, config.vocab_size)
        # CODEPATH: 0 trains the C-Former by the CIF's losses alone, without this head.
        self.ctc_head = nn.Linear(config.row.encoder_hidden_size, config.ctc_classes) if config.ctc_weight else None
        self.post_init()

    def get_input_embeddings(self) -> None:
        """There are none: the input is a sequence of frames."""

    @property
    def cformer(self) -> CFormer:
        """The C-Former that is trained."""
        return self.model.interfaces[self.config.modality].converter

    @can_return_tuple
    def forward(
        self,
        input_features: torch.FloatTensor,
        input_features_mask: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        **kwargs,
    ) -> SpeechRecognitionOutput:
        """Recognises a batch of clips.

        Args:
            input_features (`(N, frames, 80)`), input_features_mask (`(N, frames)`): log-mel frames; 1 = real.
            labels (`(N, U)`): token ids of the transcripts, -100 = padding (anywhere in a row). With an
                end-of-sentence token among them, as in the published recipe, CIF learns to fire once more.
            num_items_in_batch: what the losses are divided by instead of this batch's number of tokens; the Trainer
                gives the count over all accumulated batches and ranks.

        Raises:
            ValueError: more labels than encoder frames in a clip, a label outside the vocabulary, a batch of labels
                with another number of clips, NaN in the features.
        """
        targets: Any = None if labels is None else self._check_labels(labels, input_features)
        target_lengths: Any = None if labels is None else (labels != IGNORE).sum(1)
        hidden, mask = self._encode(input_features, input_features_mask, **kwargs)
        tokens: Any = self.cformer(hidden, mask, target_lengths)
        logits = self.token_head(self.dropout(tokens.embeddings))
        output = SpeechRecognitionOutput(logits=logits, lengths=tokens.lengths, fire_frames=tokens.fire_frames)
        if labels is None:
            return output
        count = target_lengths.sum().clamp(min=1) if num_items_in_batch is None else num_items_in_batch
        ce_sum = F.cross_entropy(
            logits[tokens.mask].float(), targets, label_smoothing=self.config.label_smoothing, reduction="sum"
        )
        output.ce_loss = ce_sum / count
        output.quantity_loss = (tokens.quantity - target_lengths).abs().sum() / count
        output.loss = output.ce_loss + self.config.quantity_weight * output.quantity_loss
        if self.ctc_head is not None:
            log_probs = self.ctc_head(hidden).float().log_softmax(-1).transpose(0, 1)  # (T, N, classes)
            # zero_infinity: repeated ids need a frame more between them than the clip may have.
            options: dict[str, Any] = {"blank": self.config.ctc_blank, "reduction": "sum", "zero_infinity": True}
            output.ctc_loss = F.ctc_loss(log_probs, targets, mask.sum(1), target_lengths, **options) / count
            output.loss = output.loss + self.config.ctc_weight * output.ctc_loss
        return output

    @torch.no_grad()
    def transcribe(
        self,
        input_features: torch.FloatTensor,
        input_features_mask: torch.Tensor | None = None,
        decode: str = "cif",
        num_beams: int = 8,
        cif_weight: float = 1.0,
        return_fire_frames: bool = False,
    ) -> list[list[int]] | tuple[list[list[int]], list[list[float]]]:
        """Transcripts, one list of ids per clip (none where nothing fires). Call `eval()` first.

        Args:
            input_features, input_features_mask: as in `forward`.
            decode: "cif", the best id of each fired token (the head reads them one by one, so that a beam over it
                would find no other); "ctc", the best path of the encoder's CTC head; "beam", a prefix beam search over
                the CTC head, whose best transcripts are ranked by `log p_ctc(y) + cif_weight log p_cif(y)`, the latter
                with the CIF scaled to fire as many tokens as `y` has, as in training.
            num_beams: transcripts that are followed from frame to frame.
            cif_weight: share of the CIF in the choice among them; 0 leaves it to CTC alone.
            return_fire_frames: also the end of each token in encoder frames, for the time stamps of
                [`XLLMProcessor.batch_decode`]. Those of "ctc" and "beam" are the CIF's, scaled to the transcript.

        Raises:
            ValueError: an unknown way to decode, a number out of range, or a CTC head needed where there is none.
        """
        if decode not in ("cif", "ctc", "beam"):
            raise ValueError(f"decode must be 'cif', 'ctc' or 'beam', got {decode!r}")
        if num_beams < 1 or cif_weight < 0:
            raise ValueError(f"num_beams must be positive and cif_weight not negative, got {num_beams}, {cif_weight}")
        if decode != "cif" and self.ctc_head is None:
            raise ValueError(f"decode={decode!r} needs a CTC head, but this model was made with ctc_weight=0")
        hidden, mask = self._encode(input_features, input_features_mask)
        tokens = self.cformer(hidden, mask) if decode == "cif" else None
        if tokens is not None:
            best = self.token_head(tokens.embeddings).argmax(-1)
            ids = [row[:length] for row, length in zip(best.tolist(), tokens.lengths.tolist())]
        elif decode == "ctc":
            best = self.ctc_head(hidden).argmax(-1)
            repeats = F.pad(best[:, 1:] == best[:, :-1], (1, 0))
            ids = [row[keep].tolist() for row, keep in zip(best, mask & ~repeats & (best != self.config.ctc_blank))]
        else:
            ids = [self._best_beam(*clip, num_beams, cif_weight) for clip in zip(hidden, mask)]
        if not return_fire_frames:
            return ids
        if tokens is None:
            tokens = self.cformer.cif(hidden, mask, torch.tensor([len(row) for row in ids], device=mask.device))
        return ids, [ends[: len(row)] for ends, row in zip(tokens.fire_frames.tolist(), ids)]

    def _best_beam(self, hidden: torch.Tensor, mask: torch.Tensor, num_beams: int, cif_weight: float) -> list[int]:
        """The best transcript of one clip, `hidden (T, E)`, `mask (T,)`."""
        log_probs = self.ctc_head(hidden[mask]).float().log_softmax(-1)
        transcripts, scores = zip(*ctc_prefix_beam_search(log_probs, self.config.ctc_blank, num_beams))
        if cif_weight:
            cif_scores = self._cif_scores(hidden, mask, transcripts).tolist()
            scores = tuple(score + cif_weight * cif for score, cif in zip(scores, cif_scores))
        return max(zip(scores, transcripts))[1]

    def _cif_scores(self, hidden: torch.Tensor, mask: torch.Tensor, transcripts: Sequence[list[int]]) -> torch.Tensor:
        """log p(transcript) `(N,)` by the token head, of one clip whose CIF fires as many tokens as each has."""
        lengths = sorted({len(ids) for ids in transcripts})
        rows = [tensor.expand(len(lengths), *tensor.shape) for tensor in (hidden, mask)]
        tokens = self.cformer(*rows, torch.tensor(lengths, device=mask.device))
        log_probs = dict(zip(lengths, self.token_head(tokens.embeddings).float().log_softmax(-1).cpu()))
        return torch.stack([log_probs[len(ids)][range(len(ids)), ids].sum() for ids in transcripts])

    def _encode(self, input_features, input_features_mask, **kwargs) -> tuple[torch.Tensor, torch.Tensor]:
        """Encoder frames `(N, T, E)` in the heads' dtype and their mask `(N, T)`."""
        outputs, mask = self.model.encode(self.config.modality, input_features, input_features_mask, **kwargs)
        hidden = outputs.last_hidden_state.to(self.token_head.weight.dtype)
        if mask is None:
            mask = torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device)
        return hidden, mask

    def _check_labels(self, labels, input_features) -> torch.LongTensor:
        """All target ids of the batch, row by row, `(tokens,)`."""
        if labels.dim() != 2 or labels.shape[0] != input_features.shape[0]:
            clips, got = input_features.shape[0], tuple(labels.shape)
            raise ValueError(f"labels must have shape (clips, tokens) with {clips} clips, got {got}")
        targets = labels[labels != IGNORE]
        outside = targets[(targets < 0) | (targets >= self.config.vocab_size)]
        if outside.numel():
            size = self.config.vocab_size
            raise ValueError(f"labels hold the id {int(outside[0])}, but config.vocab_size is {size} (pad: {IGNORE})")
        return targets


__all__ = ["SpeechRecognitionConfig", "SpeechRecognitionOutput", "XLLMForSpeechRecognition"]
