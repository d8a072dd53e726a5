# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""The data set: weights, seeded choices, lazy decoding, skipping; and the augmentations."""

from collections import Counter

import numpy as np
import pytest
import torch
from media_files import count_readings, grey_frames

from xllm import X2LConfig, XLLMConfig, XLLMForConditionalGeneration
from xllm.assembly.processors import build_processor
from xllm.assembly.tiny import tiny_config
from xllm.processing.media_sources import MediaError
from xllm.training.batches.collator import XLLMDataCollator
from xllm.training.data.augmentation import Augmentation, Shift
from xllm.training.data.dataset import ChatDataset
from xllm.training.data.sources import DataError, Sample
from xllm.training.recipes.recipe import RecipeError, SourceSpec


def audio(media, name, **fields):
    fields = {"answers": [name], **fields}
    return Sample(f"table:{name}", media=[{"type": "audio", "path": str(media / f"{name}.wav")}], **fields)


def words(*answers):
    return [Sample(f"text:{answer}", answers=[answer], prompts=["?"]) for answer in answers]


def answers(data):
    return [data[index]["messages"][-1]["content"][0]["text"] for index in range(len(data))]


def test_media_are_decoded_when_asked_for(tiny_processor, media):
    part = {"type": "video", "path": str(media / "clip.mp4")}
    samples = [audio(media, "low"), Sample("v", media=[part], answers=["v"]), audio(media, "broken")]
    data = ChatDataset([samples], tiny_processor)
    wave = data[0]["messages"][0]["content"][0]["audio"]
    assert (wave.samples.shape, wave.samples.dtype, wave.sampling_rate) == ((6400,), np.float32, 16_000)
    assert data[1]["messages"][0]["content"][0]["video"].frames.shape == (
        5,
        32,
        32,
        3,
    )  # the processor's number of frames
    with pytest.raises(MediaError, match="table:broken: .*broken.wav"):
        data[2]


def test_skipped_samples_are_replaced_and_counted_once(tiny_processor, media):
    samples = [audio(media, "low"), audio(media, "broken"), audio(media, "high")]
    data = ChatDataset([samples], tiny_processor, on_error="skip")
    assert answers(data) == ["low", "high", "high"]
    assert answers(data) == ["low", "high", "high"]
    assert data.skipped() == ["table:broken"]
    with pytest.raises(MediaError, match="no sample"):
        ChatDataset([[audio(media, "broken")]], tiny_processor, on_error="skip")[0]


def parts_and_answer(media):
    parts = [
        {"type": "image", "path": str(media / "red.png")},
        {"type": "video", "path": str(media / "clip.mp4")},
        {"type": "audio", "path": str(media / "low.wav")},
    ]
    return [{"role": "user", "content": parts}, {"role": "assistant", "content": "all"}]


@pytest.mark.parametrize("augment", [[], ["gain", "flip", "spec_augment"]])
def test_a_file_is_opened_and_decoded_once(tiny_processor, media, monkeypatch, augment):
    counts = count_readings(monkeypatch)
    augmentation = Augmentation.from_spec(augment)
    specs = [SourceSpec(dataset=[{"messages": parts_and_answer(media)}])]
    data = ChatDataset.from_specs(specs, tiny_processor, augmentation=augmentation)
    batch = XLLMDataCollator(tiny_processor, augmentation=augmentation)([data[0]])
    assert {"pixel_values", "pixel_values_videos", "input_features"} < set(batch)
    assert counts == {"opened": 3, "pictures": 1, "sounds": 1, "films": 1}


@pytest.mark.parametrize(
    ("task", "part", "counted"), [("contrast", 0, "pictures"), ("contrast", 1, "films"), ("transcribe", 2, "sounds")]
)
def test_stage_1_opens_and_decodes_a_file_once(tiny_processor, media, monkeypatch, task, part, counted):
    counts = count_readings(monkeypatch)
    question, answer = parts_and_answer(media)
    row = {"messages": [{**question, "content": question["content"][part : part + 1]}, answer]}
    data = ChatDataset.from_specs([SourceSpec(dataset=[row])], tiny_processor)
    XLLMDataCollator(tiny_processor, task=task)([data[0]])
    assert counts == {"opened": 1, counted: 1}


