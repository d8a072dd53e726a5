# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Augmentation of training media, by name: `augment: [speed, {noise: {snr_db: [10, 40]}}, spec_augment]`.

Each draws from the random generator it is given, so that a sample's augmentation depends on seed, epoch and sample
alone. Waveforms are `(samples,)` float32, features `(frames, mel bins)`, pictures `(..., H, W, 3)` uint8 (all frames
of a video alike).

Sources: speed perturbation (Ko et al. 2015), SpecAugment (Park et al. 2019), vocal tract length perturbation (Jaitly &
Hinton 2013), here as a warp of the mel axis after feature extraction. The paper names no augmentation of its own; the
authors' images are randomly cropped and flipped.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import numpy as np
import torch
from torchaudio.functional import mask_along_axis
from torchvision.transforms import v2

from xllm.processing.audio_decoding import resample
from xllm.training.recipes.strict import RecipeError, nearest


@contextmanager
def _draws_of(rng: np.random.Generator) -> Iterator[None]:
    """What torch draws inside follows from `rng`; its own generator is left as it was.

    `torch.manual_seed` would seed the accelerators as well, where the model draws its dropout.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int(rng.integers(2**63)))
        yield


def _transform_picture(transform: v2.Transform, picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A transform of torchvision on `(..., H, W, 3)`; all frames of a video alike."""
    with _draws_of(rng):
        changed = transform(torch.from_numpy(picture.copy()).movedim(-1, -3))  # (..., 3, H, W)
    return np.ascontiguousarray(changed.movedim(-3, -1).numpy())


