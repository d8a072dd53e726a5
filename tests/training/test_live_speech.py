# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Speech as it is spoken: what streams is what a recording gives, or differs where the docs say so."""

import tracemalloc

import numpy as np
import pytest
import torch
from live_talk import RATE, in_chunks, quiet, talk
from media_files import sine
from processor_parts import word_tokenizer
from tiny import SPEECH, TEXT, prompt, speech, tiny_model, tiny_text_config
from torch.nn import functional as F
from transformers import (
    AutoModel,
    LlamaForCausalLM,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    WhisperConfig,
    WhisperFeatureExtractor,
)
from transformers.modeling_outputs import BaseModelOutput

import xllm
from xllm.assembly.opening import load_checkpoint
from xllm.assembly.tiny import build_tiny
from xllm.cli import main
from xllm.modeling_xllm.speech_encoders import speech_input
from xllm.processing.audio_decoding import Waveform
from xllm.processing.feature_extraction_xllm import XLLMFeatureExtractor
from xllm.processing.media_sources import MediaError
from xllm.training.data.sound_windows import Windowing, plan_windows, powers
from xllm.training.data.stream_windows import StreamWindows
from xllm.training.evaluation import streaming
from xllm.training.evaluation.fired_stream import FilterbankStream
from xllm.training.evaluation.streaming import StreamTranscriber, write_on
from xllm.training.stage_one import build_stage_one


HOW = Windowing(seconds=3, pause=0.8)


def finals(segments) -> list:
    return [segment for segment in segments if segment.is_final]


@pytest.fixture
def recogniser(tiny):
    """(recogniser, processor)"""
    return build_stage_one(*tiny, "speech").eval(), tiny[1]


