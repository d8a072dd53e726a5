# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Stage checkpoints: small files, whole models."""

import json
import logging
import shutil
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open
from tiny import VOCAB, tiny_config, tiny_model, tiny_text_config
from transformers import (
    AutoModel,
    AutoModelForMultimodalLM,
    BitsAndBytesConfig,
    GenerationConfig,
    LlamaForCausalLM,
    LlamaModel,
    ParakeetEncoder,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.models.blip_2.modeling_blip_2 import Blip2VisionModel

from xllm import ChatGLMForConditionalGeneration, XLLMConfig, XLLMEncoderModel, XLLMForConditionalGeneration, XLLMModel
from xllm.modeling_xllm import stage_checkpoints
from xllm.modeling_xllm.stage_checkpoints import (
    StageCheckpointMixin,
    adapted_layers,
    quantize_language_model_only,
    sample_towers,
    without_adapter,
)
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
    model.save_pretrained(tmp_path / "inner")
    (tmp_path / "model.safetensors").unlink()
    assert_same_weights(model, XLLMForConditionalGeneration.from_pretrained(tmp_path, subfolder="inner"))


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
    assert_same_weights(model.model, XLLMModel.from_pretrained(tmp_path / "stage"))  # without the head
    shutil.rmtree(tmp_path / "llm")
    encoders = XLLMEncoderModel.from_pretrained(tmp_path / "stage")  # needs no language model
    encoders.save_pretrained(tmp_path / "encoders")
    with pytest.raises(StageCheckpointError, match="encoders holds encoders and interfaces .*: compose one"):
        XLLMForConditionalGeneration.from_pretrained(tmp_path / "encoders")
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
    for kwargs in ({}, {"output_loading_info": True}):
        with pytest.raises(StageCheckpointError, match="2 missing: model.interfaces.image.adapter"):
            XLLMForConditionalGeneration.from_pretrained(tmp_path / "stage", **kwargs)


@pytest.mark.parametrize(
    ("exceptions", "spared"),
    [
        (None, ["lm_head", "model.audio_tower", "model.extra_towers", "model.interfaces", "model.vision_tower"]),
        (["lm_head"], ["lm_head", "model.interfaces"]),
    ],
)
def test_what_quantisation_spares(exceptions, spared):
    given = {"quant_method": "bitsandbytes", "load_in_8bit": True, "llm_int8_skip_modules": exceptions}
    for config in (given, BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=exceptions)):
        assert quantize_language_model_only(config).llm_int8_skip_modules == spared
    assert config.llm_int8_skip_modules == given["llm_int8_skip_modules"] == exceptions


@pytest.mark.parametrize("towers", [(), ("vision_tower",), ("vision_tower", "language_model")])
def test_a_quantised_language_model_leaves_no_trace_where_its_source_is_named(tmp_path, monkeypatch, towers):
    model, seen = tiny_model("llama"), []
    model.hf_quantizer = model.config.quantization_config = scheme = {"bits": 4}
    model.config.towers = {part: {"name_or_path": "there"} for part in towers} or None

    def save(model, folder, state_dict):
        assert (state_dict is None) == (not towers), "where all is stored transformers gathers it"
        seen.append((model.hf_quantizer, getattr(model.config, "quantization_config", None)))

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", save)
    model.save_pretrained(tmp_path)
    assert seen == [(None, None) if "language_model" in towers else (scheme, scheme)]
    assert model.hf_quantizer is model.config.quantization_config is scheme  # the model in memory is what it was


@pytest.mark.parametrize(
    ("kwargs", "dtype"),
    [
        ({}, None),
        ({"dtype": torch.float16}, torch.float16),
        ({"torch_dtype": "bfloat16"}, torch.bfloat16),
        ({"dtype": "auto"}, None),
        ({"dtype": torch.float16, "quantization_config": SimpleNamespace()}, None),  # read as it is
    ],
    ids=str,
)
def test_a_stage_is_put_together_in_the_type_that_is_asked_for(tmp_path, monkeypatch, kwargs, dtype):
    """But for the interfaces, what its language model keeps in float32, and whole numbers."""
    monkeypatch.setattr(LlamaModel, "_keep_in_fp32_modules", ["norm"])
    model, seen = tiny_model("llama"), {}
    model.save_pretrained(tmp_path / "base")
    model.save_interfaces(tmp_path / "stage", base=str(tmp_path / "base"))
    monkeypatch.setattr(XLLMForConditionalGeneration, "_load_strictly", lambda *args: seen.update(args[-1]) or model)
    XLLMForConditionalGeneration.from_pretrained(tmp_path / "stage", **kwargs)
    assert seen["state_dict"].keys() == model.state_dict().keys()
    assert kwargs.items() <= seen.items()
    for name, value in model.state_dict().items():
        is_exact = dtype is None or not value.is_floating_point() or "interfaces" in name or "norm" in name
        expected, found = value if is_exact else value.to(dtype), seen["state_dict"][name]
        assert found.dtype == expected.dtype, name
        assert torch.equal(found, expected), name


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


