# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Stage checkpoints: small files, whole models."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open
from tiny import VOCAB, tiny_config, tiny_model, tiny_text_config
from transformers import AutoModel, AutoModelForMultimodalLM, LlamaForCausalLM, ParakeetEncoder
from transformers.models.blip_2.modeling_blip_2 import Blip2VisionModel

from xllm import ChatGLMForConditionalGeneration, XLLMForConditionalGeneration
from xllm.modeling_xllm.stage_checkpoints import sample_towers
from xllm.modeling_xllm.weight_files import StageCheckpointError


def assert_same_weights(first, second):
    ours, theirs = first.state_dict(), second.state_dict()
    assert ours.keys() == theirs.keys()
    different = [name for name in ours if not torch.equal(ours[name], theirs[name])]
    assert different == []


def write_towers(folder, text="chatglm"):
    """The four published parts of a tiny model, each in a folder of its own."""
    torch.manual_seed(5)
    config = tiny_config(text)
    causal = ChatGLMForConditionalGeneration if text == "chatglm" else LlamaForCausalLM
    causal(tiny_text_config(text)).save_pretrained(folder / "llm")
    Blip2VisionModel(config.vision_config).save_pretrained(folder / "vision")
    ParakeetEncoder(config.audio_config).save_pretrained(folder / "audio")
    return {
        "language_model": str(folder / "llm"),
        "encoders": {"vision": str(folder / "vision"), "audio": str(folder / "audio")},
        "modalities": config.modalities,
    }


def test_a_whole_model_survives_a_folder(tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path)
    for auto in (XLLMForConditionalGeneration, AutoModel, AutoModelForMultimodalLM):
        again = auto.from_pretrained(tmp_path)
        assert type(again) is XLLMForConditionalGeneration
        assert_same_weights(model, again)


@pytest.mark.parametrize("text", ["chatglm", "llama"])
def test_a_composed_model_stores_its_interfaces_only(tmp_path, text):
    model = XLLMForConditionalGeneration.from_towers(**write_towers(tmp_path, text))
    vision = Blip2VisionModel.from_pretrained(tmp_path / "vision")
    torch.testing.assert_close(model.model.vision_tower.state_dict(), vision.state_dict(), atol=0, rtol=0)
    model.save_pretrained(tmp_path / "stage")
    with safe_open(tmp_path / "stage" / "model.safetensors", framework="pt") as file:
        assert {key.split(".")[1] for key in file.keys()} == {"interfaces"}  # noqa: SIM118
    again = XLLMForConditionalGeneration.from_pretrained(tmp_path / "stage")
    assert_same_weights(model, again)
    assert again.lm_head.weight.shape == (VOCAB, 32)


def test_where_the_language_model_stops_travels(tmp_path):
    """Chat models stop at several tokens, which only their generation_config.json names."""
    towers = write_towers(tmp_path, "llama")
    path = tmp_path / "llm" / "generation_config.json"
    path.write_text(json.dumps({"eos_token_id": [7, 9], "pad_token_id": 7, "do_sample": True, "temperature": 0.6}))
    model = XLLMForConditionalGeneration.from_towers(**towers)
    model.save_pretrained(tmp_path / "stage")
    path.unlink()
    for stops in (model, XLLMForConditionalGeneration.from_pretrained(tmp_path / "stage")):
        assert stops.generation_config.eos_token_id == [7, 9]
        assert (stops.generation_config.pad_token_id, stops.generation_config.do_sample) == (7, None)
    # without the file, what the config says
    again = XLLMForConditionalGeneration.from_towers(**towers)
    assert again.generation_config.eos_token_id == tiny_text_config("llama").eos_token_id


def test_the_parts_of_a_whole_x_llm_can_be_the_towers_of_a_stage(tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path / "base")
    source = {"name_or_path": "../base", "revision": None}
    model.config.towers = dict.fromkeys(("vision_tower", "audio_tower", "language_model"), source)
    model.save_pretrained(tmp_path / "stage2")
    shutil.move(tmp_path / "stage2", tmp_path / "later")  # both stay neighbours
    assert_same_weights(model, XLLMForConditionalGeneration.from_pretrained(tmp_path / "later"))


@pytest.mark.parametrize("reload", [False, True])
def test_a_tower_that_has_changed_is_not_named_as_before(tmp_path, reload):
    model = XLLMForConditionalGeneration.from_towers(**write_towers(tmp_path))
    if reload:
        model.save_pretrained(tmp_path / "stage")
        model = XLLMForConditionalGeneration.from_pretrained(tmp_path / "stage")
    merged = "model.language_model.layers.0.attention.query_key_value.weight"
    with torch.no_grad():
        model.get_parameter(merged).add_(1e-3)  # what merging a LoRA does
    with pytest.raises(StageCheckpointError, match=rf"{merged} has changed .* config.towers.pop\('language_model'\)"):
        model.save_pretrained(tmp_path / "merged")
    assert not (tmp_path / "merged").exists()
    model.config.towers.pop("language_model")
    model.save_pretrained(tmp_path / "merged")
    assert_same_weights(model, XLLMForConditionalGeneration.from_pretrained(tmp_path / "merged"))