def test_an_array_of_frames_is_sampled_alike_in_training_and_generation(tiny_processor):
    frames = grey_frames(24)  # more than the processor takes
    question = {"role": "user", "content": [{"type": "video", "video": frames}]}
    row = {"messages": [question, {"role": "assistant", "content": "grey"}]}
    data = ChatDataset.from_specs([SourceSpec(dataset=[row])], tiny_processor)
    trained = XLLMDataCollator(tiny_processor)([data[0]])["pixel_values_videos"]
    asked = tiny_processor.encode_conversations([[question]])["pixel_values_videos"]
    assert trained.shape[:2] == (1, 5)
    assert torch.equal(trained, asked)
    assert torch.equal(
        XLLMDataCollator(tiny_processor)([row])["pixel_values_videos"], asked
    )  # the plain Trainer's way


def test_cached_media_are_read_once(tiny_processor, media, tmp_path):
    copy = tmp_path / "low.wav"
    copy.write_bytes((media / "low.wav").read_bytes())
    data = ChatDataset([[audio(tmp_path, "low")]], tiny_processor, cache_media=True)
    first = data[0]["messages"][0]["content"][0]["audio"].samples
    copy.unlink()
    assert np.array_equal(data[0]["messages"][0]["content"][0]["audio"].samples, first)
    other = ChatDataset([[audio(tmp_path, "low")]], tiny_processor, cache_media=data.cache)
    assert np.array_equal(other[0]["messages"][0]["content"][0]["audio"].samples, first)
    with pytest.raises(MediaError):
        ChatDataset([[audio(tmp_path, "low")]], tiny_processor, cache_media={})[0]


def test_the_authors_features_reach_the_model(tiny_processor, media):
    """Their JSON, a .npy file and a token-level row: data set, collator, loss."""
    np.save(media / "features.npy", np.ones((3, 64), np.float32))
    rows = [{"speech_feats_path": str(media / "features.npy"), "target_text": "你好"}]
    config = tiny_config(tiny_processor.tokenizer)
    config.modalities["speech"] = X2LConfig(
        encoder=None,
        converter="cformer",
        token_level=True,
        cformer_config={**config.modalities["speech"].cformer_config.to_dict(), "cif_predictor": "none"},
        input_name="input_features",
        mask_name="input_features_mask",
        placeholder_token="<SpeechHere>",
        token_id=tiny_processor.tokenizer.audio_token_id,
    )
    model = XLLMForConditionalGeneration(XLLMConfig(**config.to_dict()))
    processor = build_processor(model.config, tiny_processor.tokenizer, 32)
    data = ChatDataset.from_specs([SourceSpec(dataset=rows)], processor, ["speech"])
    batch = XLLMDataCollator(processor)([data[0]])
    assert batch["input_features"].shape == (1, 3, 64)
    assert (batch["input_ids"] == processor.audio_token_id).sum() == 3
    assert model(**batch).loss.isfinite()
    with pytest.raises(DataError, match="augmentation changes waveforms, but this model reads pre-extracted"):
        ChatDataset([data.samples], processor, augmentation=Augmentation([Shift()]))


def test_weights_set_how_often_a_source_comes(tiny_processor):
    data = ChatDataset([words("a"), words("b", "c", "d", "e")], tiny_processor, weights=[3, 0.5])
    seen = Counter()
    for epoch in range(4):
        data.set_epoch(epoch)
        drawn = Counter(answers(data))
        assert drawn["a"] == 3
        assert sum(drawn.values()) == 5
        assert max(drawn[name] for name in "bcde") == 1
        seen += drawn
    assert all(seen[name] for name in "bcde")  # another half each time
    with pytest.raises(DataError, match="1 positive numbers"):
        ChatDataset([words("a")], tiny_processor, weights=[0])


def test_choices_follow_from_seed_epoch_and_place(tiny_processor):
    sample = Sample("x", prompts=[str(n) for n in range(50)], answers=[str(n) for n in range(50)])

    def drawn(seed, epoch):
        data = ChatDataset([[sample] * 4], tiny_processor, seed=seed)
        data.set_epoch(epoch)
        return [[message["content"][0]["text"] for message in data[index]["messages"]] for index in range(4)]

    assert drawn(1, 0) == drawn(1, 0)
    assert len({str(drawn(seed, epoch)) for seed in (1, 2) for epoch in (0, 1)}) == 4


