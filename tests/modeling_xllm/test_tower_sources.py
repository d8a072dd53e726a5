# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Parts of a model by name, and whether a published head is one that ours repeats."""

import json
import logging
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from hub_cache import snapshot
from published_encoders import ENCODERS, HTSAT
from published_language_models import LANGUAGE_MODELS, REFUSED
from tiny import tiny_model, tiny_text_config
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMultimodalLM,
    BlipConfig,
    ClapAudioConfig,
    ClapConfig,
    LlamaConfig,
    LlamaForCausalLM,
    ParakeetCTCConfig,
)
from transformers.models.clap.modeling_clap import ClapAudioModel

from xllm import ChatGLMConfig, ChatGLMForConditionalGeneration
from xllm.modeling_xllm import tower_sources
from xllm.modeling_xllm.tower_sources import (
    check_head,
    encoder_of,
    load_whole,
    part_of,
    quiet_report,
    read_tower,
    tower_config,
    tower_of,
    without_head,
)
from xllm.modeling_xllm.weight_files import StageCheckpointError


@pytest.mark.parametrize(
    ("key", "part"),
    [
        ("lm_head.weight", "language_model"),
        ("model.language_model.layers.0.weight", "language_model"),
        ("model.vision_tower.layers.0.weight", "vision_tower"),
        ("extra_towers.status.layers.0.weight", "extra_towers.status"),
        ("model.interfaces.image.adapter.weight", "interfaces"),
    ],
)
def test_the_part_of_a_tensor(key, part):
    assert part_of(key) == part


@pytest.mark.parametrize(
    ("encoder", "part"), [("vision", "vision_tower"), ("audio", "audio_tower"), ("radar", "extra_towers.radar")]
)
def test_the_part_of_an_encoder_and_back(encoder, part):
    assert tower_of(encoder) == part
    assert encoder_of(part) == encoder


def test_the_tower_inside_a_published_config():
    clap, blip, parakeet, llama = ClapConfig(), BlipConfig(), ParakeetCTCConfig(), LlamaConfig()
    assert tower_config(clap, "audio") is clap.audio_config
    assert tower_config(blip) is blip.vision_config
    assert tower_config(parakeet, "audio") is parakeet.encoder_config
    assert tower_config(llama) is llama
    both = SimpleNamespace(vision_config=1, audio_config=2, sub_configs=("audio_config", "vision_config"))
    assert (tower_config(both, "vision"), tower_config(both, "speech")) == (1, 2)


def llama(scale: float = 1.0):
    """With a head of that size."""
    model = LlamaForCausalLM(tiny_text_config("llama"))
    torch.nn.init.normal_(model.lm_head.weight, std=scale)
    return model


def with_logits(model, change):
    """Logits of the model are changed, by the ids too."""
    forward = model.forward
    model.forward = lambda input_ids: SimpleNamespace(logits=change(forward(input_ids=input_ids).logits, input_ids))


@pytest.mark.parametrize("name", LANGUAGE_MODELS)
def test_the_heads_of_published_families_are_repeated(name):
    model = LANGUAGE_MODELS[name].make(288).eval()
    inner = without_head(model.get_decoder() if hasattr(model.config, "vision_config") else model)
    state = torch.get_rng_state()
    check_head(model, inner, "here")
    assert torch.get_rng_state().equal(state)
    assert "forward" not in vars(inner)
    assert not model.get_output_embeddings()._forward_pre_hooks
    if name == "Cohere":
        model.logit_scale *= 1.2  # another than its config says
        with pytest.raises(StageCheckpointError, match="here: the head of a cohere does more than a linear layer"):
            check_head(model, inner, "here")
        assert "forward" not in vars(inner)