def test_a_missing_tower_is_named_and_nothing_is_left_random(tmp_path):
    model = XLLMForConditionalGeneration.from_towers(**write_towers(tmp_path))
    model.save_pretrained(tmp_path / "stage")
    shutil.rmtree(tmp_path / "audio")
    with pytest.raises(StageCheckpointError, match="audio_tower: cannot load .*audio"):
        XLLMForConditionalGeneration.from_pretrained(tmp_path / "stage")


def test_a_tower_without_all_its_tensors_is_refused(tmp_path):
    towers = write_towers(tmp_path)
    model = XLLMForConditionalGeneration.from_towers(**towers)
    model.save_pretrained(tmp_path / "stage")
    config = json.loads((tmp_path / "vision" / "config.json").read_text())
    config["num_hidden_layers"] = 1
    Blip2VisionModel(type(model.config.vision_config)(**config)).save_pretrained(tmp_path / "vision")
    with pytest.raises(StageCheckpointError, match="vision does not fit this model: 12 missing"):
        XLLMForConditionalGeneration.from_pretrained(tmp_path / "stage")


def test_interface_weights_missing_from_the_stage_are_refused(tmp_path):
    model = XLLMForConditionalGeneration.from_towers(**write_towers(tmp_path))
    state = {key: value for key, value in model.state_dict().items() if "interfaces.image.adapter" not in key}
    model.save_pretrained(tmp_path / "stage", state_dict=state)
    with pytest.raises(StageCheckpointError, match="2 missing: model.interfaces.image.adapter"):
        XLLMForConditionalGeneration.from_pretrained(tmp_path / "stage")


def test_a_few_values_of_each_tensor_of_a_named_tower_are_kept():
    model = torch.nn.ModuleDict({"vision_tower": torch.nn.Embedding(128, 2), "lm_head": torch.nn.Linear(3, 1)})
    model.vision_tower.small = torch.nn.Parameter(torch.ones(3))
    model.vision_tower.count = torch.nn.Buffer(torch.tensor([1, 2]))
    model.config = SimpleNamespace(towers=None)
    assert sample_towers(model) == {}
    model.config.towers = {"vision_tower": {}}
    samples = sample_towers(model)
    assert samples.keys() == {"vision_tower.weight", "vision_tower.small"}
    assert torch.equal(samples["vision_tower.weight"], model.vision_tower.weight.flatten()[::4])  # 64 of 256
    assert torch.equal(samples["vision_tower.small"], torch.ones(3))
    with torch.no_grad():
        model.vision_tower.weight.zero_()
    assert samples["vision_tower.weight"].any(), "a copy"
    model.config.towers = {"language_model": {}}
    assert sample_towers(model).keys() == {"lm_head.weight", "lm_head.bias"}


def test_what_is_loaded_is_asked_for_by_its_revision_and_reported():
    model, asked = tiny_model("llama"), []
    assert not model.is_quantized
    model.is_quantized = True  # whatever quantisers set: what is trained never is
    assert not model.is_quantized

    def load(path, *args, **kwargs):
        asked.append((path, kwargs["revision"], kwargs["ignore_mismatched_sizes"], kwargs["output_loading_info"]))
        return model, {"mismatched_keys": [("a", (1,), (2,))], "missing_keys": {"a", "b"}, "unexpected_keys": ["c"]}

    def given(revision, source="here", **kwargs):
        return model._load_strictly(load, "x", (), source, False, None, revision, kwargs)

    for kwargs, problems in (
        (
            {},
            r"here does not fit this model: 1 missing: b; .*: c; 1 misshapen: a \(\[1\], expected \[2\]",
        ),
        ({"ignore_mismatched_sizes": True}, "here does not fit this model: 1 missing: b; 1 without a place: c$"),
    ):
        with pytest.raises(StageCheckpointError, match=problems):
            given("v1", **kwargs)
    assert given(None, output_loading_info=True)[0] is model
    assert given(None, output_loading_info=True, ignore_mismatched_sizes=True)[0] is model
    assert given(None, None) is model  # a new one has no checkpoint
    assert asked == [("x", "v1", True, True)] * 2 + [("x", "main", tolerant, True) for tolerant in (False, True, True)]
