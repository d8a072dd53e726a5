# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Waveforms to the inputs of any audio encoder, and from what CIF fired back to seconds.

transformers' extractors differ in names (`input_features`, `input_values`), layout (Whisper's mel bins come first),
masks and padding; the model reads `input_features` `(clips, time, features)`, or `(clips, samples)` for encoders of
the waveform itself, with `input_features_mask` `(clips, time)`. Each clip goes through the extractor alone, so that a
batch cannot change it. A clip longer than Whisper's 30 s is not cut: it gets as many windows as it needs, the last one
filled with silence, as Whisper's own extractor fills it; the model encodes window by window. So for the spectrograms
of AST and CLAP, which have a fixed size: their extractors would cut what is longer, or draw a part of it by chance.
"""

import functools
from typing import Any

import numpy as np
import torch
from transformers import (
    ASTFeatureExtractor,
    BatchFeature,
    ClapFeatureExtractor,
    ProcessorMixin,
    WhisperFeatureExtractor,
)

from .audio_decoding import Waveform
from .feature_extraction_xllm import ClipFeatureExtractor, XLLMCIFFeatureExtractor
from .media_sources import MediaError


MASK_NAMES = ("attention_mask", "input_features_mask")
# A sound that is heard as a whole, by an encoder whose config sets no limit: most look at all of it at once, and take
# memory by the square of this.
MOST_SECONDS = 300.0
# They read windows, however many.
_WINDOWED = (ASTFeatureExtractor, ClapFeatureExtractor, WhisperFeatureExtractor)


def _windows(extractor: Any, samples: np.ndarray) -> list[tuple[np.ndarray, int | None]]:
    """The parts of a clip that an extractor reads at a time, and how many frames of each are of the clip; `None` where
    the extractor says so itself."""
    if isinstance(extractor, ASTFeatureExtractor):  # Kaldi's frames: 25 ms every 10 ms
        frame, hop = extractor.sampling_rate // 40, extractor.sampling_rate // 100
        step = extractor.max_length * hop
        size = step + frame - hop
    elif isinstance(extractor, ClapFeatureExtractor):  # frames around every hop; a shorter clip is repeated
        frame, hop = 0, extractor.hop_length
        size = step = extractor.nb_max_samples
    else:
        return [(samples, None)]
    parts = [samples[start : start + size] for start in range(0, max(1, len(samples) - (size - step)), step)]
    return [(np.pad(part, (0, max(0, frame - len(part)))), 1 + max(0, len(part) - frame) // hop) for part in parts]


def extract_speech(extractor: Any, clips: list[Any], return_tensors: str | None = None, **kwargs: Any) -> BatchFeature:
    """Features of clips: `Waveform`s of the extractor's rate, or an `XLLMCIFFeatureExtractor`'s `FiredTokens`.

    `extractor` is ours or a speech feature extractor of transformers; `kwargs` are for it.

    Returns:
        `BatchFeature` with `input_features` `(clips, time, features)` or `(clips, samples)`, padded on the right, and
        `input_features_mask` `(clips, time)`, int64, 1 for real positions.
    """
    if isinstance(extractor, ClipFeatureExtractor):
        return extractor(clips, return_tensors=return_tensors, **kwargs)
    name, windows = extractor.model_input_names[0], {}
    kwargs.setdefault("sampling_rate", extractor.sampling_rate)
    if isinstance(extractor, WhisperFeatureExtractor):  # fills whole windows instead of cutting after the first
        windows = {"padding": "longest", "truncation": False, "pad_to_multiple_of": extractor.n_samples}
    features, masks = [], []
    for clip in clips:
        parts = []
        for samples, length in _windows(extractor, clip.samples):
            batch = extractor(samples, return_tensors="np", return_attention_mask=True, **windows, **kwargs)
            values = np.asarray(batch[name][0], np.float32)
            values = values.T if isinstance(extractor, WhisperFeatureExtractor) else values
            values = values[0] if values.ndim == 3 else values  # of CLAP's views, the whole
            own = np.ones(len(values)) if length is None else np.arange(len(values)) < length
            mask = next((batch[key][0] for key in MASK_NAMES if key in batch), own)
            parts.append((np.ascontiguousarray(values), np.asarray(mask).astype(np.int64)))
        values, mask = map(np.concatenate, zip(*parts))
        features.append(torch.from_numpy(values))
        masks.append(torch.from_numpy(mask))
    pad = torch.nn.utils.rnn.pad_sequence
    padded = pad(features, batch_first=True, padding_value=float(extractor.padding_value))
    data = {"input_features": padded, "input_features_mask": pad(masks, batch_first=True)}
    return BatchFeature(data if return_tensors == "pt" else {key: value.numpy() for key, value in data.items()})


def num_positions(extractor: Any, num_samples: int) -> int:
    """Real positions (frames, or samples) that a clip of `num_samples` samples (of CIF features: tokens) gives."""
    if isinstance(extractor, ClipFeatureExtractor):
        return extractor.num_frames(num_samples)
    silence = Waveform(np.zeros(num_samples, np.float32), extractor.sampling_rate)
    batch = extract_speech(extractor, [silence], sampling_rate=extractor.sampling_rate)
    return int(batch["input_features_mask"].sum())


@functools.lru_cache(maxsize=16)
def positions_per_second(extractor: Any) -> float:
    """Input positions of a second of sound: of two lengths, as the first and the last window of a clip cancel out."""
    short, long = (num_positions(extractor, seconds * extractor.sampling_rate) for seconds in (2, 4))
    return (long - short) / 2


def check_length(extractor: Any, clip: Any, most_positions: int | None, instead: str | None = None) -> None:
    """`MediaError` for a decoded sound that is too long to be heard as a whole: by `most_positions`, what its encoder
    has positions for, or else by `MOST_SECONDS`. `instead` hears it window by window."""
    if not isinstance(clip, Waveform) or isinstance(extractor, _WINDOWED):
        return
    seconds, most, why = len(clip.samples) / clip.sampling_rate, MOST_SECONDS, ""
    if most_positions is not None:
        most = most_positions / positions_per_second(extractor)
        why = f", for which its encoder has positions ({most_positions} of its input)"
    if seconds > most:
        instead = instead or "xllm.transcribe(model, processor, file), or --window 20 of xllm chat and xllm evaluate"
        raise MediaError(
            f"a sound of {seconds:.1f} s",
            f"the most that is heard as a whole is {most:g} s{why}; hear it window by window: {instead}",
        )


class TimestampsMixin(ProcessorMixin):
    """When each token was spoken, for a processor with `tokenizer` and `feature_extractor`."""

    subsampling_factor: int

    @property
    def seconds_per_frame(self) -> float:
        """Seconds from one frame of the speech encoder to the next: of an input position, times `subsampling_factor`.

        Raises:
            ValueError: the inputs are tokens that were fired before, and carry no time.
        """
        extractor = self.feature_extractor
        if isinstance(extractor, XLLMCIFFeatureExtractor):
            raise ValueError("time stamps need sound, but this model reads pre-extracted CIF features, without time")
        return self.subsampling_factor / positions_per_second(extractor)

    def decode(self, token_ids: Any, fire_frames: Any = None, **kwargs: Any) -> Any:
        """The tokenizer's `decode`; with `fire_frames`, `batch_decode` of one transcript."""
        if fire_frames is None:
            return super().decode(token_ids, **kwargs)
        texts, timestamps = self.batch_decode([token_ids], [fire_frames], **kwargs)
        return texts[0], timestamps[0]

    def batch_decode(self, sequences: Any, fire_frames: Any = None, **kwargs: Any) -> Any:
        """The tokenizer's `batch_decode`, and when each token of a transcript was spoken.

        ```python
        >>> ids, fire_frames = recogniser.transcribe(**inputs, return_fire_frames=True)
        >>> texts, timestamps = processor.batch_decode(ids, fire_frames=fire_frames)
        >>> timestamps[0][:2]
        [{'token': 'good', 'start': 0.0, 'end': 0.41}, {'token': 'morning', 'start': 0.41, 'end': 0.93}]
        ```

        Args:
            sequences, fire_frames: rows of token ids, and of as many ends of tokens in encoder frames, as CIF gives.
            kwargs: for the tokenizer, e.g. `skip_special_tokens=True`; what is skipped has no time stamp.

        Returns:
            the texts; with `fire_frames` also, per row, a list of `{"token": str, "start": seconds, "end": seconds}`
            (the form of transformers' Parakeet). A token starts where the one before it ended: CIF divides all of the
            clip among its tokens, pauses included. Ids that are a character only together (bytes) are one entry.

        Raises:
            ValueError: a row with more or fewer times than ids, or no known frame rate.
        """
        if fire_frames is None:
            return super().batch_decode(sequences, **kwargs)
        step = self.seconds_per_frame
        if (times := [len(row) for row in fire_frames]) != (ids := [len(row) for row in sequences]):
            raise ValueError(
                f"fire_frames: got rows of {times} numbers beside rows of {ids} ids; cut both to the tokens that fired"
            )
        timestamps = [self._timestamps(ids, row, step, kwargs) for ids, row in zip(sequences, fire_frames)]
        return super().batch_decode(sequences, **kwargs), timestamps

    def _timestamps(self, ids: Any, fire_frames: Any, step: float, kwargs: dict) -> list[dict]:
        bounds = [0.0, *(step * float(frame) for frame in fire_frames)]
        stamps, first = [], 0
        for last in range(len(ids)):
            token = self.tokenizer.decode(ids[first : last + 1], **kwargs)
            if token.endswith("\ufffd") and last + 1 < len(ids):
                continue  # bytes that are no character yet
            if token:
                stamps.append({"token": token, "start": bounds[first], "end": bounds[last + 1]})
            first = last + 1
        return stamps
