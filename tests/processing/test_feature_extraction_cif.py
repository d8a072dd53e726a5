# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Pre-extracted CIF features: what is read, what is refused, and that a processor takes them for sound."""

import io

import numpy as np
import pytest
import torch
from media_files import sine, write_wav
from processor_parts import SPEECH, THIS, WHAT, placeholder_tokenizer, small_processor
from transformers import AutoProcessor

from xllm.processing.feature_extraction_xllm import XLLMCIFFeatureExtractor, load_cif_features
from xllm.processing.media_sources import MediaError
from xllm.processing.processing_xllm import XLLMProcessor


def npy(array, **kwargs) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, **kwargs)
    return buffer.getvalue()


def vectors(tokens: int, width: int = 4) -> np.ndarray:
    return np.arange(tokens * width, dtype=np.float32).reshape(tokens, width)


@pytest.fixture
def processor():
    return XLLMProcessor(
        feature_extractor=XLLMCIFFeatureExtractor(4), tokenizer=placeholder_tokenizer(), subsampling_factor=1
    )


def test_every_source_gives_the_same_features(tmp_path):
    np.save(tmp_path / "a.npy", vectors(3))
    for source in (
        tmp_path / "a.npy",
        str(tmp_path / "a.npy"),
        npy(vectors(3)),
        {"path": str(tmp_path / "a.npy")},
        vectors(3).astype(np.float64),
        np.asfortranarray(vectors(3)),
        torch.from_numpy(vectors(3)).to(torch.bfloat16),
        {"array": vectors(3)},
    ):
        features = load_cif_features(source, 4)
        assert features.dtype == np.float32
        np.testing.assert_array_equal(features, vectors(3))


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (npy(vectors(3, 5)), r"floats of shape \(tokens, 4\), got float32 of shape \(3, 5\)"),
        (vectors(3).ravel(), r"got float32 of shape \(12,\)"),
        (npy(vectors(3).astype(np.int64)), "got int64"),
        (npy(vectors(0)), "holds no features: 0 tokens"),
        (np.where(vectors(2) == 3, np.nan, vectors(2)), "not finite"),
        (np.full((2, 4), 1e300), "not finite"),
        (npy(np.array([[{}]], dtype=object), allow_pickle=True), "not a readable .npy file.*allow_pickle"),
        (npy(vectors(3))[:-8], "not a readable .npy file"),
        (npy(vectors(3))[:20], "not a readable .npy file"),
        (b"RIFF....WAVE", "not a NumPy .npy file: this model reads pre-extracted CIF features, no sound"),
        ("none.npy", "none.npy: no such file"),
    ],
)
def test_what_is_no_feature_file_is_named(source, reason):
    with pytest.raises(MediaError, match=reason):
        load_cif_features(source, 4)


def test_nothing_is_unpickled():
    class Trap:
        def __reduce__(self):
            return pytest.fail, ("unpickled",)

    with pytest.raises(MediaError):
        load_cif_features(npy(np.array([[Trap()]], dtype=object), allow_pickle=True), 1)


def test_a_conversation_with_features(processor, tmp_path):
    np.save(tmp_path / "long.npy", vectors(3))
    clips = [{"type": "audio", "path": str(tmp_path / "long.npy")}, {"type": "speech", "array": vectors(1)}]
    messages = [{"role": "user", "content": [clip, {"type": "text", "text": " this"}]} for clip in clips]
    batch = processor.apply_chat_template(
        [[message] for message in messages], tokenize=True, return_dict=True, return_tensors="pt"
    )
    assert batch["input_features"].shape == (2, 3, 4)
    np.testing.assert_array_equal(batch["input_features"][0], vectors(3))
    assert not batch["input_features"][1, 1:].any()
    assert batch["input_features_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert (batch["input_ids"] == SPEECH).sum(1).tolist() == [3, 1]
    batch = processor(text="what <SpeechHere> this", audio=[tmp_path / "long.npy"])
    assert batch["input_ids"] == [[WHAT, SPEECH, SPEECH, SPEECH, THIS]]


def test_placeholders_are_counted_without_the_features(processor):
    counts = processor._get_num_multimodal_tokens(audio_lengths=[3, 1])  # a clip's length is that of its tokens
    assert counts.num_audio_tokens == [3, 1]


def test_save_and_load(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    loaded = AutoProcessor.from_pretrained(tmp_path)
    assert isinstance(loaded.feature_extractor, XLLMCIFFeatureExtractor)
    assert loaded.feature_extractor.feature_size == 4
    with pytest.raises(ValueError, match="time stamps need sound"):
        loaded.batch_decode([[WHAT]], fire_frames=[[1.0]])


def test_sound_and_features_are_not_confused(processor, tmp_path):
    write_wav(tmp_path / "tone.wav", [sine()])
    np.save(tmp_path / "a.npy", vectors(3))
    with pytest.raises(MediaError, match="tone.wav: not a NumPy .npy file"):
        processor(text="<SpeechHere>", audio=tmp_path / "tone.wav")
    with pytest.raises(MediaError, match="a.npy: a NumPy file, no sound: .*token_level"):
        small_processor()(text="<SpeechHere>", audio=tmp_path / "a.npy")
