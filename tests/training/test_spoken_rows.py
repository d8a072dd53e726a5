# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""`speak`: a source that names no file but texts, said by a synthesiser, and pauses, whose answer is empty."""

import importlib

import numpy as np
import pytest

from xllm.training.data import spoken_rows
from xllm.training.data.media_rows import DataError, MediaRows
from xllm.training.data.sources import load_source
from xllm.training.data.spoken_rows import SPOKEN, SpeakSpec, pause
from xllm.training.recipes.recipe import SourceSpec, load_recipe
from xllm.training.recipes.strict import RecipeError


def sounds(**settings):
    """(text, waveform) of each row."""
    rows = spoken_rows.spoken_rows("said", SpeakSpec(**settings))
    return [(columns["text"], columns[SPOKEN]["array"]) for _, columns in rows]


@pytest.fixture
def no_synthesiser(monkeypatch):
    def import_module(name):
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr(importlib, "import_module", import_module)


def test_texts_take_turns_and_follow_from_the_seed():
    pytest.importorskip("espeakng_loader")
    first, again, other = (sounds(texts=["one", "two", ""], number=7, seed=seed) for seed in (0, 0, 1))
    assert [text for text, _ in first] == ["one", "two", "", "one", "two", "", "one"]
    assert all(np.array_equal(a, b) for (_, a), (_, b) in zip(first, again))
    assert not any(np.array_equal(a, b) for (_, a), (_, b) in zip(first, other))
    said = [wave for text, wave in first if text]
    assert all(wave.dtype == np.int16 and 0.1 < len(wave) / 16_000 < 1.5 for wave in said)
    assert all(np.abs(wave.astype(int)).max() > 1000 for wave in said)
    assert not np.array_equal(first[0][1], first[3][1])  # another voice says it


def test_samples_have_the_sound_and_its_text(no_synthesiser):
    media = MediaRows()
    spec = SourceSpec(speak=SpeakSpec(texts=[""], number=3), modality="speech", prompts=["Write it down."])
    for sample in load_source(spec, media):
        (part,) = sample.media
        assert part["type"] == "audio"
        assert part["audio"]["sampling_rate"] == 16_000
        assert (sample.prompts, sample.answers) == (["Write it down."], [""])
    spec = SourceSpec(speak=SpeakSpec(texts=[""], number=3), modality="text", prompts=["<S>{text}</S>Write."])
    samples = load_source(spec, media)
    assert [(sample.media, sample.prompts, sample.answers) for sample in samples] == [
        ([], ["<S></S>Write."], [""])
    ] * 3


def test_pauses_are_of_all_kinds_and_lengths():
    rng = np.random.default_rng(0)
    pauses = [pause(rng) for _ in range(300)]
    assert all(np.isfinite(wave).all() and np.abs(wave).max() <= 1 for wave in pauses)
    seconds = [len(wave) / 16_000 for wave in pauses]
    assert min(seconds) < 0.04
    assert max(seconds) > 1.3
    assert any((wave == 0).all() for wave in pauses)
    assert any((wave == wave[0]).all() and wave[0] for wave in pauses)
    assert any(np.count_nonzero(wave) == 1 for wave in pauses)
    noises = [wave for wave in pauses if np.count_nonzero(wave) > 1 and wave.std() > 0]
    peaks = [np.abs(wave).max() for wave in noises]
    assert min(peaks) < 1e-3
    assert max(peaks) > 0.3


def test_without_the_synthesiser_the_pauses_are_left_or_a_line_says_what_to_install(no_synthesiser, caplog):
    with pytest.raises(DataError, match=r"said: espeak-ng is not installed: pip install 'xllm-transformers\[demo\]'"):
        sounds(texts=["one", ""], number=4)
    with caplog.at_level("WARNING"):
        assert [text for text, _ in sounds(texts=["one", ""], number=4, needed=False)] == ["", ""]
    assert "2 synthesised sounds are left out" in caplog.text
    with pytest.raises(DataError, match="nothing else in this source"):
        sounds(texts=["one"], number=4, needed=False)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"texts": []}, "speak.texts is empty"),
        ({"texts": ["one", "two"], "number": 1}, "speak.number is 1, expected at least one for each"),
        ({"texts": ["eins"], "language": "de"}, "speak.language is 'de'; choose en or zh"),
    ],
)
def test_what_is_not_possible_is_named(settings, message):
    with pytest.raises(DataError, match=message):
        sounds(**settings)


def test_a_source_is_of_one_kind(tmp_path):
    with pytest.raises(DataError, match="either a `path` or `speak`"):
        load_source(SourceSpec(path=str(tmp_path), speak=SpeakSpec(texts=[""], number=1)))
    recipe = {"model": "m", "output_dir": "o", "stage": 1, "data": {"train": [{"speak": {"text": ["one"]}}]}}
    with pytest.raises(RecipeError, match=r"unknown key 'data\.train\.0\.speak\.text'; did you mean 'texts'"):
        load_recipe(recipe)