def _rows_at(rows: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Rows at fractional places, on straight lines between their neighbours."""
    low = np.floor(at).astype(int)
    part = (at - low).astype(np.float32)[:, None]
    return rows[low] * (1 - part) + rows[np.minimum(low + 1, len(rows) - 1)] * part


@dataclass
class Speed:
    """Play faster or slower, pitch included; `factor`: range."""

    kind: ClassVar[str] = "waveform"
    factor: tuple[float, float] = (0.9, 1.1)

    def __call__(self, wave: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        # A ratio of small numbers is quick to resample by.
        return resample(wave, round(np.exp(rng.uniform(*np.log(self.factor))), 2), 1.0)


@dataclass
class Gain:
    """Louder or softer; `decibel`: range."""

    kind: ClassVar[str] = "waveform"
    decibel: tuple[float, float] = (-6.0, 6.0)

    def __call__(self, wave: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return (wave * 10 ** (rng.uniform(*self.decibel) / 20)).astype(np.float32)


@dataclass
class Noise:
    """White noise; `snr_db`: range of the signal-to-noise ratio; `probability` of any."""

    kind: ClassVar[str] = "waveform"
    snr_db: tuple[float, float] = (10.0, 40.0)
    probability: float = 0.7

    def __call__(self, wave: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        if rng.random() >= self.probability:
            return wave
        level = np.sqrt(np.mean(np.square(wave)) + 1e-10) * 10 ** (-rng.uniform(*self.snr_db) / 20)
        return wave + (level * rng.standard_normal(len(wave))).astype(np.float32)


@dataclass
class Shift:
    """Silence before and after; `seconds`: range of each; `sampling_rate` in Hz."""

    kind: ClassVar[str] = "waveform"
    seconds: tuple[float, float] = (0.0, 0.1)
    sampling_rate: int = 16_000

    def __call__(self, wave: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        before, after = (rng.uniform(*self.seconds, size=2) * self.sampling_rate).astype(int)
        return np.pad(wave, (before, after))


@dataclass
class MelWarp:
    """Stretch the mel axis, as a longer or shorter vocal tract would; `factor`: range."""

    kind: ClassVar[str] = "features"
    factor: tuple[float, float] = (0.87, 1.15)

    def __call__(self, features: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        bins = features.shape[1]
        at = np.clip(np.arange(bins) * np.exp(rng.uniform(*np.log(self.factor))), 0, bins - 1)
        return _rows_at(features.T, at).T


@dataclass
class MixVoices:
    """A voice between two: features of a clip blended with those of another clip of the batch that says the same text,
    stretched to its length. `share`: range of the clip's own part; `probability` of blending at all.
    """

    kind: ClassVar[str] = "features"
    share: tuple[float, float] = (0.2, 0.8)
    probability: float = 0.5

    def __call__(
        self, features: np.ndarray, rng: np.random.Generator, others: Sequence[np.ndarray] = ()
    ) -> np.ndarray:
        if not len(others) or rng.random() >= self.probability:
            return features
        other = others[int(rng.integers(len(others)))]
        stretched = _rows_at(other, np.linspace(0, len(other) - 1, len(features)))
        own = np.float32(rng.uniform(*self.share))
        return own * features + (1 - own) * stretched


@dataclass
class Equalizer:
    """One smooth curve over the mel axis added to all frames, as another microphone or room would: `size`, its
    standard deviation (in that of normalised features) at each of `points`, with straight lines between them.
    """

    kind: ClassVar[str] = "features"
    size: float = 0.4
    points: int = 5

    def __call__(self, features: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        levels = rng.normal(0, self.size, size=int(self.points))
        at = np.linspace(0, self.points - 1, features.shape[1])
        return features + np.interp(at, np.arange(self.points), levels).astype(np.float32)


@dataclass
class SpecAugment:
    """Bands of mel bins and stretches of frames set to the mean (0); `time_width` as a fraction of the clip."""

    kind: ClassVar[str] = "features"
    mel_masks: int = 2
    mel_width: int = 12
    time_masks: int = 1
    time_width: float = 0.2

    def __call__(self, features: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        frames, bins = features.shape
        masked = torch.from_numpy(features).T[None]  # (1, mel bins, frames)
        with _draws_of(rng):
            for _ in range(self.mel_masks):  # torchaudio's widths are below what it is given
                masked = mask_along_axis(masked, min(self.mel_width, bins) + 1, 0.0, axis=1)
            for _ in range(self.time_masks):
                masked = mask_along_axis(masked, int(self.time_width * frames) + 1, 0.0, axis=2)
        return masked[0].T.numpy()


@dataclass
class Flip:
    """Mirror left and right; not for data whose text says left or right."""

    kind: ClassVar[str] = "picture"
    probability: float = 0.5

    def __call__(self, picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return _transform_picture(v2.RandomHorizontalFlip(self.probability), picture, rng)


class _RandomCrop(v2.RandomResizedCrop):
    """The part that `RandomResizedCrop` would take, at its own size: the processor resizes it once."""

    def transform(self, inpt: torch.Tensor, params: dict[str, Any]) -> torch.Tensor:
        return v2.functional.crop(inpt, **params)


@dataclass
class Crop:
    """A random part of the picture; `scale`: range of its area, `ratio`: of width to height (LAVIS's)."""

    kind: ClassVar[str] = "picture"
    scale: tuple[float, float] = (0.5, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)

    def __call__(self, picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return _transform_picture(_RandomCrop(1, self.scale, self.ratio), picture, rng)


@dataclass
class Brightness:
    """Lighter or darker; `factor`: range."""

    kind: ClassVar[str] = "picture"
    factor: tuple[float, float] = (0.8, 1.2)

    def __call__(self, picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return _transform_picture(v2.ColorJitter(brightness=tuple(self.factor)), picture, rng)


AUGMENTATIONS = {
    "speed": Speed,
    "gain": Gain,
    "noise": Noise,
    "shift": Shift,
    "mel_warp": MelWarp,
    "mix_voices": MixVoices,
    "equalizer": Equalizer,
    "spec_augment": SpecAugment,
    "flip": Flip,
    "crop": Crop,
    "brightness": Brightness,
}


class Augmentation:
    """A list of augmentations, applied in order to media of their kind ("waveform", "features", "picture")."""

    def __init__(self, steps: Iterable[Any]):
        self.steps = list(steps)

    @classmethod
    def from_spec(cls, spec: Iterable[str | dict]) -> "Augmentation":
        """Read the recipe's list: names, or one-key mappings name -> settings.

        Raises:
            RecipeError: an unknown name or setting; the message lists the choices.
        """
        return cls(_build_step(entry) for entry in spec)

    def handles(self, kind: str) -> bool:
        """Whether any step is for media of this kind."""
        return any(step.kind == kind for step in self.steps)

    def apply(self, kind: str, value: Any, rng: np.random.Generator) -> Any:
        """`value` after all steps of this kind."""
        for step in self.steps:
            if step.kind == kind:
                value = step(value, rng)
        return value

    def apply_to_features(
        self, clips: list[np.ndarray], texts: list[str], rngs: list[np.random.Generator | None]
    ) -> list[np.ndarray]:
        """A batch of `(frames, mel bins)` after all steps for features; clips without a generator stay as they are.

        Args:
            texts (`list[str]`): what each clip says; `mix_voices` blends clips that say the same.
        """
        for step in self.steps:
            if step.kind != "features":
                continue
            before = clips
            clips = []
            for index, (clip, rng) in enumerate(zip(before, rngs)):
                extra: tuple = ()
                if isinstance(step, MixVoices):
                    extra = ([before[i] for i, text in enumerate(texts) if i != index and text == texts[index]],)
                clips.append(clip if rng is None else step(clip, rng, *extra))
        return clips


def _build_step(entry: str | dict) -> Any:
    name, settings = (entry, {}) if isinstance(entry, str) else next(iter(entry.items()), ("", {}))
    if name not in AUGMENTATIONS or (isinstance(entry, dict) and len(entry) != 1):
        raise RecipeError(f"augment: {entry!r} is no augmentation{nearest(name, AUGMENTATIONS)}")
    step = AUGMENTATIONS[name]
    known = {item.name for item in fields(step)}
    for key, value in (settings or {}).items():
        if key not in known:
            raise RecipeError(f"augment: {name} has no setting {key!r}{nearest(key, known)}")
        is_range = isinstance(getattr(step, key), tuple)
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not (isinstance(value, (list, tuple)) and len(value) == 2 if is_range else is_number):
            raise RecipeError(
                f"augment: {name}.{key} is {value!r}, expected {'[low, high]' if is_range else 'a number'}"
            )
    return step(**(settings or {}))


__all__ = ["AUGMENTATIONS", "Augmentation"]
