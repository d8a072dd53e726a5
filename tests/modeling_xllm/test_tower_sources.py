# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Parts of a model by name, and whether a published head is one that ours repeats."""

import json
import logging
from types import SimpleNamespace

import pytest
import torch
from tiny import tiny_text_config
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMultimodalLM,
    BlipConfig,
    ClapConfig,
    CohereConfig,
    CohereForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    ParakeetCTCConfig,
    WhisperConfig,
    WhisperModel,
)

from xllm import ChatGLMConfig, ChatGLMForConditionalGeneration
from xllm.modeling_xllm import tower_sources
from xllm.modeling_xllm.tower_sources import (
    check_head,
    encoder_of,
    part_of,
    quiet_report,
    read_tower,
    tower_config,
    tower_of,
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


def causal(kind: str):
    torch.manual_seed(0)
    if kind == "cohere":  # its logits are scaled, which ours repeats
        sizes = tiny_text_config("llama").to_dict()
        names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
        return CohereForCausalLM(CohereConfig(**{name: sizes[name] for name in names}, logit_scale=0.5))
    return LlamaForCausalLM(tiny_text_config("llama"))


@pytest.mark.parametrize("kind", ["llama", "cohere"])
def test_heads_that_ours_repeats_and_others(kind):
    model = causal(kind)
    check_head(model, model.base_model, "here")
    assert "forward" not in vars(model.base_model)
    assert not model.lm_head._forward_pre_hooks
    if kind == "cohere":
        model.logit_scale = 0.6  # another than its config says
    else:
        forward = model.forward

        def capped(*args, **kwargs):
            output = forward(*args, **kwargs)
            output.logits = output.logits.tanh() * 9
            return output

        model.forward = capped
    with pytest.raises(StageCheckpointError, match=f"here: the head of a {kind} does more than a linear layer"):
        check_head(model, model.base_model, "here")
    assert "forward" not in vars(model.base_model)


def test_a_tower_that_cannot_be_had_is_named_with_its_revision(tmp_path):
    with pytest.raises(StageCheckpointError, match=f"^vision_tower: cannot load {tmp_path} at revision v1: "):
        read_tower("vision_tower", str(tmp_path), "v1")
    with pytest.raises(StageCheckpointError, match=f"^vision_tower: cannot load {tmp_path}: "):
        read_tower("vision_tower", str(tmp_path))


def test_of_an_encoder_and_a_decoder_the_half_that_listens_is_read(tmp_path):
    sizes = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "vocab_size": 20, "pad_token_id": 0}
    heads = {f"{half}_attention_heads": 2 for half in ("encoder", "decoder")}
    whisper = WhisperModel(WhisperConfig(**sizes, **heads))
    whisper.save_pretrained(tmp_path)
    expected = {f"model.audio_tower.{key}": value for key, value in whisper.encoder.state_dict().items()}
    torch.testing.assert_close(read_tower("audio_tower", str(tmp_path)), expected, atol=0, rtol=0)


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
