# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Waveform to log-mel filterbank frames, the input of the speech encoder (paper sec. 3.1), or what a CIF has fired.

Kaldi's filterbank: frames of 25 ms every 10 ms, pre-emphasis, Povey window, 80 mel bins, natural logarithm, on 16-bit
sample values. It is torchaudio's in a third of the time: its mel bins are made once, its squares without roots.
Deviations: no dither (the same clip gives the same features); each clip is normalised to mean 0 and variance 1 per mel
bin (a switch); a clip shorter than one frame is padded to it. The authors' code sends the wave to a feature service
and reads back 512-d vectors.
Such vectors, one per spoken token, take the place of sound for a model whose speech row is `token_level`: no encoder
and no CIF are run. The authors' `.npy` files are float32 `[L, 512]` of an encoder that was never published.
Legend: A samples, T frames, L tokens.
"""

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.lib import format as npy_format
from torch.nn import functional as F
from torchaudio.compliance.kaldi import get_mel_banks
from transformers.feature_extraction_sequence_utils import SequenceFeatureExtractor
from transformers.feature_extraction_utils import BatchFeature
from transformers.utils import TensorType, logging

from .audio_decoding import Waveform, load_audio
from .media_sources import MediaError, describe_source, media_errors, open_media


logger = logging.get_logger(__name__)

_PCM_SCALE = 32768.0  # Kaldi works on 16-bit sample values; its floor of 1.2e-7 is meant for them
_VARIANCE_FLOOR = 1e-7
_PRE_EMPHASIS = 0.97
_FRAMES_AT_ONCE = 512  # what stays in a CPU's cache


@functools.lru_cache(maxsize=8)
def _kaldi_tables(bins: int, length: int, rate: float, lowest: float, highest: float) -> tuple[torch.Tensor, ...]:
    """Povey's window `(length,)` and torchaudio's mel bins `(frequencies, bins)`; `fbank` makes them each time."""
    padded = 1 << (length - 1).bit_length()
    banks, _ = get_mel_banks(bins, padded, rate, lowest, highest, 100.0, -500.0, 1.0)
    return torch.hann_window(length, periodic=False).pow(0.85), F.pad(banks, (0, 1)).T.contiguous()


class ClipFeatureExtractor(SequenceFeatureExtractor):
    """Pads the features of clips to a batch and masks the padding; a subclass has `_features`, one array per clip."""

    model_input_names = ["input_features", "input_features_mask"]

    def __init__(self, **kwargs: Any):
        if kwargs.get("padding_side", "right") != "right":  # the model counts on real positions first
            raise ValueError(f"padding_side={kwargs['padding_side']!r}, expected 'right': real positions come first")
        super().__init__(**kwargs)

    def num_frames(self, num_samples: int) -> int:
        """Frames that a clip of so many samples gives."""
        raise NotImplementedError

    def _features(self, raw_speech: Any, sampling_rate: int | None) -> list[np.ndarray]:
        raise NotImplementedError

    def __call__(
        self,
        raw_speech: Any,
        sampling_rate: int | None = None,
        padding: bool | str = True,
        max_length: int | None = None,
        truncation: bool = False,
        pad_to_multiple_of: int | None = None,
        return_attention_mask: bool | None = None,
        return_tensors: str | TensorType | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Features of one clip or of a batch.

        Args:
            raw_speech: a clip or a list of them. Sound: waveforms (`Waveform`, array, tensor or list of floats, mono
                `(A,)`); pre-extracted features: what `load_cif_features` takes.
            sampling_rate: of the waveforms in Hz; another one than the extractor's is an error.
            padding, max_length, truncation, pad_to_multiple_of, return_tensors: as in `pad`; lengths are in frames.
            return_attention_mask: without effect: the mask is always returned.

        Returns:
            `BatchFeature` with `input_features` `(clips, T, feature_size)`, float32, and `input_features_mask`
            `(clips, T)`, int64, 1 for real positions, which come first.

        Raises:
            ValueError: another sampling rate, no clips, or (as `MediaError`) a clip that cannot be used.
        """
        features = self._features(raw_speech, sampling_rate)
        if not features:
            raise ValueError("raw_speech: got an empty list, expected at least one clip")
        clips = BatchFeature({"input_features": features})
        batch = self.pad(clips, padding, max_length, truncation, pad_to_multiple_of, return_attention_mask=True)
        mask = [row.astype(np.int64) for row in batch.pop("attention_mask")]
        return BatchFeature({**batch, "input_features_mask": mask}, tensor_type=return_tensors)