# ---- what a stream is cut into --------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
def test_the_windows_are_those_of_the_recording_whatever_the_chunks(seed):
    rng = np.random.default_rng(seed)
    parts = [sine(0.6)] if seed % 2 else [np.zeros(3 * RATE, np.float32), sine(0.6)]  # as loud as all that follows
    for _ in range(14):
        level = rng.choice([1, 0.5, 0.1])
        parts += [level * sine(rng.uniform(0.03, 9)), quiet(rng.choice([0.1, 0.7, 0.79, 0.8, 0.82, 1.3, 4]))]
    sound, how = np.concatenate(parts), Windowing(seconds=rng.choice([1, 4, 7]), pause=rng.choice([0.8, 2.0]))
    expected = plan_windows(*powers([sound], RATE), RATE, how)
    assert {window.silent for window in expected} == {True, False}
    for steps in ((10**6,), (1,), (16,), (1, 7, 50, 400)):
        windows, found, held, most = StreamWindows(RATE, how), [], 0, 0
        whole = in_chunks(sound[: len(sound) // 320 * 320], *(320 * size for size in steps))
        for chunk in whole:
            found += windows.push(chunk)
            held += len(chunk)
            most = max(most, held - windows.needed - len(chunk))
            assert windows.open is None or windows.needed <= windows.open < windows.settled <= held
            assert all(window.start >= 0 for window in found)
        found += windows.push(sound[len(sound) // 320 * 320 :], is_last=True)
        assert found == expected
        assert most <= RATE * max(how.seconds * 4 / 3 + how.pause + 0.1, 1)  # what is held does not grow


@pytest.mark.parametrize("over", ["bin", "clip"])
def test_the_filterbank_of_chunks_is_that_of_the_whole(over):
    sound, extractor = np.random.default_rng(0).standard_normal(RATE).astype(np.float32), XLLMFeatureExtractor()
    extractor.normalize_over = over
    for sizes in ((1,) * 3 + (333, 7, 400), (160,), (5000, 1), (RATE,)):
        stream, ends = FilterbankStream(extractor), np.cumsum([len(chunk) for chunk in in_chunks(sound, *sizes)])
        for end in [*ends[:: max(1, len(ends) // 20)], RATE, 9000]:  # the last window ends before what was seen
            waves = [Waveform(sound[:end], RATE) for _ in range(2)]
            stream.put_on(waves[0])
            assert bool(waves[0].features) == (end >= 400)  # less than a frame is padded by the extractor
            ours, alone = (extractor([one], sampling_rate=RATE)["input_features"][0] for one in waves)
            np.testing.assert_allclose(ours, alone, atol=2e-5)
            assert ours.shape == alone.shape


# ---- what is heard --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sound", [talk(), talk()[: 3 * RATE], np.zeros(2 * RATE, np.float32), sine(9.3)])
def test_a_chunk_as_long_as_the_clip_gives_what_the_recording_gives(tiny, sound):
    model, processor = tiny
    expected = list(xllm.transcribe(model, processor, sound, window=HOW, max_new_tokens=4))
    found = finals(xllm.stream_transcribe(model, processor, [sound], window=HOW, max_new_tokens=4))
    assert [str(segment) for segment in found] == [str(segment) for segment in expected]
    assert [one.divides for one in found] == [one.divides for one in expected]
    assert [one.is_cut for one in found] == [one.is_cut for one in expected]
    recogniser = build_stage_one(model, processor, "speech").eval()
    expected = list(xllm.transcribe(recogniser, processor, sound, window=HOW))
    found = finals(xllm.stream_transcribe(recogniser, processor, [sound], window=HOW))
    assert [one.text for one in found] == [one.text for one in expected]
    for ours, theirs in zip(found, expected):
        assert ours.tokens == theirs.tokens or [
            (one["token"], pytest.approx(one["start"], abs=1e-4), pytest.approx(one["end"], abs=1e-4))
            for one in theirs.tokens
        ] == [tuple(one.values()) for one in ours.tokens]


def local(recogniser, monkeypatch) -> None:
    """An encoder whose frames look at their own 80 ms alone, before anything is normalised."""
    weight, rule = torch.randn(8 * 80, 64) / 25, speech_input(recogniser.model.audio_tower.config)

    def encode(name, inputs, mask, **kwargs):
        T, real = rule.num_frames(inputs.shape[1]), rule.num_frames(mask.sum(1, keepdim=True))
        frames = F.pad(inputs, (0, 0, 0, 8))[:, : 8 * T].unflatten(1, (T, 8)).flatten(2)
        width = recogniser.config.modalities["speech"].encoder_hidden_size
        return BaseModelOutput(last_hidden_state=frames @ weight[:, :width]), torch.arange(T) < real

    monkeypatch.setattr(recogniser.model, "encode", encode)


@pytest.mark.parametrize("sizes", [(1600,), (320, 4000, 77), (20_000,)])
def test_no_token_is_lost_or_said_twice_at_a_seam(recogniser, monkeypatch, sizes):
    """Where the encoder hears no more than a frame, nothing tells a stream from a recording but rounding."""
    recogniser, processor = recogniser
    processor.feature_extractor.do_normalize = False
    local(recogniser, monkeypatch)
    sound, how = talk(), Windowing(seconds=20, pause=0.8)
    expected = list(xllm.transcribe(recogniser, processor, sound, window=how))
    stream = StreamTranscriber(recogniser, processor, window=how, chunk=0.1, left=0.32, lookahead=0.2)
    found, tokens, written = [], [], stream._written
    stream._written = lambda batch, kept: [tokens.append(stream._window.tokens), written(batch, kept)][1]
    for chunk in in_chunks(sound, *sizes):
        found += stream.feed(chunk)
    found += stream.finish()
    assert [str(one) for one in finals(found)] == [str(one) for one in expected]
    heard = [(one, own) for one, own in zip([one for one in found if not one.silent], tokens) if one.is_final]
    assert len(heard) == 2
    for segment, own in heard:
        wave = Waveform(sound[round(segment.start * RATE) : round(segment.end * RATE)], RATE)
        whole = recogniser.cformer.cif(*recogniser._encode(**processor(audio=[wave], return_tensors="pt")))
        assert whole.lengths.item() > 15
        torch.testing.assert_close(own, whole.embeddings, atol=1e-5, rtol=1e-4)
        ends = [segment.start + 0.08 * frame for frame in whole.fire_frames[0].tolist()]
        assert segment.fired == pytest.approx(ends, abs=1e-4)
    # While somebody speaks nothing fires later than is said; what ends in the silence behind it waits for the pause.
    late = max(0.0, max(sizes) / RATE - stream.chunk)
    for segment in found:
        delays = [delay - segment.compute for delay in segment.delays]
        assert max(delays, default=0) <= stream.latency + late + (how.pause + 0.2) * segment.is_final + 1e-6
    assert sum(segment.new for segment in found) == sum(own.shape[1] for _, own in heard)
    assert sum(not segment.is_final for segment in found) >= 3


def test_partial_texts_keep_what_two_of_them_agree_on_and_final_ones_are_free(tiny, monkeypatch):
    model, processor = tiny
    end = model.generation_config.eos_token_id
    end = end[0] if isinstance(end, list) else end
    answers = [
        ([30, 31], 0),
        ([30, 40, 41, end], 1),
        ([30, 40, 42], 2),
        ([50], 0),
    ]  # and what they share with the last
    asked = []

    def written(model, text, features, draft, kept, max_new_tokens):
        asked.append((draft.tolist(), kept, features["speech"].embeddings.shape[1]))
        ids, shared = answers[len(asked) - 1]
        return torch.tensor([ids]), shared

    monkeypatch.setattr(streaming, "write_on", written)
    how = {"window": 20, "chunk": 1.0, "left": 2.0, "lookahead": 0.2, "max_new_tokens": 6}
    stream = StreamTranscriber(model, processor, **how)
    segments = [one for chunk in in_chunks(sine(3.5), 3200) for one in stream.feed(chunk)] + stream.finish()
    assert [call[:2] for call in asked] == [([], 0), ([30, 31], 0), ([30, 40, 41], 1), ([30, 40, 42], 0)]
    assert [one.is_final for one in segments] == [False, False, False, True]
    assert [call[2] for call in asked] == [len(one.fired) for one in segments]
    for before, after in zip(segments, segments[1:]):
        assert before.text[: after.stable] == after.text[: after.stable]
        assert after.fired[: len(before.fired)] == before.fired
        assert after.new == len(after.fired) - len(before.fired)
    assert segments[2].stable >= len(processor.tokenizer.decode([30, 40]).strip())
    assert (segments[-1].start, segments[-1].end) == (0, 3.5)
    assert stream.finish() == []


@pytest.mark.parametrize("kind", ["chatglm", "llama", "qwen3"])
def test_a_draft_changes_nothing_but_the_steps(kind):
    model = tiny_model(kind)
    media = speech(60)
    ids = torch.tensor([prompt([SPEECH] * 8, TEXT)])
    text = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    features = model.encode_media(media)
    how = {"do_sample": False, "max_new_tokens": 9, "modality_features": features}
    with torch.no_grad():
        alone = model.generate(**text, **how)[:, ids.shape[1] :]
        for number in (0, 1, 5, 9):
            draft = alone[0].clone()
            draft[number:] = draft[number:] % 90 + 5
            new, shared = write_on(model, text, features, draft, 0, 9)
            assert torch.equal(new, alone)
            assert shared == min(number, 8)
        other = torch.tensor([20, 21, 22, 23])
        new, shared = write_on(model, text, features, other, 3, 9)
        forced = torch.cat([ids, other[None, :3]], 1)
        how["max_new_tokens"] = 6
        expected = model.generate(input_ids=forced, attention_mask=torch.ones_like(forced), **how)
        assert shared >= 3
        assert torch.equal(new, expected[:, ids.shape[1] :])


def test_without_a_cif_the_window_is_heard_anew(tmp_path):
    torch.manual_seed(0)
    model, processor = load_checkpoint(str(build_tiny(tmp_path / "m", ["sound"])))
    sound = np.concatenate([sine(2), quiet(2)])
    stream = StreamTranscriber(model, processor, kind="sound", chunk=0.5, max_new_tokens=2)
    assert stream.latency is None
    found = [one for chunk in in_chunks(sound, 4000) for one in stream.feed(chunk)] + stream.finish()
    assert len(found) - len(finals(found)) == 5  # none once there is nothing but silence
    how = {"kind": "sound", "window": Windowing(pause=0.8), "max_new_tokens": 2}
    expected = xllm.transcribe(model, processor, sound, **how)
    assert [str(one) for one in finals(found)] == [str(one) for one in expected]


def test_a_second_pass_gives_final_texts_of_the_recording(recogniser):
    recogniser, processor = recogniser
    expected = [str(one) for one in xllm.transcribe(recogniser, processor, talk(), window=HOW)]
    how = {"window": HOW, "chunk": 0.2, "lookahead": 0.0, "left": 0.4}
    streams = [
        finals(xllm.stream_transcribe(recogniser, processor, in_chunks(talk(), 3200), second_pass=second, **how))
        for second in (True, False)
    ]
    assert [str(one) for one in streams[0]] == expected
    assert [str(one) for one in streams[1]] != expected  # so short a context is heard
    assert [(one.start, one.end) for one in streams[0]] == [(one.start, one.end) for one in streams[1]]


@pytest.mark.parametrize("rate", [8_000, 48_000])
def test_other_rates_and_numbers(recogniser, rate):
    recogniser, processor = recogniser
    integers, how = np.rint(32767 * sine(2.0, rate)).astype(np.int16), {"sampling_rate": rate, "window": HOW}
    sound = integers.astype(np.float32) / 32768
    forms = [sound, sound.astype(np.float64), torch.tensor(sound), integers, integers.astype(np.int32) * 65536]
    found = []
    for form in forms:
        chunks = [form[start : start + rate // 5] for start in range(0, len(form), rate // 5)]
        (segment,) = finals(xllm.stream_transcribe(recogniser, processor, [*chunks, form[:0]], **how))
        found.append((segment.text, segment.start, segment.end))
    assert found[0][1:] == (0, 2)
    assert all(one == found[0] for one in found)
    (waves,) = finals(xllm.stream_transcribe(recogniser, processor, [Waveform(sound, rate)], **how))
    assert waves.end == 2


def test_bad_chunks_are_named_and_leave_the_stream_as_it_was(recogniser):
    stream, nan = StreamTranscriber(*recogniser), sine(0.5)
    nan[17] = np.nan
    stream.feed(sine(0.1))
    for chunk, message in (
        (nan, "chunk 2 of the stream: holds samples that are not finite"),
        (sine(0.5)[None], r"chunk 3 of the stream: expected samples \(n,\) as .* got float32 of shape \(1, 8000\)"),
        ([1, 2, 3], "got int64"),
        (np.array([True]), "got bool"),
        (["a"], "chunk 6 of the stream: expected samples"),
        (Waveform(sine(), 8000), "chunk 7 of the stream: has 8000 Hz, expected 16000 Hz"),
    ):
        with pytest.raises(MediaError, match=message):
            stream.feed(chunk)
    stream.feed([])
    assert stream.finish()[-1].end == pytest.approx(0.1)
    with pytest.raises(ValueError, match="this stream is over"):
        stream.feed(sine())
    with pytest.raises(MediaError, match="the stream: holds no sound: 0 samples"):
        list(xllm.stream_transcribe(*recogniser, []))
    for setting in ({"chunk": 0.0}, {"left": -1.0}, {"lookahead": float("nan")}):
        with pytest.raises(ValueError, match="expected seconds, a chunk above 0"):
            xllm.stream_transcribe(*recogniser, [], **setting)
    with pytest.raises(ValueError, match="sampling_rate=1000000: expected 1000 to 768000 Hz"):
        StreamTranscriber(*recogniser, sampling_rate=10**6)
    with pytest.raises(ValueError, match=r"reads no samples|were given, but"):
        StreamTranscriber(*recogniser, kind="image")


def test_what_is_held_does_not_grow_in_an_hour(recogniser):
    minute = np.concatenate([sine(2), quiet(58)])
    stream, held, finished = StreamTranscriber(*recogniser, window=6, chunk=10), [], 0.0
    tracemalloc.start()
    for number in range(60):
        for chunk in in_chunks(sine(60) if number == 5 else minute, 20 * RATE):  # one of them without a pause
            for segment in stream.feed(chunk):
                finished = segment.end if segment.is_final else finished
        if number in (9, 59):
            held.append((tracemalloc.get_traced_memory()[0], len(stream._sound)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert stream.received == 3600
    assert finished > 3540
    assert held[1][1] <= 10 * RATE
    assert len(stream._windows._power) <= 50
    assert abs(held[1][0] - held[0][0]) < 500_000
    assert peak < 30e6  # the hour is 230 MB


PUBLISHED = {
    "whisper": (
        WhisperConfig(d_model=16, encoder_layers=1, encoder_attention_heads=2, encoder_ffn_dim=32, decoder_layers=1,
                      decoder_attention_heads=2, decoder_ffn_dim=32, num_mel_bins=80, max_source_positions=100,
                      vocab_size=60, max_target_positions=8, pad_token_id=0),
        WhisperFeatureExtractor(chunk_length=2),
    ),
    "wav2vec2": (
        Wav2Vec2Config(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, vocab_size=8,
                       conv_dim=(8, 8), conv_kernel=(400, 3), conv_stride=(160, 2), num_conv_pos_embeddings=8,
                       num_conv_pos_embedding_groups=2, feat_extract_norm="layer"),
        Wav2Vec2FeatureExtractor(),
    ),
}  # fmt: skip


@pytest.mark.parametrize("family", PUBLISHED)
def test_published_encoders_with_extractors_of_their_own(tmp_path, family):
    """One reads windows of two seconds and one samples; both stream behind a C-Former."""
    config, extractor = PUBLISHED[family]
    torch.manual_seed(2)
    LlamaForCausalLM(tiny_text_config("llama")).save_pretrained(tmp_path / "llm")
    word_tokenizer().save_pretrained(tmp_path / "llm")
    AutoModel.from_config(config).save_pretrained(tmp_path / "encoder")
    extractor.save_pretrained(tmp_path / "encoder")
    sources = ["--language-model", str(tmp_path / "llm"), "--encoder", f"speech={tmp_path / 'encoder'}"]
    command = ["init", str(tmp_path / "m"), *sources, "--interface-size", "16x1"]
    assert main(command) == 0
    model, processor = load_checkpoint(str(tmp_path / "m"))
    how = {"window": Windowing(pause=0.8), "prompt": "what is this", "max_new_tokens": 4}
    sound = np.concatenate([sine(2.7), quiet(1), sine(1)])
    expected = [str(one) for one in xllm.transcribe(model, processor, sound, **how)]
    stream = StreamTranscriber(model, processor, **how)
    assert stream.latency == pytest.approx(0.32 + 0.64 + 2 * 0.02 + 0.02)
    found = stream.feed(sound) + stream.finish()
    assert [str(one) for one in finals(found)] == expected
    how |= {"chunk": 0.2, "lookahead": 0.2, "left": 1.0}
    found = list(xllm.stream_transcribe(model, processor, in_chunks(sound, 3200), **how))
    spans = [str(one).partition("]")[0] for one in finals(found)]
    assert spans == [one.partition("]")[0] for one in expected]
    assert sum(one.new for one in found if not one.is_final) > 20
    assert all(one.fired == sorted(one.fired) for one in found)