def test_what_is_loaded_is_asked_for_by_its_revision_and_reported(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    caplog.set_level("WARNING", "transformers")
    model, asked = tiny_model("llama"), []
    assert not model.is_quantized
    model.is_quantized = True  # whatever quantisers set: what is trained never is
    assert not model.is_quantized

    def load(path, *args, **kwargs):
        asked.append((path, kwargs["revision"], kwargs["ignore_mismatched_sizes"], kwargs["output_loading_info"]))
        logging.getLogger("transformers.modeling_utils").warning("LOAD REPORT")
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
        assert ("LOAD REPORT" in caplog.text) == bool(kwargs)  # an error that names them all is enough
    assert given(None, output_loading_info=True)[0] is model
    assert given(None, output_loading_info=True, ignore_mismatched_sizes=True)[0] is model
    assert given(None, None) is model  # a new one has no checkpoint
    assert asked == [("x", "v1", True, True)] * 2 + [("x", "main", tolerant, True) for tolerant in (False, True, True)]
    with torch.no_grad():
        model.lm_head.weight[0, 0] = torch.nan
    for source, named in (("here", "here"), (None, "the sources")):
        with pytest.raises(StageCheckpointError, match=f"^{named}: NaN or Inf in 1 of its tensors: lm_head.weight"):
            given(None, source, output_loading_info=True)


def test_layers_that_adapt_others_and_a_state_without_them():
    model = torch.nn.ModuleDict({name: torch.nn.Module() for name in "abc"})
    for name in "ac":
        model[name].lora_A = torch.nn.Linear(2, 1, bias=False)
        model[name].adapter_layer_names = ("lora_A",)
    for name in "bc":
        model[name].base_layer = torch.nn.Linear(2, 2, bias=False)
    assert adapted_layers(model).keys() == {"c"}
    assert without_adapter(model).keys() == {"a.lora_A.weight", "b.weight", "c.weight"}
    given = {"c.base_layer.weight": 1, "c.lora_A.weight": 2, "d": 3}
    assert without_adapter(model, given) == {"c.weight": 1, "d": 3}
    assert without_adapter(model["b"], given) == given


def test_a_tower_has_changed_where_a_value_has():
    model = tiny_model("llama")
    model._fail_if_towers_moved()  # before anything was loaded
    model.config.towers = {"vision_tower": {"name_or_path": "there"}}
    model._tower_samples = {**sample_towers(model), "model.vision_tower.gone": torch.zeros(1)}
    model._fail_if_towers_moved()
    tower = model.model.vision_tower
    tower.half()  # rounded, on purpose
    model._fail_if_towers_moved()
    tower.float()
    with pytest.raises(
        StageCheckpointError, match=r"^model.vision_tower.* has changed .*there.*pop\('vision_tower'\)"
    ):
        model._fail_if_towers_moved()


def test_a_base_is_named_wherever_it_is_saved_from(tmp_path, monkeypatch):
    model = tiny_model("llama")
    monkeypatch.chdir(tmp_path)
    model.save_pretrained("base")
    model.save_interfaces("stage", base="base")
    source = {"name_or_path": str(tmp_path / "base"), "revision": None}
    found = XLLMConfig.from_pretrained("stage").towers
    assert found == dict.fromkeys(("audio_tower", "language_model", "vision_tower"), source)
    assert model.config.towers is None
    again = XLLMForConditionalGeneration.from_pretrained("stage")
    again.name_or_path = ""  # nothing is left to be found there
    again.save_interfaces("again")
    assert XLLMConfig.from_pretrained("again").towers == found


def test_a_base_of_the_hub_is_named_by_its_commit_if_it_holds_these_very_tensors(tmp_path, monkeypatch):
    model = tiny_model("llama")
    held = {key: value.clone() for key, value in model.state_dict().items()}

    def read(name, revision, wanted):
        return {key: value for key, value in held.items() if wanted(key)}

    monkeypatch.setattr(stage_checkpoints, "read_tensors", read)
    monkeypatch.setattr(stage_checkpoints, "pinned_revision", lambda name, revision: f"commit of {name} at {revision}")
    model.save_interfaces(tmp_path, base="user/base@v1")
    source = {"name_or_path": "user/base", "revision": "commit of user/base at v1"}
    assert list(XLLMConfig.from_pretrained(tmp_path).towers.values()) == [source] * 3
    held["model.vision_tower.post_layernorm.bias"][0] += 1
    del held["lm_head.weight"]
    with pytest.raises(StageCheckpointError, match="^user/base@v1: 2 tensors differ .*, e.g. model.vision"):
        model.save_interfaces(tmp_path, base="user/base@v1")


def test_a_revision_is_that_of_all_that_is_read(tmp_path, monkeypatch):
    model, asked = tiny_model("llama"), {}
    model.save_pretrained(tmp_path / "base")
    model.save_interfaces(tmp_path / "stage", base=str(tmp_path / "base"))

    def spy(owner, name):
        real = getattr(owner, name)

        def called(*args, **kwargs):
            if (given := [*args, kwargs.get("revision")])[0] == str(tmp_path / "stage"):
                asked[name if owner is stage_checkpoints else owner.__name__] = "v1" in given
            return real(*args, **kwargs)

        monkeypatch.setattr(owner, name, called)

    for name in ("verify_weights", "weight_files", "read_tensors"):
        spy(stage_checkpoints, name)
    for owner in (XLLMConfig, GenerationConfig):
        spy(owner, "from_pretrained")
    again = XLLMForConditionalGeneration.from_pretrained(str(tmp_path / "stage"), revision="v1")
    assert asked == dict.fromkeys(
        ("XLLMConfig", "verify_weights", "weight_files", "GenerationConfig", "read_tensors"), True
    )
    assert "X2LInterface" not in again._no_split_modules | again.model._no_split_modules


def test_an_adapter_is_looked_for_beside_its_checkpoint(monkeypatch):
    pytest.importorskip("peft")
    asked = []

    def config_of(source, **hub):
        asked.append((source, hub))
        return {}, {}

    def fetch(source, name, **hub):
        asked.append((source, hub))
        raise OSError("it is gone\nlook elsewhere")

    monkeypatch.setattr(PreTrainedConfig, "get_config_dict", config_of)
    monkeypatch.setattr(stage_checkpoints, "cached_file", fetch)
    with pytest.raises(StageCheckpointError, match="there: cannot read the adapter .*: it is gone$"):
        tiny_model("llama").load_adapter_weights("there", "v1", token="t")
    hub = {"token": "t", "revision": "v1"}
    assert asked == [("there", hub), ("there", {**hub, "subfolder": "adapter"})]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, {"a.safetensors": torch.half, "b.safetensors": torch.half}),
        ({"files": ["a.safetensors", "b.bin"]}, None),
        ({"files": []}, None),
        ({"files": None}, None),
        ({"state_dict": {"x": 1}}, {"x": 1}),
        ({"is_quantized": True}, None),
        ({"disable_mmap": True}, None),
        ({"zero3": True}, None),
        ({"platform": "win32"}, None),
    ],
    ids=str,
)
def test_tensors_are_read_one_by_one_where_their_files_are_mapped(monkeypatch, changes, expected):
    case = {"files": ["a.safetensors", "b.safetensors"], "state_dict": None, "platform": "linux", "zero3": False}
    case = {**case, "is_quantized": False, "disable_mmap": False, **changes}
    monkeypatch.setattr(PreTrainedModel, "_load_pretrained_model", lambda model, state_dict, *args: state_dict)
    monkeypatch.setattr(stage_checkpoints, "unread_tensors", lambda file, dtype: {file: dtype})
    monkeypatch.setattr(stage_checkpoints, "is_deepspeed_zero3_enabled", lambda: case["zero3"])
    monkeypatch.setattr(stage_checkpoints.sys, "platform", case["platform"])
    config = SimpleNamespace(dtype=torch.half, is_quantized=case["is_quantized"], disable_mmap=case["disable_mmap"])
    found = StageCheckpointMixin._load_pretrained_model(None, case["state_dict"], case["files"], config)
    assert found == expected


