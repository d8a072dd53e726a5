# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Waveforms to the inputs of any speech encoder, under one name and in one layout, whichever feature extractor it came
with.

transformers' extractors differ in names (`input_features`, `input_values`), layout (Whisper's mel bins come first),
masks and padding; the model reads `input_features` `(clips, time, features)`, or `(clips, samples)` for encoders of
the waveform itself, with `input_features_mask` `(clips, time)`. Each clip goes through the extractor alone, so that a
batch cannot change it. A clip longer than Whisper's 30 s is not cut: it gets as many windows as it needs, the last one
filled with silence, as Whisper's own extractor fills it; the model encodes window by window.
"""

from typing import Any

import numpy as np
import torch
from transformers import BatchFeature, SequenceFeatureExtractor, WhisperFeatureExtractor

from .audio_decoding import Waveform
from .feature_extraction_cif import XLLMCIFFeatureExtractor
from .feature_extraction_xllm import XLLMFeatureExtractor


MASK_NAMES = ("attention_mask", "input_features_mask")


def extract_speech(
    extractor: SequenceFeatureExtractor, clips: list[Any], return_tensors: str | None = None, **kwargs: Any
) -> BatchFeature:
    """Features of clips that have the extractor's sampling rate.

    Args:
        extractor: an `XLLMFeatureExtractor` or a speech feature extractor of transformers.
        clips (`list[Waveform]`): of that rate; for an `XLLMCIFFeatureExtractor` its `FiredTokens`.
        return_tensors (`str`, *optional*): "pt" or "np".
        kwargs: for the extractor.

    Returns:
        `BatchFeature` with `input_features` `(clips, time, features)` or `(clips, samples)`, padded on the right, and
        `input_features_mask` `(clips, time)`, int64, 1 for real positions.
    """
    if isinstance(extractor, (XLLMFeatureExtractor, XLLMCIFFeatureExtractor)):
        return extractor(clips, return_tensors=return_tensors, **kwargs)
    name, windows = extractor.model_input_names[0], {}
    if isinstance(extractor, WhisperFeatureExtractor):  # fills whole windows instead of cutting after the first
        windows = {"padding": "longest", "truncation": False, "pad_to_multiple_of": extractor.n_samples}
    features, masks = [], []
    for clip in clips:
        batch = extractor(clip.samples, return_tensors="np", return_attention_mask=True, **windows, **kwargs)
        values = np.asarray(batch[name][0], np.float32)
        values = values.T if isinstance(extractor, WhisperFeatureExtractor) else values
        mask = next((batch[key][0] for key in MASK_NAMES if key in batch), np.ones(len(values)))
        features.append(torch.from_numpy(np.ascontiguousarray(values)))
        masks.append(torch.from_numpy(np.asarray(mask).astype(np.int64)))
    pad = torch.nn.utils.rnn.pad_sequence
    padded = pad(features, batch_first=True, padding_value=float(extractor.padding_value))
    data = {"input_features": padded, "input_features_mask": pad(masks, batch_first=True)}
    return BatchFeature(data if return_tensors == "pt" else {key: value.numpy() for key, value in data.items()})


def num_positions(extractor: SequenceFeatureExtractor, num_samples: int) -> int:
    """Real positions (frames, or samples) that a clip of `num_samples` samples gives."""
    if isinstance(extractor, XLLMFeatureExtractor):
        return extractor.num_frames(num_samples)
    silence = Waveform(np.zeros(num_samples, np.float32), extractor.sampling_rate)
    batch = extract_speech(extractor, [silence], sampling_rate=extractor.sampling_rate)
    return int(batch["input_features_mask"].sum())
