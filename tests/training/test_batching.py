# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Lengths without decoding, batches of one length or one kind of media, and sounds that are too long."""

import contextlib
import json
import pickle
import wave
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest

from xllm.processing.audio_decoding import Waveform
from xllm.processing.feature_extraction_xllm import XLLMCIFFeatureExtractor, XLLMFeatureExtractor
from xllm.processing.media_kinds import MEDIA_KINDS, MediaKind
from xllm.processing.media_sources import MediaError
from xllm.training.batches import batching
from xllm.training.batches.batching import GroupedSampler, kinds_of_sample, seconds_of, token_lengths
from xllm.training.batches.collator import XLLMDataCollator
from xllm.training.data.dataset import ChatDataset
from xllm.training.data.long_media import LongMedia
from xllm.training.data.samples import FileSlice, Sample
from xllm.training.data.sources import DataError, load_source
from xllm.training.data.text_normalizers import NORMALIZERS, normalizer
from xllm.training.recipes.recipe import RecipeError, SourceSpec, load_recipe
from xllm.training.train import run_stage


def sound(media, name="low.wav", **fields):
    return Sample(name, media=[{"type": "audio", "path": str(media / name), **fields}], answers=["a"], prompts=["?"])


def write_wave(path, seconds, rate=16_000):
    noise = np.random.default_rng(0).integers(-9000, 9000, int(seconds * rate)).astype(np.int16)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(noise.tobytes())
    return path


def test_lengths_are_told_without_decoding(tiny_processor, media, tmp_path, monkeypatch):
    write_wave(tmp_path / "slow.wav", 1.5, rate=8000)
    stored = FileSlice(str(media / "high.wav"), 0, (media / "high.wav").stat().st_size, "high.wav")
    parts = [
        [{"type": "audio", "path": str(media / "low.wav")}], [{"type": "audio", "path": str(tmp_path / "slow.wav")}],
        [{"type": "audio", "audio": stored}],
        [{"type": "audio", "path": str(media / "low.wav"), "offset": 0.1, "duration": 0.2}],
        [{"type": "image", "path": str(media / "red.png")}] * 2, [{"type": "video", "path": str(media / "clip.mp4")}],
        [],
    ]  # fmt: skip
    samples = [Sample(str(n), media=part, answers=["an answer"], prompts=["what"]) for n, part in enumerate(parts)]
    data = ChatDataset([samples], tiny_processor)
    real = [int(XLLMDataCollator(tiny_processor)([data[n]])["attention_mask"].sum()) for n in range(len(samples))]
    monkeypatch.setattr(tiny_processor, "load", None)
    lengths = token_lengths(samples, tiny_processor)
    marks = [one - other for one, other in zip(real, lengths)]  # of the template, and around each medium
    assert marks == [marks[-1] + 4 * len(part) for part in parts]
    assert marks[-1] <= 4
    messages = Sample("m", messages=[{"role": "user", "content": parts[4] + [{"type": "text", "text": "what"}]}])
    assert token_lengths([messages], tiny_processor)[0] < lengths[4]


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"type": "audio", "url": "http://127.0.0.1:9/a.wav"}, r"row:1: the length .*be downloaded; give `duration`"),
        ({"type": "audio", "path": "gone.wav"}, r"row:1: the length of its audio part cannot be told.*no such file"),
    ],
)  # fmt: skip
def test_a_length_that_cannot_be_told_is_refused(tiny_processor, part, message):
    with pytest.raises(DataError, match=message):
        token_lengths([Sample("row:1", media=[part], answers=["a"])], tiny_processor)
    with_length = Sample("row:1", media=[{**part, "duration": 1.0}], answers=["a"])
    assert token_lengths([with_length], tiny_processor)[0] > 10


def texts(count, rng):
    return [Sample(f"t{n}", prompts=["?"], answers=["word " * int(rng.integers(1, 120))]) for n in range(count)]


def test_grouping_by_length_leaves_little_padding(tiny_processor):
    """Computed over real tokens, of the batches that are made: 1.05 at most, where random ones have 1.5 or more."""
    data = ChatDataset([texts(400, np.random.default_rng(0))], tiny_processor)
    lengths = np.array(token_lengths(data.samples, tiny_processor))

    def ratio(order):
        batches = [lengths[order[start : start + 8]] for start in range(0, len(order), 8)]
        return sum(len(batch) * batch.max() for batch in batches) / lengths.sum()

    order = list(GroupedSampler(data, 8, by_length=True, one_modality=False))
    assert sorted(order) == list(range(400))
    assert ratio(order) <= 1.05
    assert ratio(np.random.default_rng(1).permutation(400)) > 1.5
    assert order == list(GroupedSampler(data, 8, by_length=True, one_modality=False))
    data.set_epoch(1)
    assert order != list(GroupedSampler(data, 8, by_length=True, one_modality=False))