def test_a_head_that_does_more_is_refused(tmp_path):
    REFUSED["MiniCPM3"][1](288).save_pretrained(tmp_path)
    with pytest.raises(
        StageCheckpointError, match=f"{tmp_path}: the head of a minicpm3 does more than a linear layer"
    ):
        read_tower("language_model", str(tmp_path))
    capped, wider, unread = (llama() for _ in range(3))
    with_logits(capped, lambda logits, ids: logits.tanh())
    with_logits(wider, lambda logits, ids: torch.cat([logits, ids[..., None]], -1))
    unread.forward = lambda input_ids: SimpleNamespace(logits=torch.zeros(1, 2, 120))
    for model in (capped, wider, unread):
        with pytest.raises(StageCheckpointError, match="here: the head of a llama does more than a linear layer"):
            check_head(model, model.base_model, "here")


@pytest.mark.parametrize(
    ("scale", "change", "fits"),
    [
        (9, lambda logits, ids: logits * 1.009, True),
        (9, lambda logits, ids: logits * 1.012, False),
        (0, lambda logits, ids: logits + 9e-4, True),
        (0, lambda logits, ids: logits + 1.2e-3, False),
        (1, lambda logits, ids: logits.float(), True),
    ],
)
def test_half_precision_rounds_by_less_than_one_percent(scale, change, fits):
    model = llama(scale).to(torch.bfloat16 if scale == 1 else torch.float32)
    with_logits(model, change)
    with nullcontext() if fits else pytest.raises(StageCheckpointError, match="does more than a linear layer"):
        check_head(model, model.base_model, "here")


def test_a_tower_that_cannot_be_had_is_named_with_its_revision(tmp_path):
    with pytest.raises(StageCheckpointError, match=f"^vision_tower: cannot load {tmp_path} at revision v1: "):
        read_tower("vision_tower", str(tmp_path), "v1")
    with pytest.raises(StageCheckpointError, match=f"^vision_tower: cannot load {tmp_path}: "):
        read_tower("vision_tower", str(tmp_path))


@pytest.mark.parametrize("name", ENCODERS)
def test_the_tower_of_a_published_encoder_is_read(tmp_path, name):
    """Out of a cache that holds no main revision."""
    encoder = ENCODERS[name]
    part = "vision_tower" if encoder.row == "image" else "audio_tower"
    published = encoder.write(snapshot(tmp_path, "v1")).state_dict()
    found = read_tower(part, "a/b", "v1", cache_dir=tmp_path, local_files_only=True)
    ours = {
        f"model.{part}.{key.removeprefix(encoder.prefix)}": value
        for key, value in published.items()
        if key.startswith(encoder.prefix)
    }
    random = {key for key in found if key.endswith(encoder.lacks or ("\0",))}
    found, ours = ({key: value for key, value in one.items() if key not in random} for one in (found, ours))
    torch.testing.assert_close(found, ours, atol=0, rtol=0)


@pytest.mark.parametrize("kind", ["vision", "audio"])
def test_a_tower_that_is_published_alone_is_read(tmp_path, kind):
    model = tiny_model().model.vision_tower if kind == "vision" else ClapAudioModel(ClapAudioConfig(**HTSAT))
    model.save_pretrained(tmp_path)
    ours = {f"model.{kind}_tower.{key}": value for key, value in model.state_dict().items()}
    torch.testing.assert_close(read_tower(f"{kind}_tower", str(tmp_path)), ours, atol=0, rtol=0)


@pytest.mark.parametrize(
    ("name", "layers", "head"),
    [
        ("Llama 3", "model.", "lm_head."),
        ("OPT", "model.", "lm_head."),
        ("Gemma 3, its language model", "model.language_model.", "lm_head."),
        ("Llama 4, its language model", "language_model.model.", "language_model.lm_head."),
    ],
)
def test_a_published_language_model_is_read_with_its_head(tmp_path, name, layers, head):
    published = LANGUAGE_MODELS[name].write(snapshot(tmp_path, "v1")).state_dict()
    found = read_tower("language_model", "a/b", "v1", cache_dir=tmp_path, local_files_only=True)
    ours = {
        new + key.removeprefix(old): value
        for old, new in ((layers, "model.language_model."), (head, "lm_head."))
        for key, value in published.items()
        if key.startswith(old)
    }
    torch.testing.assert_close(found, ours, atol=0, rtol=0)