def test_augmentation_of_waveforms_and_pictures(tiny_processor, media):
    picture = {"type": "image", "path": str(media / "red.png")}
    samples = [audio(media, "low"), Sample("p", media=[picture], answers=["p"])]
    steps = Augmentation.from_spec(
        [{"shift": {"seconds": [0.1, 0.1]}}, {"crop": {"scale": [0.25, 0.25], "ratio": [4 / 3, 4 / 3]}}]
    )
    data = ChatDataset([samples], tiny_processor, augmentation=steps)
    wave = data[0]["messages"][0]["content"][0]["audio"].samples
    assert len(wave) == 6400 + 2 * 1600
    assert not wave[:1600].any()
    assert not wave[-1600:].any()
    assert data[1]["messages"][0]["content"][0]["image"].size == (20, 15)
    assert data[0]["seed"] == data[0]["seed"] != data[1]["seed"]


def apply(step, kind, value, seed=0):
    return Augmentation.from_spec([step]).apply(kind, value, np.random.default_rng(seed))


def test_speed_changes_length_and_pitch():
    wave = np.sin(2 * np.pi * 100 * np.arange(16_000) / 16_000).astype(np.float32)
    fast = apply({"speed": {"factor": [2, 2]}}, "waveform", wave)
    assert len(fast) == 8000
    assert np.abs(np.fft.rfft(fast)).argmax() == 100  # 100 periods in half the time: 200 Hz


def test_gain_and_noise_have_the_level_they_name():
    wave = np.ones(50_000, np.float32)
    assert np.allclose(apply({"gain": {"decibel": [-20, -20]}}, "waveform", wave), 0.1)
    noisy = apply({"noise": {"snr_db": [20, 20], "probability": 1}}, "waveform", wave)
    assert np.std(noisy - wave) == pytest.approx(0.1, rel=0.02)


def test_mel_warp_moves_bins():
    features = np.tile(np.arange(8, dtype=np.float32), (3, 1))
    assert np.allclose(apply({"mel_warp": {"factor": [2, 2]}}, "features", features)[0], [0, 2, 4, 6, 7, 7, 7, 7])
    assert np.allclose(apply({"mel_warp": {"factor": [0.5, 0.5]}}, "features", features)[0], np.arange(8) / 2)


def test_equalizer_adds_one_curve_to_all_frames():
    curve = apply({"equalizer": {"size": 2.0, "points": 3}}, "features", np.zeros((4, 5), np.float32))
    assert (curve == curve[0]).all()
    low, middle, high = curve[0, [0, 2, 4]]
    assert np.allclose(curve[0, [1, 3]], [(low + middle) / 2, (middle + high) / 2])
    assert len({low, middle, high}) == 3


def test_voices_that_say_the_same_are_mixed():
    steps = Augmentation.from_spec([{"mix_voices": {"share": [0.25, 0.25], "probability": 1}}])
    clips = [np.zeros((3, 1), np.float32), np.array([[0], [4]], np.float32), np.ones((2, 1), np.float32)]
    rngs = [np.random.default_rng(0), None, np.random.default_rng(0)]
    mixed = steps.apply_to_features(clips, ["one", "one", "two"], rngs)
    assert np.allclose(mixed[0][:, 0], [0, 1.5, 3])  # three quarters of 0, 2, 4: the other clip at this one's length
    assert mixed[1] is clips[1]  # no generator
    assert mixed[2] is clips[2]  # nobody else says two


def test_flip_and_brightness():
    picture = np.arange(12, dtype=np.uint8).reshape(1, 4, 3)
    assert apply({"flip": {"probability": 1}}, "picture", picture)[0, :, 0].tolist() == [9, 6, 3, 0]
    assert apply({"brightness": {"factor": [30, 30]}}, "picture", picture)[0, 3].tolist() == [255, 255, 255]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (["sped"], "'sped' is no augmentation; did you mean 'speed'"),
        ([{"speed": {"factr": 1}}], "speed has no setting 'factr'; did you mean 'factor'"),
        ([{"speed": {"factor": 1}}], r"speed.factor is 1, expected \[low, high\]"),
        ([{"noise": {"probability": "often"}}], "noise.probability is 'often', expected a number"),
    ],
)
def test_unknown_augmentations(spec, message):
    with pytest.raises(RecipeError, match=message):
        Augmentation.from_spec(spec)
