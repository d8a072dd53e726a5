# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Log-mel frames: against an independent Kaldi filterbank, and what the rest of the package counts on (counts, masks,
errors).
"""

import sys

import numpy as np
import pytest
import torch
import torchaudio
from media_files import sine

from xllm.processing import feature_extraction_xllm
from xllm.processing.audio_decoding import Waveform
from xllm.processing.feature_extraction_xllm import XLLMFeatureExtractor


@pytest.fixture
def noise():
    return (0.1 * np.random.default_rng(0).standard_normal(16_000)).astype(np.float32)


def test_equal_to_kaldi_filterbank(noise):
    features = XLLMFeatureExtractor(do_normalize=False)(noise, sampling_rate=16_000, return_tensors="pt")[
        "input_features"
    ][0]
    expected = torchaudio.compliance.kaldi.fbank(torch.from_numpy(noise)[None] * 32768, num_mel_bins=80, dither=0.0)
    torch.testing.assert_close(features, expected, atol=1e-3, rtol=0)


def test_a_tone_is_loudest_in_its_own_bin():
    features = XLLMFeatureExtractor(do_normalize=False)(sine(frequency=1_000.0), sampling_rate=16_000)[
        "input_features"
    ][0]
    mel = 1127 * np.log(1 + np.array([20.0, 1_000.0, 8_000.0]) / 700)
    expected = (mel[1] - mel[0]) / (mel[2] - mel[0]) * 81 - 1  # 80 triangles between 81 equal steps
    assert abs(features.mean(axis=0).argmax() - expected) < 1


@pytest.mark.parametrize(("samples", "frames"), [(1, 1), (400, 1), (559, 1), (560, 2), (16_000, 98)])
def test_number_of_frames(samples, frames):
    extractor = XLLMFeatureExtractor()
    assert extractor.num_frames(samples) == frames
    assert extractor(np.zeros(samples), sampling_rate=16_000)["input_features"][0].shape == (frames, 80)


def test_padding_and_mask(noise):
    extractor = XLLMFeatureExtractor()
    batch = extractor([noise, noise[:560]], sampling_rate=16_000, return_tensors="pt")
    assert batch["input_features"].shape == (2, 98, 80)
    assert batch["input_features"].dtype == torch.float32
    assert batch["input_features_mask"].dtype == torch.int64
    assert batch["input_features_mask"].tolist() == [[1] * 98, [1] * 2 + [0] * 96]
    assert not batch["input_features"][1, 2:].any()
    alone = extractor(noise[:560], sampling_rate=16_000, return_tensors="pt")["input_features"][0]
    assert torch.equal(batch["input_features"][1, :2], alone)  # a clip's features do not depend on its neighbours


def test_a_sound_that_is_kept_is_transformed_once(noise, monkeypatch):
    extractor, other = XLLMFeatureExtractor(), XLLMFeatureExtractor(do_normalize=False)
    sound = Waveform(noise, 16_000)
    first = extractor([sound], sampling_rate=16_000, return_tensors="pt")["input_features"]
    assert torch.equal(first, extractor([noise], sampling_rate=16_000, return_tensors="pt")["input_features"])
    unlike = other([sound], sampling_rate=16_000, return_tensors="pt")["input_features"]
    assert torch.equal(unlike, other([noise], sampling_rate=16_000, return_tensors="pt")["input_features"])
    monkeypatch.setattr(XLLMFeatureExtractor, "filterbank", lambda *_: pytest.fail("transformed again"))
    again = extractor([sound], sampling_rate=16_000, return_tensors="pt")["input_features"]
    assert torch.equal(first, again)
    again.zero_()  # a batch is the caller's
    assert torch.equal(first, extractor([sound], sampling_rate=16_000, return_tensors="pt")["input_features"])


def test_padding_and_truncation_in_frames(noise):
    extractor = XLLMFeatureExtractor()
    padded = extractor(noise, sampling_rate=16_000, padding="max_length", max_length=120, return_tensors="np")
    assert padded["input_features"].shape == (1, 120, 80)
    cut = extractor(noise, sampling_rate=16_000, truncation=True, max_length=50, return_tensors="np")
    assert cut["input_features_mask"].shape == (1, 50)
    assert (
        extractor(noise, sampling_rate=16_000, pad_to_multiple_of=8, return_tensors="np")["input_features"].shape[1]
        == 104
    )


def test_normalisation_is_per_bin_and_can_be_switched_off(noise):
    normal = XLLMFeatureExtractor()(noise, sampling_rate=16_000)["input_features"][0]
    np.testing.assert_allclose(normal.mean(axis=0), 0, atol=1e-4)
    np.testing.assert_allclose(normal.std(axis=0), 1, atol=1e-3)
    louder = XLLMFeatureExtractor()(4 * noise, sampling_rate=16_000)["input_features"][0]
    np.testing.assert_allclose(normal, louder, atol=1e-3)
    raw = XLLMFeatureExtractor(do_normalize=False)
    gain = (
        raw(4 * noise, sampling_rate=16_000)["input_features"][0]
        - raw(noise, sampling_rate=16_000)["input_features"][0]
    )
    np.testing.assert_allclose(gain, np.log(16), atol=1e-2)


def test_silence_is_finite():
    assert np.isfinite(XLLMFeatureExtractor()(np.zeros(8_000), sampling_rate=16_000)["input_features"][0]).all()


def test_long_clips_are_cut_into_blocks_without_a_seam(noise, monkeypatch):
    whole = XLLMFeatureExtractor()(noise, sampling_rate=16_000)["input_features"][0]
    monkeypatch.setattr(sys.modules[XLLMFeatureExtractor.__module__], "_FRAMES_AT_ONCE", 7)
    np.testing.assert_allclose(
        XLLMFeatureExtractor()(noise, sampling_rate=16_000)["input_features"][0], whole, atol=1e-4
    )


@pytest.mark.parametrize(
    ("waves", "reason"),
    [
        ([], "empty list"),
        (np.zeros(0), "0 samples"),
        ([np.array([np.nan] * 500)], "not finite"),
        ("a.wav", "expected a waveform"),
    ],
)
def test_bad_waveforms(waves, reason):
    with pytest.raises(ValueError, match=reason):
        XLLMFeatureExtractor()(waves, sampling_rate=16_000)


def test_another_rate_is_refused_with_both_numbers(noise):
    with pytest.raises(ValueError, match="got 8000 Hz, expected 16000 Hz"):
        XLLMFeatureExtractor()(noise, sampling_rate=8_000)


def test_impossible_settings():
    with pytest.raises(ValueError, match="padding_side='left'"):
        XLLMFeatureExtractor(padding_side="left")
    with pytest.raises(ValueError, match="too short"):
        XLLMFeatureExtractor(frame_shift_ms=0.01)


def test_save_and_load(tmp_path, noise):
    extractor = XLLMFeatureExtractor(feature_size=40, frame_shift_ms=12.5, do_normalize=False)
    extractor.save_pretrained(tmp_path)
    loaded = XLLMFeatureExtractor.from_pretrained(tmp_path)
    assert loaded.to_dict() == extractor.to_dict()
    assert loaded(noise, sampling_rate=16_000)["input_features"][0].shape == (79, 40)


def test_normalisation_over_the_clip_keeps_the_shape_of_the_spectrum(noise):
    raw = XLLMFeatureExtractor(do_normalize=False)(noise, sampling_rate=16_000)["input_features"][0]
    features = XLLMFeatureExtractor(normalize_over="clip")(noise, sampling_rate=16_000)["input_features"][0]
    assert np.allclose(features, (raw - raw.mean()) / raw.std(), atol=1e-4)
    with pytest.raises(ValueError, match="normalize_over: got 'word', expected 'bin' or 'clip'"):
        XLLMFeatureExtractor(normalize_over="word")


def test_waveforms_know_their_rate(monkeypatch):
    told, extractor = [], XLLMFeatureExtractor()
    monkeypatch.setattr(feature_extraction_xllm.logger, "warning_once", told.append)
    samples = np.zeros(1600, np.float32)
    extractor([Waveform(samples, 16_000)])
    assert told == []
    extractor([Waveform(samples, 16_000), samples])
    assert "sampling_rate was not given" in told[0]
