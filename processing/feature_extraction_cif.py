# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Pre-extracted CIF features: one vector per spoken token, from `.npy` files, as the authors' speech data has them.

They take the place of sound for a model whose speech row is `token_level`: no encoder and no CIF are run. The authors'
files are float32 `[L, 512]` of an encoder that was never published. Nothing is ever unpickled.
Legend: L tokens.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.lib import format as npy_format

from .feature_extraction_xllm import ClipFeatureExtractor
from .media_sources import MediaError, describe_source, media_errors, open_media


@dataclass(frozen=True, eq=False)
class FiredTokens:
    """Features of one clip, read and checked: `vectors` `(L, feature_size)`, float32."""

    vectors: np.ndarray


def load_cif_features(source: Any, feature_size: int = 512) -> np.ndarray:
    """Reads the features of one clip, `(L, feature_size)`, float32, L at least 1.

    `source` is a `.npy` file in any form that `open_media` takes, an array or tensor, or `FiredTokens`.

    Raises:
        MediaError: no such file, no `.npy` file, pickled objects in it, another shape, no floats, not finite.
    """
    if isinstance(source, FiredTokens):
        return source.vectors
    name = describe_source(source)
    if isinstance(source, dict) and source.get("array") is not None:
        source = source["array"]
    if isinstance(source, torch.Tensor):
        source = source.detach().float().cpu().numpy()
    if isinstance(source, np.ndarray):
        features = source
    else:
        with open_media(source) as (file, name):
            if file.read(len(npy_format.MAGIC_PREFIX)) != npy_format.MAGIC_PREFIX:
                raise MediaError(name, "not a NumPy .npy file: this model reads pre-extracted CIF features, no sound")
            file.seek(0)
            damages = (ValueError, EOFError, OSError, MemoryError)
            with media_errors(name, "not a readable .npy file of numbers", damages):
                features = npy_format.read_array(file, allow_pickle=False)
    if features.dtype.kind != "f" or features.ndim != 2 or features.shape[1] != feature_size:
        got = f"{features.dtype} of shape {features.shape}"
        raise MediaError(name, f"CIF features are floats of shape (tokens, {feature_size}), got {got}")
    if len(features) == 0:
        raise MediaError(name, "holds no features: 0 tokens")
    with np.errstate(over="ignore"):
        features = np.ascontiguousarray(features, dtype=np.float32)
    if not np.isfinite(features).all():
        raise MediaError(name, "holds features that are not finite numbers")
    return features


class XLLMCIFFeatureExtractor(ClipFeatureExtractor):
    """Pads pre-extracted CIF features to a batch, under the names that sound would have.

    ```python
    >>> batch = XLLMCIFFeatureExtractor()(["a.npy", "b.npy"], return_tensors="pt")
    >>> batch["input_features"].shape, batch["input_features_mask"].shape  # (2, L, 512), (2, L)
    ```

    `feature_size` is the width of the vectors, `padding_value` fills up shorter clips.
    """

    def __init__(self, feature_size: int = 512, padding_value: float = 0.0, **kwargs: Any):
        kwargs.setdefault("sampling_rate", 16_000)  # the base class wants one; the vectors have no clock
        super().__init__(feature_size=feature_size, padding_value=padding_value, **kwargs)

    def load(self, source: Any) -> FiredTokens:
        """The features of one clip, read once; see `load_cif_features`."""
        return FiredTokens(load_cif_features(source, self.feature_size))

    def num_frames(self, num_tokens: int) -> int:
        """Vectors of a clip with `num_tokens` vectors."""
        return num_tokens

    def _features(self, raw_speech: Any, sampling_rate: int | None) -> list[np.ndarray]:
        clips = raw_speech if isinstance(raw_speech, (list, tuple)) else [raw_speech]
        return [load_cif_features(clip, self.feature_size) for clip in clips]


__all__ = ["FiredTokens", "XLLMCIFFeatureExtractor", "load_cif_features"]