@pytest.mark.parametrize("by_length", [False, True])
def test_batches_of_one_modality(tiny_processor, media, by_length):
    samples = texts(10, np.random.default_rng(0)) + [sound(media) for _ in range(5)]
    picture = [{"type": "image", "path": str(media / "red.png")}]
    samples += [Sample(str(n), media=picture, answers=["a"]) for n in range(3)]
    data = ChatDataset([samples], tiny_processor, weights=[1.5])
    sampler = GroupedSampler(data, 4, by_length, one_modality=True)
    order = list(sampler)
    assert len(order) == len(sampler)
    kinds = [
        data.samples[data.order[index]].media[0]["type"] if data.samples[data.order[index]].media else ""
        for index in order
    ]
    assert all(len(set(kinds[start : start + 4])) == 1 for start in range(0, len(order), 4))
    assert len(order) % 4 == 0
    assert set(order) == set(range(len(data)))  # filled up with others of their kind, none left out
    assert len(order) - len(data) <= 3 * 3


def test_what_takes_the_place_of_a_broken_sample_is_of_its_kind(tiny_processor, media):
    picture = [{"type": "image", "path": str(media / "red.png")}]
    samples = [
        sound(media, "broken.wav"), Sample("p", media=picture, answers=["a"]), sound(media, "low.wav"),
    ]  # fmt: skip
    data = ChatDataset([samples], tiny_processor, on_error="skip")
    assert data[0]["where"] == "p"
    GroupedSampler(data, 2, by_length=False, one_modality=True)
    assert data[0]["where"] == "low.wav"
    assert data.skipped() == ["broken.wav"]


def test_a_recipe_groups_its_batches(tiny, media, tmp_path, monkeypatch):
    """By the Trainer, over two epochs and workers; what is in each batch is looked at where it is made."""
    model, processor = tiny
    rows = [
        {"file": str(media / name), "text": "a"} for name in ("low.wav", "high.wav", "red.png", "blue.png", "red.png")
    ]
    seen = []
    collate = XLLMDataCollator.__call__
    monkeypatch.setattr(
        XLLMDataCollator, "__call__", lambda self, samples: seen.append(collate(self, samples)) or seen[-1]
    )
    stage = {
        "stage": 3, "data": {"train": {"dataset": rows}, "one_modality": True},
        "trainer": {
            "per_device_train_batch_size": 2, "num_train_epochs": 2, "train_sampling_strategy": "group_by_length",
            "use_cpu": True,
        },
    }  # fmt: skip
    run_stage(model, processor, stage, tmp_path, progress=False, save=False)
    batches = [batch for batch in seen if len(batch["input_ids"]) == 2]  # the report's samples come one by one
    kinds = [("pixel_values" in batch, "input_features" in batch) for batch in batches]
    assert len(kinds) == 6  # of each epoch one of sounds and two of pictures
    assert all(picture != sound for picture, sound in kinds)


def of_parts(*types):
    return Sample("s", media=[{"type": one} for one in types], answers=["a"])


def test_the_kinds_of_a_sample_have_one_order():
    assert kinds_of_sample(of_parts("video", "image", "text", "image")) == "image+video"
    assert kinds_of_sample(of_parts("text")) == kinds_of_sample(of_parts()) == "text"


def test_how_long_a_sound_is_by_hand():
    wave = np.zeros(4000, np.float32)
    assert seconds_of({"type": "audio", "duration": 0.7, "offset": 0.2}) == 0.7
    assert seconds_of({"type": "audio", "audio": Waveform(wave, 8000)}) == 0.5
    assert seconds_of({"type": "audio", "array": wave, "sampling_rate": 16_000}) == 0.25
    assert seconds_of({"type": "audio", "audio": Waveform(wave, 8000), "offset": 0.1}) == pytest.approx(0.4)
    assert seconds_of({"type": "audio", "audio": Waveform(wave, 8000), "offset": 0.9}) == 0


class Row(SimpleNamespace):
    def num_placeholders(self, positions):
        return positions * (self.tokens_per_item or 1)


def length_of(part, reader, *tokens_per_item):
    """Of a medium without text, read by a row for each number of tokens; None: they follow from its length."""
    rows = [Row(tokens_per_item=number) for number in tokens_per_item]
    processor = SimpleNamespace(tokenizer=lambda texts, **_: {"input_ids": [[]]}, rows_of=lambda kind: rows)
    processor.reader = lambda kind: reader
    return token_lengths([Sample("row:1", media=[part], answers=[""])], processor)[0]


