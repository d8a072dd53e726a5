# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Interfaces without their language model, and interfaces of different runs in one model."""

import json
import shutil

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny import FRAMES, PIXELS, speech, tiny_model

from xllm import XLLMConfig, XLLMEncoderModel, XLLMForConditionalGeneration
from xllm.modeling_xllm.weight_files import StageCheckpointError


def keys_of(folder):
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        return set(file.keys())


def same(first, second):
    ours, theirs = first.state_dict(), second.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.fixture
def base(tmp_path):
    """A whole X-LLM in a folder."""
    tiny_model().save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def trained(base, folder, amount, **lineage):
    """A stage checkpoint whose interfaces differ from the base's by `amount`."""
    model = XLLMForConditionalGeneration.from_pretrained(base)
    with torch.no_grad():
        for parameter in model.model.interfaces.parameters():
            parameter.add_(amount)
    model.config.lineage = [lineage] if lineage else None
    model.save_interfaces(folder)
    assert model.config.towers is None, "saving does not change the model"
    return model


@pytest.mark.parametrize("tied", [False, True])
def test_only_interfaces_are_stored_and_the_whole_comes_back(tmp_path, tied):
    tiny_model("llama", tie_word_embeddings=tied).save_pretrained(tmp_path / "base")
    model = trained(tmp_path / "base", tmp_path / "stage", 0.5)
    assert {key.split(".")[1] for key in keys_of(tmp_path / "stage")} == {"interfaces"}
    again = XLLMForConditionalGeneration.from_pretrained(tmp_path / "stage")
    assert same(again, model)
    assert (again.lm_head.weight is again.get_input_embeddings().weight) == tied


def test_a_model_that_is_not_what_its_base_holds_is_not_saved_as_interfaces(base, tmp_path):
    model = XLLMForConditionalGeneration.from_pretrained(base)
    with torch.no_grad():
        model.model.vision_tower.post_layernorm.bias.add_(1)
    with pytest.raises(StageCheckpointError, match="1 tensors differ .* model.vision_tower.post_layernorm.bias"):
        model.save_interfaces(tmp_path / "stage")
    with pytest.raises(StageCheckpointError, match="no source is known; give base"):
        tiny_model().save_interfaces(tmp_path / "stage")
    assert not (tmp_path / "stage").exists()


@pytest.mark.parametrize("whole", [False, True])
def test_an_interface_is_used_without_its_language_model(base, tmp_path, whole):
    model = trained(base, tmp_path / "stage", 0.5)
    folder = tmp_path / "stage"
    if whole:
        model.save_pretrained(folder := tmp_path / "whole")
    else:  # neither language model nor the speech encoder can be had
        kept = {key: value for key, value in load_file(base / "model.safetensors").items() if "vision_tower" in key}
        save_file(kept, base / "model.safetensors", metadata={"format": "pt"})
    encoder = XLLMEncoderModel.from_pretrained(folder, modalities=["video"])
    assert list(encoder.interfaces) == ["image", "video"], "with the row whose converter it uses"
    assert encoder.audio_tower is None
    assert not hasattr(encoder, "language_model")
    videos = torch.randn(2, FRAMES, 3, PIXELS, PIXELS)
    mask = torch.tensor([[1] * FRAMES, [1] + [0] * (FRAMES - 1)])
    ours, theirs = encoder.get_video_features(videos, mask), model.get_video_features(videos, mask)
    assert [item.shape for item in ours.pooler_output] == [item.shape for item in theirs.pooler_output]
    assert all(torch.equal(a, b) for a, b in zip(ours.pooler_output, theirs.pooler_output))
    with pytest.raises(ValueError, match="modalities: no row sound; the rows are image, speech, video"):
        XLLMEncoderModel.from_pretrained(folder, modalities=["sound"])


def test_interfaces_of_different_runs_are_composed_into_one_model(base, tmp_path):
    pictures = trained(base, tmp_path / "a", 0.5, stage=2, modalities=["image"])
    voices = trained(base, tmp_path / "b", -0.5, stage=2, modalities=["speech"])
    sources = {"image": str(tmp_path / "a"), "speech": str(tmp_path / "b")}
    model = XLLMForConditionalGeneration.from_towers(interfaces=sources)
    assert list(model.model.interfaces) == ["image", "speech"]
    assert same(model.model.interfaces["image"], pictures.model.interfaces["image"])
    assert same(model.model.interfaces["speech"], voices.model.interfaces["speech"])
    for part in ("vision_tower", "audio_tower", "language_model"):
        assert same(getattr(model.model, part), getattr(pictures.model, part))
    assert torch.equal(model.lm_head.weight, pictures.lm_head.weight)
    assert [entry["modalities"] for entry in model.config.lineage] == [["image"], ["speech"]]
    clip = speech(40)
    heard = model.eval().get_audio_features(**clip).pooler_output[0]
    assert torch.equal(heard, voices.eval().get_audio_features(**clip).pooler_output[0])
    model.save_pretrained(tmp_path / "both")
    assert {key.split(".")[1] for key in keys_of(tmp_path / "both")} == {"interfaces"}
    shutil.rmtree(tmp_path / "a")
    assert same(XLLMForConditionalGeneration.from_pretrained(tmp_path / "both"), model)


def test_what_cannot_be_composed_is_said(base, tmp_path):
    trained(base, tmp_path / "a", 0.5)
    with pytest.raises(ValueError, match="a: video has the converter of image; take image from there too"):
        XLLMForConditionalGeneration.from_towers(interfaces={"video": str(tmp_path / "a")})
    with pytest.raises(ValueError, match="a has no sound interface; it has image, speech, video"):
        XLLMForConditionalGeneration.from_towers(interfaces={"sound": str(tmp_path / "a")})
    with pytest.raises(ValueError, match="language_model: got None"):
        XLLMForConditionalGeneration.from_towers()
    tiny_model(seed=1).save_pretrained(tmp_path / "other")
    sources = {"image": str(tmp_path / "a"), "speech": str(tmp_path / "other")}
    with pytest.raises(ValueError, match="language_model of .*other is another one than"):
        XLLMForConditionalGeneration.from_towers(interfaces=sources)


def test_damaged_or_foreign_weights_are_named(base, tmp_path):
    stage = tmp_path / "stage"
    trained(base, stage, 0.5)
    config = XLLMConfig.from_pretrained(stage)
    config.modalities["image"].num_query_tokens += 1
    config.save_pretrained(stage)
    with pytest.raises(StageCheckpointError, match="1 misshapen: .*query_tokens"):
        XLLMForConditionalGeneration.from_pretrained(stage)
    weights = (stage / "model.safetensors").read_bytes()
    (stage / "model.safetensors").write_bytes(weights[:-4])
    with pytest.raises(StageCheckpointError, match="model.safetensors: damaged"):
        XLLMForConditionalGeneration.from_pretrained(stage)
    (stage / "model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": {"a": "model-00001-of-00002.safetensors"}}
    (stage / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(OSError, match="model-00001-of-00002.safetensors"):
        XLLMForConditionalGeneration.from_pretrained(stage)
