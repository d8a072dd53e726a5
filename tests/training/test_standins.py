# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""`init:` builds a small model, and the shipped recipe of spoken digits runs from nothing to error rates."""

import json

import pytest
import yaml

from xllm.training.recipes.recipe import RecipeError, find_recipe
from xllm.training.recipes.standins import build_standin
from xllm.training.train import train


INIT = yaml.safe_load(find_recipe("spoken_digits").read_text())["init"]


def test_words_are_tokens_and_ids_agree():
    model, processor = build_standin(INIT)
    tokenizer = processor.tokenizer
    assert [len(tokenizer(word, add_special_tokens=False)["input_ids"]) for word in ("zero", "seven")] == [1, 1]
    row = model.config.modalities["speech"]
    assert list(model.config.modalities) == ["speech"]
    assert row.token_id == processor.audio_token_id == tokenizer.audio_token_id < model.config.text_config.vocab_size
    assert (row.encoder, row.input_name, row.converter) == ("audio", "input_features", "cformer")
    assert row.subsampling_factor == processor.subsampling_factor == model.config.audio_config.subsampling_factor
    assert processor.feature_extractor.max_frequency == 4000.0
    assert model.config.text_config.eos_token_id == tokenizer.eos_token_id


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sentence": ["a"]}, "unknown key 'init.sentence'; did you mean 'sentences'"),
        ({"feature_extractor": {"max_freq": 1}}, "feature_extractor has no 'max_freq'; did you mean 'max_frequency'"),
        ({"config": {"modalities": {"sound": {}}}}, "config.modalities: 'sound' is no row of the paper"),
        ({"config": {"modalities": {"speech": {"factor": 2}}}}, "a modality row has no field 'factor'"),
    ],
)
def test_errors_name_the_key(changes, message):
    with pytest.raises(RecipeError, match=message):
        build_standin({**INIT, **changes}, "mine.yaml")


def test_spoken_digits_from_nothing(media, tmp_path):
    rows = [
        {"file": f"{name}.wav", "group": "digits_en", "text": text, "speaker": speaker, "take": take}
        for name, text in (("low", "one"), ("high", "two"))
        for speaker in ("ann", "bob")
        for take in (0, 20)
    ]
    manifest = media / "manifest.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    overrides = {
        "data_root": str(media),
        "holdout": "bob",
        "output_dir": str(tmp_path / "out"),
        "trainer.max_steps": 2,
    }
    result = train("spoken_digits", overrides, progress=False)
    assert [stage.folder.name for stage in result.stages] == ["stage0", "stage1-speech", "stage2-speech"]
    for stage in result.stages[1:]:
        found = {name: (one["metric"], one["n"]) for name, one in stage.evaluations.items()}
        assert found == {"unknown_speaker": ("cer", 4), "new_takes": ("cer", 2)}
    samples = [
        json.loads(line) for line in (result.checkpoint / "samples_unknown_speaker.jsonl").read_text().splitlines()
    ]
    bob = {f"{manifest}:{number}" for number, row in enumerate(rows, start=1) if row["speaker"] == "bob"}
    assert {sample["where"] for sample in samples} == bob