def test_vectors_are_counted_wherever_they_are(tmp_path):
    reader, vectors, path = XLLMCIFFeatureExtractor(feature_size=3), np.zeros((7, 3), np.float32), tmp_path / "x.npy"
    np.save(path, vectors)
    stored = FileSlice(str(path), 0, path.stat().st_size, "x.npy")
    for source in ({"path": str(path)}, {"audio": stored}, {"array": vectors}, {"bytes": path.read_bytes()}):
        assert length_of({"type": "audio", **source}, reader, None) == 7
    path.write_bytes(pickle.dumps([0] * 7))
    with pytest.raises(DataError, match="row:1: the length of its audio part cannot be told"):
        length_of({"type": "audio", "path": str(path)}, reader, None)


def test_what_tells_the_length_of_a_medium(monkeypatch):
    monkeypatch.setitem(MEDIA_KINDS, "odd", MediaKind("odd"))
    picture, odd, sound = ({"type": kind, "duration": 1.0} for kind in ("image", "odd", "audio"))
    assert length_of(picture, None, 5) == 5
    assert length_of(picture, None, 5, 2) == 7
    assert length_of(sound, XLLMFeatureExtractor(), None) == 98  # 1 + (16000 - 400) // 160
    assert length_of(sound, XLLMFeatureExtractor(), None, 2) == 3 * 98
    for part, reader in ((picture, None), (odd, XLLMFeatureExtractor())):
        with pytest.raises(DataError, match=f"only the reader of {part['type']} parts can tell"):
            length_of(part, reader, None)


@pytest.mark.parametrize(
    ("stream", "whole", "seconds"),
    [(SimpleNamespace(duration=8000, time_base=Fraction(1, 16_000)), 2_500_000, 0.5), (None, 2_500_000, 2.5),
     (SimpleNamespace(duration=None), 2_500_000, 2.5), (None, None, None)],
)  # fmt: skip
def test_the_header_of_a_sound_says_how_long_it_is(media, monkeypatch, stream, whole, seconds):
    container = SimpleNamespace(streams=SimpleNamespace(best=lambda kind: stream), duration=whole)
    monkeypatch.setattr(batching, "open_container", lambda file, name: contextlib.nullcontext(container))
    part = {"type": "audio", "path": str(media / "low.wav")}
    if seconds is None:
        with pytest.raises(MediaError, match="its header does not say how long it is"):
            seconds_of(part)
    else:
        assert seconds_of(part) == seconds


def test_the_longest_of_several_texts_counts(tiny_processor):
    assert token_lengths([], tiny_processor) == []
    several = Sample("a", prompts=["what is it", "why"], answers=["a dog in the sun", "cat"])
    one = Sample("b", prompts=["what is it"], answers=["a dog in the sun"])
    words = tiny_processor.tokenizer("what is ita dog in the sun", add_special_tokens=False)["input_ids"]
    assert token_lengths([several, one], tiny_processor) == [len(words)] * 2


def sampler(count, batch_size, kinds=("text",), lengths=None, seed=3, epoch=5):
    """Over samples whose kinds repeat, and a data set that draws them in reverse."""
    samples = [of_parts(kinds[index % len(kinds)]) for index in range(count)]
    data = SimpleNamespace(samples=samples, processor=None, order=np.arange(count)[::-1], seed=seed, epoch=epoch)
    found = GroupedSampler(data, batch_size, by_length=False, one_modality=len(kinds) > 1)
    found.lengths = lengths
    return found


def test_the_order_of_an_epoch_follows_from_seed_and_epoch_alone():
    """By hand, so that a run that is resumed by another version reads on where it was."""
    rng = np.random.default_rng([3, 5, 2])
    drawn = rng.permutation(26)
    batches = [drawn[start : start + 4] for start in range(0, 24, 4)]
    expected = [*np.concatenate([batches[place] for place in rng.permutation(6)]), *drawn[24:]]
    assert list(sampler(26, 4)) == expected
    assert sampler(10, 4).data.kinds is None
    assert len(sampler(10, 4)) == 10


def test_samples_are_sorted_within_fifty_batches():
    lengths = np.random.default_rng(0).integers(1, 20, 230)
    found = sampler(230, 2, lengths=lengths)
    order = found.data.order
    batches = list(found._batches(np.arange(230), order))
    assert [len(batch) for batch in batches] == [2] * 115
    for start in (0, 50, 100):
        some = np.concatenate(batches[start : start + 50])
        by_length = sorted(range(2 * start, min(2 * start + 100, 230)), key=lambda index: -lengths[order[index]])
        assert some.tolist() == by_length  # those of one length as they came


def test_groups_are_filled_up_with_their_own():
    found = sampler(7, 4, kinds=("image", "audio"))  # four pictures, three sounds
    order = list(found)
    assert len(order) == len(found) == 8
    assert {frozenset(order[:4]), frozenset(order[4:])} == {frozenset({0, 2, 4, 6}), frozenset({1, 3, 5})}
    assert found.data.kinds.tolist() == ["image", "audio"] * 3 + ["image"]