class XLLMFeatureExtractor(ClipFeatureExtractor):
    """16 kHz mono sound to 80-d log-mel frames.

    ```python
    >>> batch = XLLMFeatureExtractor()([wave_a, wave_b], sampling_rate=16000, return_tensors="pt")
    >>> batch["input_features"].shape, batch["input_features_mask"].shape  # (2, T, 80), (2, T)
    ```

    Args:
        feature_size: mel bins.
        sampling_rate: rate the sound must have, in Hz.
        padding_value: value of padded frames.
        frame_length_ms, frame_shift_ms: window and hop.
        min_frequency, max_frequency: edges of the mel bins in Hz; the upper one is half the rate by default.
        do_normalize: to mean 0 and variance 1.
        normalize_over: "bin", each mel bin over the clip; or "clip", all bins and frames together, which keeps the
            shape of the spectrum: for clips of a single word, whose mean spectrum tells the word.
    """

    def __init__(
        self,
        feature_size: int = 80,
        sampling_rate: int = 16_000,
        padding_value: float = 0.0,
        frame_length_ms: float = 25.0,
        frame_shift_ms: float = 10.0,
        min_frequency: float = 20.0,
        max_frequency: float | None = None,
        do_normalize: bool = True,
        normalize_over: str = "bin",
        **kwargs: Any,
    ):
        super().__init__(feature_size=feature_size, sampling_rate=sampling_rate, padding_value=padding_value, **kwargs)
        self.frame_length_ms = frame_length_ms
        self.frame_shift_ms = frame_shift_ms
        self.min_frequency = min_frequency
        self.max_frequency = max_frequency
        self.do_normalize = do_normalize
        self.normalize_over = normalize_over
        if normalize_over not in ("bin", "clip"):
            raise ValueError(f"normalize_over: got {normalize_over!r}, expected 'bin' or 'clip'")
        if self.hop_length < 1 or self.window_length < 2:
            raise ValueError(
                f"frame_length_ms={frame_length_ms}, frame_shift_ms={frame_shift_ms}: too short at {sampling_rate} Hz"
            )

    @property
    def window_length(self) -> int:
        """Samples of one frame."""
        return int(self.sampling_rate * self.frame_length_ms / 1000)

    @property
    def hop_length(self) -> int:
        """Samples from one frame to the next."""
        return int(self.sampling_rate * self.frame_shift_ms / 1000)

    def num_frames(self, num_samples: int) -> int:
        """Frames that a clip of `num_samples` samples gives: only whole ones, but at least one."""
        return 1 + max(0, num_samples - self.window_length) // self.hop_length

    def filterbank(self, wave: np.ndarray) -> torch.Tensor:
        """Wave `(A,)` in [-1, 1] to log-mel energies `(T, feature_size)`, float32."""
        length, hop = self.window_length, self.hop_length
        samples = torch.from_numpy(np.ascontiguousarray(wave, dtype=np.float32)) * _PCM_SCALE
        samples = F.pad(samples, (0, max(0, length - len(samples))))
        window, banks = _kaldi_tables(
            self.feature_size, length, float(self.sampling_rate), self.min_frequency, self.max_frequency or 0.0
        )
        frames, energies = samples.unfold(0, length, hop), []  # (T, length)
        room = torch.zeros(min(len(frames), _FRAMES_AT_ONCE), 2 * (len(banks) - 1))
        for part in frames.split(_FRAMES_AT_ONCE):
            part, emphasised = part - part.mean(1, keepdim=True), room[: len(part)]
            torch.sub(part[:, 1:], part[:, :-1], alpha=_PRE_EMPHASIS, out=emphasised[:, 1:length])
            torch.mul(part[:, 0], 1 - _PRE_EMPHASIS, out=emphasised[:, 0])
            emphasised[:, :length].mul_(window)
            squares = torch.view_as_real(torch.fft.rfft(emphasised)).square_()
            energies.append((squares[..., 0] + squares[..., 1]) @ banks)
        return torch.cat(energies).clamp_(min=torch.finfo(torch.float32).eps).log_()

    def _extract(self, wave: np.ndarray) -> np.ndarray:
        return self.normalised(self.filterbank(wave))

    def normalised(self, features: torch.Tensor) -> np.ndarray:
        """The features of a clip from its `filterbank`, both `(T, feature_size)`."""
        if self.do_normalize:
            over = 0 if self.normalize_over == "bin" else (0, 1)
            features = features - features.mean(dim=over)
            features = features / (features.square().mean(dim=over) + _VARIANCE_FLOOR).sqrt()
        return features.numpy()

    def _features(self, raw_speech: Any, sampling_rate: int | None) -> list[np.ndarray]:
        if isinstance(raw_speech, Waveform):
            batched = False
        elif isinstance(raw_speech, (np.ndarray, torch.Tensor)):
            batched = raw_speech.ndim > 1
        elif isinstance(raw_speech, (list, tuple)):
            batched = not raw_speech or not isinstance(raw_speech[0], (int, float, np.number))
        else:
            raise MediaError(
                type(raw_speech).__name__, "expected a waveform (array, tensor or list of floats) or a list of them"
            )
        clips = raw_speech if batched else [raw_speech]
        if sampling_rate not in (None, self.sampling_rate):
            raise ValueError(
                f"sampling_rate: got {sampling_rate} Hz, expected {self.sampling_rate} Hz; "
                f"resample with load_audio(wave, {self.sampling_rate}, source_rate={sampling_rate})"
            )
        if sampling_rate is None and not all(isinstance(clip, Waveform) for clip in clips):  # which know their own
            logger.warning_once(
                f"sampling_rate was not given: the sound is taken to have {self.sampling_rate} Hz; pass "
                "sampling_rate=... to have it checked"
            )
        return [self._features_of(clip) for clip in clips]

    def _features_of(self, clip: Any) -> np.ndarray:
        """What `_extract` gives; of a `Waveform` once."""
        if isinstance(clip, Waveform) and str(vars(self)) in clip.features:
            return clip.features[str(vars(self))]
        return self.keep_features(clip, self._extract(load_audio(clip, self.sampling_rate)))

    def keep_features(self, clip: Any, features: np.ndarray) -> np.ndarray:
        """Features of a clip, which a `Waveform` keeps: they are not computed again."""
        features.flags.writeable = False
        if isinstance(clip, Waveform):
            clip.features[str(vars(self))] = features
        return features


@dataclass(frozen=True, eq=False)
class FiredTokens:
    """Features of one clip, read and checked: `vectors` `(L, feature_size)`, float32."""

    vectors: np.ndarray


def load_cif_features(source: Any, feature_size: int = 512) -> np.ndarray:
    """Reads the features of one clip, `(L, feature_size)`, float32, L at least 1.

    `source` is a `.npy` file in any form that `open_media` takes, an array or tensor, or `FiredTokens`. It is
    never unpickled.

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