def test_tensors_of_another_shape_are_named(tmp_path):
    LANGUAGE_MODELS["Llama 3"].write(tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**settings, "intermediate_size": 48}))
    said = r"^language_model: cannot load .*: .* does not fit LlamaForCausalLM: 6 misshapen: model.layers.0.mlp.down_"
    with pytest.raises(StageCheckpointError, match=said + r"proj.weight, .* \(\[32, 64\], expected \[32, 48\]\)$"):
        read_tower("language_model", str(tmp_path))


@pytest.mark.parametrize("part", ["vision_tower", "audio_tower", "language_model"])
def test_a_part_of_a_whole_x_llm_is_read(tmp_path, part):
    model = tiny_model("llama")
    model.save_pretrained(snapshot(tmp_path, "v1"))
    found = read_tower(part, "a/b", "v1", cache_dir=tmp_path, local_files_only=True)
    ours = {key: value for key, value in model.state_dict().items() if key.startswith(f"model.{part}.")}
    ours |= {"lm_head.weight": model.lm_head.weight.data} if part == "language_model" else {}
    torch.testing.assert_close(found, ours, atol=0, rtol=0)


@pytest.mark.parametrize(
    ("missing", "unexpected", "may_hold", "message"),
    [
        (["pooler.dense.bias", "encoder.pooler.bias", "masked_spec_embed"], ["text_model.bias"], ".*", None),
        (["layer.pooler.bias"], [], ".*", "source does not fit Odd: 1 missing: layer.pooler.bias$"),
        ([], ["cls.bias"], r"cls\..*", None),
        ([], ["cls.bias", "a.cls.bias"], r"cls\..*", "source does not fit Odd: 1 without a place: a.cls.bias$"),
    ],
)
def test_what_a_published_model_may_lack_and_hold(missing, unexpected, may_hold, message):
    model, asked = type("Odd", (), {})(), []

    def from_pretrained(*args, **kwargs):
        asked.append((args, kwargs))
        return model, {"missing_keys": missing, "unexpected_keys": unexpected, "mismatched_keys": []}

    auto = SimpleNamespace(from_pretrained=from_pretrained)
    with nullcontext() if message is None else pytest.raises(StageCheckpointError, match=message):
        assert load_whole(auto, "source", "v1", may_hold, token="t") is model
    ((source, how),) = asked
    assert (source, how["revision"], how["token"]) == (("source",), "v1", "t")


def test_only_the_report_of_loading_is_silenced(caplog):
    logger = logging.getLogger("transformers.modeling_utils")
    caplog.set_level(logging.WARNING, logger.name)
    logger.addHandler(caplog.handler)
    try:
        with quiet_report():
            logger.warning("a LOAD REPORT of many lines")
            logger.warning("something else")
        logger.warning("a LOAD REPORT again")
    finally:
        logger.removeHandler(caplog.handler)
    assert "of many lines" not in caplog.text
    assert "something else" in caplog.text
    assert "LOAD REPORT again" in caplog.text


@pytest.mark.parametrize(
    ("settings", "auto"),
    [
        ({"model_type": ChatGLMConfig.model_type}, ChatGLMForConditionalGeneration),
        ({"model_type": "llama"}, AutoModelForCausalLM),
        ({"model_type": "gemma3", "text_config": {}}, AutoModelForMultimodalLM),  # one that reads media itself
    ],
)
def test_a_language_model_is_opened_as_what_it_is(tmp_path, monkeypatch, settings, auto):
    (tmp_path / "config.json").write_text(json.dumps(settings))
    asked = []

    def load(kind, *args, **kwargs):
        asked.append(kind)
        raise ValueError("that is enough")

    monkeypatch.setattr(tower_sources, "load_whole", load)
    with pytest.raises(StageCheckpointError, match="language_model: cannot load .*: that is enough"):
        read_tower("language_model", str(tmp_path))
    assert asked == [auto]