@pytest.mark.parametrize(
    ("model_class", "is_subset", "elsewhere"),
    [
        (XLLMForConditionalGeneration, False, ()),
        (XLLMModel, False, ("lm_head.weight",)),
        (XLLMEncoderModel, False, ("lm_head.weight", "model.language_model.norm.weight")),
        (
            XLLMEncoderModel,
            True,
            (
                "lm_head.weight",
                "model.language_model.norm.weight",
                "model.audio_tower.odd",
                "model.interfaces.speech.odd",
                "model.extra_towers.bird.odd",
                "model.nothing.odd",
            ),
        ),
    ],
)
def test_tensors_that_a_model_does_without(model_class, is_subset, elsewhere):
    """An encoder model of some rows; whatever else a checkpoint holds that has no place is too much."""
    with torch.device("meta"):
        config = tiny_config("llama")
        model = model_class(config.with_modalities(["image"]) if is_subset else config)
    own = ("model.interfaces.image.odd", "model.vision_tower.odd", "odd" if not is_subset else "model.vision_tower.a")
    known = ("lm_head.weight", "model.language_model.norm.weight", "model.audio_tower.odd")
    known = (*known, "model.interfaces.speech.odd", "model.extra_towers.bird.odd", "model.nothing.odd", *own)
    assert tuple(key for key in known if model._is_elsewhere(key, is_subset)) == elsewhere
