# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Speech that is still coming, from samples to the tokens that the CIF of a row fires.

An encoder that looks at a clip as a whole is not causal. It runs anew for each chunk, over what was said from `left`
seconds before the first frame that is not integrated; frames are integrated, once, when `lookahead` seconds have come
behind them, and the CIF carries on from chunk to chunk. Log-mel energies are computed once per frame (by extractors of
transformers: anew for each chunk), and normalised over what has been said so far.

Legend: T frames of the encoder, U tokens, E, D widths of a frame and a token.
"""

from typing import Any

import numpy as np
import torch

from xllm.modeling_xllm.cformer import ContinuousIntegrateAndFire
from xllm.modeling_xllm.cif import CIFState
from xllm.modeling_xllm.speech_encoders import speech_input
from xllm.processing.audio_decoding import Waveform
from xllm.processing.feature_extraction_xllm import XLLMFeatureExtractor
from xllm.processing.media_kinds import MediaKind


class FilterbankStream:
    """The features of a sound that grows: of new samples only the new frames are computed."""

    def __init__(self, extractor: XLLMFeatureExtractor):
        self.extractor, self._frames = extractor, torch.empty(0, extractor.feature_size)
        self._size, self._rest = 0, np.empty(0, np.float32)  # samples seen, and those from the next frame on

    def put_on(self, wave: Waveform) -> None:
        """Gives a sound its features, for the extractor to find them. Each sound begins as those before it did."""
        self._rest = np.concatenate([self._rest, wave.samples[self._size :]])
        self._size = max(self._size, len(wave.samples))
        if len(self._rest) >= self.extractor.window_length:
            new = self.extractor.filterbank(self._rest)
            self._frames = torch.cat([self._frames, new])
            self._rest = self._rest[len(new) * self.extractor.hop_length :]
        if (count := self.extractor.num_frames(len(wave.samples))) <= len(self._frames):
            self.extractor.keep_features(wave, self.extractor.normalised(self._frames[:count]))


class Listener:
    """Where a model hears a kind of sound: its row, encoder and converter. `fires`: there is a CIF, so that tokens can
    be handed on as they are spoken; else what has been said is heard anew, as a whole."""

    def __init__(self, model: Any, processor: Any, kind: MediaKind, left: float, lookahead: float):
        self.encoder, self.reader, self.left, self.lookahead = model.model, processor.reader(kind), left, lookahead
        names = [name for name, row in processor.rows.items() if row.part == kind.type]
        self.name = getattr(model.config, "modality", names[0])
        self.row = model.config.modalities[self.name]
        self.interface = self.encoder.interfaces[self.name]
        self.converter = self.interface.used_converter
        self.cif: Any = getattr(self.converter, "cif", None)
        is_alone = len(names) == 1 and self.reader is processor.feature_extractor
        self.fires = is_alone and isinstance(self.cif, ContinuousIntegrateAndFire) and self.row.encoder is not None
        self.frame = processor.seconds_per_frame if self.fires else 0.0
        conv = getattr(self.cif, "conv", None)
        self.reach = conv.kernel_size[0] // 2 if self.fires and conv is not None else 0
        self.rule = speech_input(self.encoder.tower(self.row.encoder).config) if self.fires else None

    def embed(self, tokens: torch.Tensor, with_adapter: bool) -> torch.Tensor:
        """What the C-Former makes of fired tokens `(1, U, D)`, and the adapter of that."""
        embeddings = self.converter(tokens, token_level=True).embeddings
        return self.interface.activation(self.interface.adapter(embeddings)) if with_adapter else embeddings


class FiringWindow:
    """What has fired of one window of a stream."""

    def __init__(self, listener: Listener):
        self.listener, self.frames = listener, 0  # that are integrated
        self.ends: list[float] = []  # of the tokens, in frames
        self.tokens = torch.empty(0)  # (1, U, D)
        self._state: CIFState | None = None
        self._ahead: tuple[int, torch.Tensor | None] = -1, None  # of so many samples, the frames that wait
        self._bank = FilterbankStream(listener.reader) if isinstance(listener.reader, XLLMFeatureExtractor) else None

    def prepare(self, wave: Waveform) -> Waveform:
        """The window's samples so far, with what is known of their features."""
        if self._bank is not None:
            self._bank.put_on(wave)
        return wave

    def hear(self, batch: Any, size: int, count: int | None) -> int:
        """Integrates `count` frames more, or all and the end, of the `size` samples whose features `batch` holds.
        Returns how many tokens that fires."""
        hidden: Any = self._ahead[1] if self._ahead[0] == size else self._encode(batch)
        now = hidden if count is None else hidden[:, :count]
        fired = self.listener.cif(now, state=self._state, is_last=count is None)
        self._state, self._ahead = fired.state, (size, hidden[:, now.shape[1] :])
        self.tokens = torch.cat([self.tokens, fired.embeddings], 1) if self.frames else fired.embeddings
        self.frames += now.shape[1]
        self.ends += fired.fire_frames[0].tolist()
        return fired.embeddings.shape[1]

    def _encode(self, batch: Any) -> torch.Tensor:
        """The frames behind those that are integrated, `(1, T, E)`."""
        hears = self.listener
        inputs, mask = batch[hears.row.input_name], batch[hears.row.mask_name]
        # What reads windows of a fixed size reads the whole of one, however little is new.
        first = 0 if hears.rule and hears.rule.window else max(0, self.frames - int(hears.left / hears.frame))
        place, weight = first * hears.row.positions_per_frame, hears.interface.adapter.weight
        if self.frames and hears.rule and hears.rule.num_frames(int(mask.sum()) - place) < 1:
            return weight.new_zeros(1, 0, hears.row.encoder_hidden_size)  # too little for a frame is left
        output, real = hears.encoder.encode(hears.name, inputs[:, place:], mask[:, place:])
        return output.last_hidden_state[:, self.frames - first : int(real.sum())].to(weight.dtype)


__all__ = ["FilterbankStream", "FiringWindow", "Listener"]
