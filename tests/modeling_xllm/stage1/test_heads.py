# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Heads of stage 1 beside a checkpoint: where they are written, found and refused, and the model that they make."""

import json

import pytest
import tiny
from hub_cache import snapshot
from safetensors.torch import save_file
from transformers import ParakeetEncoder

from xllm import ChatGLMForConditionalGeneration, X2LConfig, XLLMForConditionalGeneration, XLLMForSpeechRecognition
from xllm.modeling_xllm.stage1.configuration_speech_recognition import SpeechRecognitionConfig
from xllm.modeling_xllm.stage1.heads import stage_one_config
from xllm.modeling_xllm.weight_files import StageCheckpointError


HEADS = XLLMForSpeechRecognition.heads_name


def recogniser() -> XLLMForSpeechRecognition:
    config = stage_one_config(tiny.tiny_config(), SpeechRecognitionConfig, "speech", vocab_size=11)
    return XLLMForSpeechRecognition(config)


def test_the_config_of_one_row_of_two():
    rows = tiny.tiny_rows()
    voice = {**rows["speech"].to_dict(), "placeholder_token": "<VoiceHere>", "token_id": tiny.STATUS}
    whole = tiny.tiny_config(rows={**rows, "voice": X2LConfig(**voice)})
    config = stage_one_config(whole, SpeechRecognitionConfig, "voice", vocab_size=11)
    assert (config.modality, list(config.modalities), config.vocab_size) == ("voice", ["voice"], 11)
    config.audio_config.hidden_size = config.row.subsampling_factor = 99
    assert (whole.audio_config.hidden_size, whole.modalities["voice"].subsampling_factor) == (16, tiny.FACTOR)


def test_heads_are_written_to_a_folder_that_is_made_and_may_be_there(tmp_path):
    for model in (recogniser(), recogniser()):
        path = model.save_heads(tmp_path / "runs" / "a")
        assert path == tmp_path / "runs" / "a" / HEADS
        settings, tensors = XLLMForSpeechRecognition.read_heads(str(path.parent))
        assert settings["vocab_size"] == 11
        assert tensors.keys() == model.heads_state_dict().keys()
        assert all(tensors[name].equal(value) for name, value in model.heads_state_dict().items())


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path, heads: None, f"has no {HEADS}"),
        (lambda path, heads: path.write_bytes(b"no tensors"), "damaged: "),
        (lambda path, heads: save_file(heads, path), "does not say which stage-1 config its heads belong to"),
        (lambda path, heads: save_file(heads, path, {"config": "{"}), "damaged: "),
    ],
    ids=["none", "bytes", "no config", "half a config"],
)
def test_heads_that_cannot_be_read(write, message, tmp_path):
    model = recogniser()
    write(tmp_path / HEADS, model.heads_state_dict())
    with pytest.raises(StageCheckpointError, match=message):
        model.load_heads(tmp_path)


def test_a_stage_that_names_its_towers(tmp_path):
    """Relative to itself; the language model's is none of the recogniser's."""
    config = tiny.tiny_config(rows={"speech": tiny.tiny_rows()["speech"]})
    ChatGLMForConditionalGeneration(tiny.tiny_text_config()).save_pretrained(tmp_path / "llm")
    encoder = ParakeetEncoder(config.audio_config)
    encoder.save_pretrained(tmp_path / "audio")
    stage, places = tmp_path / "stage", {"llm": str(tmp_path / "llm"), "audio": str(tmp_path / "audio")}
    XLLMForConditionalGeneration.from_towers(
        places["llm"], {"audio": places["audio"]}, modalities=config.modalities
    ).save_pretrained(stage)
    text = (stage / "config.json").read_text()
    (stage / "config.json").write_text(text.replace(places["llm"], "../llm").replace(places["audio"], "../audio"))
    model = recogniser()
    model.save_heads(stage)
    opened = XLLMForSpeechRecognition.from_pretrained(stage)
    assert {part: tower["name_or_path"] for part, tower in opened.config.towers.items()} == {
        "audio_tower": places["audio"]
    }
    theirs = encoder.state_dict()
    assert all(theirs[name].equal(value) for name, value in opened.model.audio_tower.state_dict().items())
    values = json.loads((stage / "config.json").read_text())
    (stage / "config.json").write_text(json.dumps({**values, "weight_files": {"model.safetensors": "0" * 64}}))
    with pytest.raises(StageCheckpointError, match="altered or damaged since it was saved"):
        XLLMForSpeechRecognition.from_pretrained(stage)


@pytest.mark.parametrize("kind", ["composite", "recogniser"])
def test_a_revision_of_a_repository_is_that_revision(kind, tmp_path):
    """Out of the cache, which holds no main revision."""
    composite, models = tiny.tiny_model(), {}
    for revision in ("first", "second"):
        models[revision], folder = recogniser(), snapshot(tmp_path, revision, revision)
        (composite if kind == "composite" else models[revision]).save_pretrained(folder)
        if kind == "composite":
            models[revision].save_heads(folder)
    for revision, model in models.items():
        opened = XLLMForSpeechRecognition.from_pretrained(
            "a/b", revision=revision, cache_dir=tmp_path, local_files_only=True
        )
        assert opened.token_head.weight.equal(model.token_head.weight)
