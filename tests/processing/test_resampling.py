# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Other sampling rates: what folds back, what is kept, and that a stream gives what the whole gives."""

import numpy as np
import pytest

from xllm.processing.audio_decoding import StreamResampler, resample


def stream(samples: np.ndarray, source_rate: int, target_rate: int, chunk: int) -> np.ndarray:
    resampler = StreamResampler(source_rate, target_rate)
    for start in range(0, len(samples), chunk):
        resampler.push(samples[start : start + chunk])
    return resampler.finish()


def level(hertz: float, source_rate: int, target_rate: int) -> float:
    """Of a tone afterwards, in dB; the ends are left out."""
    tone = np.sin(2 * np.pi * hertz * np.arange(4 * source_rate) / source_rate).astype(np.float32)
    moved = stream(tone, source_rate, target_rate, 1024)
    return 10 * np.log10(2 * np.mean(np.square(moved[target_rate:-target_rate])) + 1e-20)


@pytest.mark.parametrize("source_rate", [22_050, 32_000, 44_100, 48_000])
def test_aliases_are_gone_and_speech_is_kept(source_rate):
    for hertz in (8100, 8500, 9000, 10_500):  # would be heard at 16,000 Hz less this
        assert level(hertz, source_rate, 16_000) < -90, hertz
    for hertz in (100, 3000, 7000, 7500):
        assert abs(level(hertz, source_rate, 16_000)) < 0.01, hertz


def test_noise_equals_an_ideal_low_pass():
    """Against the discrete Fourier transform with everything from 7.5 kHz on removed, in both."""
    noise = np.random.default_rng(0).standard_normal(44_100).astype(np.float32)
    spectrum = np.fft.rfft(noise)[:8001]
    ideal = np.fft.irfft(np.where(np.arange(8001) < 7500, spectrum, 0), 16_000) * 16_000 / 44_100
    moved = np.fft.rfft(resample(noise, 44_100, 16_000))
    ours = np.fft.irfft(np.where(np.arange(8001) < 7500, moved, 0), 16_000)
    assert np.corrcoef(ours[500:-500], ideal[500:-500])[0, 1] > 0.99999


@pytest.mark.parametrize(
    ("source_rate", "target_rate"), [(44_100, 16_000), (48_000, 16_000), (8000, 16_000), (7919, 16_000)]
)
@pytest.mark.parametrize("chunk", [1, 1000, 70_000, 400_000])
def test_a_stream_equals_the_whole(source_rate, target_rate, chunk):
    samples = np.random.default_rng(1).standard_normal(200_001 if chunk > 1 else 50).astype(np.float32)
    streamed = stream(samples, source_rate, target_rate, chunk)
    assert len(streamed) == -(-len(samples) * target_rate // source_rate)
    whole = resample(samples, source_rate, target_rate)
    shorter = min(len(whole), len(streamed))
    np.testing.assert_allclose(streamed[:shorter], whole[:shorter], atol=2e-5)


def test_the_same_rate_is_not_touched():
    samples = np.arange(9, dtype=np.float32)
    assert np.array_equal(stream(samples, 16_000, 16_000, 4), samples)
    assert np.array_equal(resample(samples, 2, 2), samples)
