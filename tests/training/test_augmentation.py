# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Augmentation by torchaudio and torchvision: what it changes, and that it follows from the generator it is given."""

import numpy as np
import pytest
import torch

from xllm.processing.audio_decoding import resample
from xllm.training.data.augmentation import AUGMENTATIONS, Augmentation


MEDIA = {
    "waveform": np.sin(np.arange(8000) / 20).astype(np.float32),
    "features": np.random.default_rng(0).normal(1, 0.1, size=(40, 16)).astype(np.float32),
    "picture": np.random.default_rng(0).integers(0, 256, size=(2, 24, 32, 3), dtype=np.uint8),
}


def apply(step, kind, seed=0):
    return Augmentation.from_spec([step]).apply(kind, MEDIA[kind], np.random.default_rng(seed))


def decibel(hertz: float, source_rate: int, target_rate: int) -> float:
    """Level of a sine wave after resampling, against before; the ends, where the filter starts, are left out."""
    wave = np.sin(2 * np.pi * hertz * np.arange(source_rate) / source_rate).astype(np.float32)
    moved = resample(wave, source_rate, target_rate)[1000:-1000]
    return 20 * np.log10(np.sqrt(np.mean(np.square(moved)) * 2))


def test_what_the_new_rate_cannot_hold_does_not_fold_back():
    assert decibel(8100, 44_100, 16_000) < -60  # would be heard at 7,900 Hz
    assert decibel(12_000, 48_000, 16_000) < -100
    assert abs(decibel(7000, 44_100, 16_000)) < 0.05
    assert abs(decibel(3000, 8000, 16_000)) < 0.05


@pytest.mark.parametrize(
    ("source", "target", "length"), [(44_100, 16_000, 2902), (7919, 16_000, 16_164), (3, 2, 5333)]
)
def test_resampled_length(source, target, length):
    assert len(resample(np.zeros(8000, np.float32), source, target)) == length


def test_resampling_keeps_instants():
    """A click stays where it is, to the sample, at any ratio."""
    for source, target in ((16_000, 22_050), (44_100, 16_000), (1.07, 1.0)):
        wave = np.zeros(4000, np.float32)
        wave[2000] = 1
        assert resample(wave, source, target).argmax() == round(2000 * target / source)


@pytest.mark.parametrize("name", sorted(set(AUGMENTATIONS) - {"mix_voices"}))
def test_the_same_generator_gives_the_same_augmentation(name):
    kind = AUGMENTATIONS[name].kind
    before = MEDIA[kind].copy()
    torch.manual_seed(1)
    first, state = apply(name, kind, seed=3), torch.get_rng_state()
    torch.manual_seed(2)
    assert np.array_equal(apply(name, kind, seed=3), first)
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state)  # torch's own generator has not moved
    assert first.dtype == before.dtype
    assert np.array_equal(MEDIA[kind], before)  # it may come from a cache
    results = [apply(name, kind, seed) for seed in range(8)]
    assert any(result.shape != first.shape or not np.array_equal(result, first) for result in results)


def test_spec_augment_blanks_bands_and_stretches_no_wider_than_named():
    step = {"spec_augment": {"mel_masks": 1, "mel_width": 5, "time_masks": 1, "time_width": 0.25}}
    bands, stretches = set(), set()
    for seed in range(200):
        blank = apply(step, "features", seed) == 0
        bands.add(int(blank.all(axis=0).sum()))
        stretches.add(int(blank.all(axis=1).sum()))
    assert bands == set(range(6))
    assert stretches == set(range(11))


def test_crop_takes_a_part_of_the_area_and_shape_named():
    for seed in range(20):
        picture = apply({"crop": {"scale": [0.5, 0.5], "ratio": [0.8, 1.25]}}, "picture", seed)
        frames, height, width, channels = picture.shape
        assert (frames, channels) == (2, 3)
        assert height * width == pytest.approx(0.5 * 24 * 32, rel=0.06)
        assert 0.75 < width / height < 1.33


def test_all_frames_of_a_video_are_changed_alike():
    """Twelve equal frames stay equal."""
    frames = np.repeat(MEDIA["picture"][:1], 12, axis=0)
    steps = Augmentation.from_spec(["crop", "flip", "brightness"])
    for seed in range(5):
        changed = steps.apply("picture", frames, np.random.default_rng(seed))
        assert (changed == changed[0]).all()