# ---- sounds that are too long ---


def decoded(tiny_processor, path, *args):
    data = ChatDataset([[sound(path.parent, path.name)]], tiny_processor, long_media=LongMedia(*args))
    parts = [part for part in data[0]["messages"][0]["content"] if part["type"] == "audio"]
    return data, [part["audio"].samples for part in parts]


def test_a_long_sound_is_refused_cut_into_pieces_or_a_window(tiny_processor, tmp_path):
    path = write_wave(tmp_path / "long.wav", 2.5)
    (whole,) = decoded(tiny_processor, path)[1]
    assert len(whole) == 40_000
    with pytest.raises(MediaError, match=r"long\.wav: a sound of 2\.5 s, and data\.max_seconds is 1; raise"):
        decoded(tiny_processor, path, 1.0)
    pieces = decoded(tiny_processor, path, 1.0, "chunk")[1]
    assert [len(piece) for piece in pieces] == [13_334, 13_333, 13_333]
    assert np.array_equal(np.concatenate(pieces), whole)
    data, (window,) = decoded(tiny_processor, path, 1.0, "window")
    assert len(window) == 16_000
    places = [place for place in range(24_001) if np.array_equal(whole[place : place + 16_000], window)]
    assert len(places) == 1
    data.set_epoch(1)
    assert not np.array_equal(data[0]["messages"][0]["content"][0]["audio"].samples, window)
    batch = XLLMDataCollator(tiny_processor)([decoded(tiny_processor, path, 1.0, "chunk")[0][0]])
    assert len(batch["input_features"]) == 3
    skipping = ChatDataset(
        [[sound(tmp_path, "long.wav"), *texts(1, np.random.default_rng(0))]], tiny_processor, on_error="skip",
        long_media=LongMedia(1.0),
    )  # fmt: skip
    assert skipping[0]["where"] == "t0"
    assert skipping.skipped() == ["long.wav"]


def test_a_stage_refuses_more_than_a_minute(tiny, tmp_path):
    model, processor = tiny
    write_wave(tmp_path / "long.wav", 61)
    rows = [{"file": str(tmp_path / "long.wav"), "text": "a"}]
    stage = {"stage": 2, "modalities": ["speech"], "data": {"train": {"dataset": rows}}, "trainer": {"max_steps": 1}}
    with pytest.raises(MediaError, match=r"dataset\[0\]: a sound of 61\.0 s, and data\.max_seconds is 60"):
        run_stage(model, processor, stage, tmp_path / "out", progress=False, save=False)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"max_seconds": 0}, "data.max_seconds is 0.*, expected a number above 0, or null for no limit"),
        ({"long_audio": "cut"}, "data.long_audio is 'cut'"),
        ({"long_audio": "chunk"}, "chunk makes several media of one; stage 1 takes one per sample"),
    ],
)
def test_limits_of_a_recipe_are_checked(data, message):
    recipe = {"model": "m", "output_dir": "o", "stage": 1, "data": {"train": "a.jsonl", **data}}
    with pytest.raises(RecipeError, match=message):
        load_recipe(recipe)


# ---- spelling of transcripts ---


def test_answers_are_normalised_where_the_source_asks_for_it(media):
    rows = [{"file": "low.wav", "text": "Twenty-one, [noise] DON'T!"}, {"file": "low.wav", "text": "你好，GDP。"}]
    path = media / "spelling.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def answers(name):
        return [sample.answers[0] for sample in load_source(SourceSpec(path=str(path), normalize_text=name))]

    assert answers(None) == answers("none") == [row["text"] for row in rows]
    assert answers("basic") == ["twenty one don t", "你好 gdp"]
    assert answers("english")[0] == "21 do not"
    with pytest.raises(DataError, match=r"normalize_text is 'french'; choose one of basic, english, mandarin"):
        answers("french")
    path.write_text(json.dumps({"file": "low.wav", "text": "..."}) + "\n")
    with pytest.raises(
        DataError, match=r"spelling\.jsonl:1: nothing is left of an answer after normalize_text: basic"
    ):
        answers("basic")


def test_mandarin_is_read_out():
    pytest.importorskip("wetext")
    normalize = normalizer("mandarin")
    assert normalize("共 465 篇，约315万字。") == "共四百六十五篇约三百一十五万字"
    assert normalize("ＧＤＰ 增長 3.5%") == "gdp增长百分之三点五"


def test_mandarin_without_its_library_is_one_line(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "wetext", None)
    with pytest.raises(DataError, match=r'needs the library wetext: pip install "xllm-transformers\[mandarin\]"'):
        NORMALIZERS["mandarin"]()
