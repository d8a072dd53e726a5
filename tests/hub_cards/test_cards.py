# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Cards say what the files say."""

import ast
import json

import pytest
from huggingface_hub import ModelCard
from tiny import tiny_config

from xllm.hub_cards.cards import model_card, read_results


ENTRY = {
    "stage": 2,
    "modalities": ["image"],
    "parent": "0" * 64,
    "weights": "1" * 64,
    "data": {"names": ["captions"], "samples": 1200, "sha256": "a" * 64},
    "frozen": {"tensors": 240, "sha256": "b" * 64},
    "package": "xllm-transformers 0.1.0",
}


def test_a_card_of_a_trained_stage(tmp_path):
    towers = {"language_model": {"name_or_path": "THUDM/chatglm-6b", "revision": "c" * 40}}
    config = tiny_config(towers=towers, stage={"stage": 2, "modalities": ["image"]}, lineage=[ENTRY])
    config.save_pretrained(tmp_path)
    (tmp_path / "losses.png").touch()
    (tmp_path / "results.json").write_text(
        json.dumps({"test": {"task": "asr", "metric": "cer", "value": 0.0581, "n": 200}})
    )
    card = model_card(tmp_path, "user/name", "stage2", "apache-2.0", {"THUDM/chatglm-6b": "other"})
    read = ModelCard(str(card)).data.to_dict()
    assert read["base_model"] == ["THUDM/chatglm-6b"]
    assert (read["license"], read["library_name"], read["pipeline_tag"]) == (
        "apache-2.0",
        "transformers",
        "any-to-any",
    )
    (result,) = read["model-index"][0]["results"]
    assert result["task"]["type"] == "automatic-speech-recognition"
    assert result["metrics"][0]["value"] == 0.0581
    for line in (
        "Stage 2 (align) of image. Stored here is everything but language_model;",
        f"| language_model | [THUDM/chatglm-6b](https://huggingface.co/THUDM/chatglm-6b) | {'c' * 40} | other |",
        "| everything else | this repository | stage2 | apache-2.0 |",
        "| image | vision | qformer | 2 per image |",
        "| video | vision | qformer (of image) | 2 per picture |",
        "| speech | audio | cformer | at most one per 8 positions of its input |",
        f"| 2 | image | captions (`{'a' * 12}`) | 1200 | 240, unchanged (`{'b' * 12}`) |",
        "| test | asr | cer | 5.81 % | 200 |",
        "![Loss curves of the last stage](losses.png)",
    ):
        assert line in card.text
    code = card.text.split("```python\n")[1].split("```")[0]
    assert len(ast.parse(code).body) == 6


def test_a_card_claims_nothing_that_was_not_measured(tmp_path):
    tiny_config().save_pretrained(tmp_path)
    card = model_card(tmp_path, "user/name")
    assert "Nothing was measured for this checkpoint." in card.text
    assert "This checkpoint records no training." in card.text
    assert "| everything | this repository | main | not stated |" in card.text
    assert "losses.png" not in card.text
    assert not {"model-index", "base_model", "license"} & card.data.to_dict().keys()


def test_results_of_a_stage_of_the_demo_and_of_evaluate_are_read(tmp_path):
    cell = {"metric": "accuracy", "value": 0.9, "n": 10}
    read = {"name": "qa", "task": "qa", **cell}
    for content in ({"qa": {"task": "qa", **cell}}, {"tasks": {"qa": cell}, "seed": 0}, {"task": "qa", **cell}):
        (tmp_path / "results.json").write_text(json.dumps(content))
        assert read_results(tmp_path / "results.json") == [read]
    assert read_results(tmp_path / "none.json") == []
    (tmp_path / "results.json").write_text("[1]")
    with pytest.raises(ValueError, match=r"results\.json: not a file of results"):
        read_results(tmp_path / "results.json")
