# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Weight-only quantisation by torchao (int8) and bitsandbytes (4 bits), LoRA by PEFT."""

import json

import pytest
import torch
from fixtures.chatglm_helpers import ROWS, build, pad
from fixtures.chatglm_oracle import CONFIG
from peft import LoraConfig, get_peft_model
from safetensors import safe_open
from tiny import IMAGE, PIXELS, prompt, tiny_model
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, TorchAoConfig
from transformers.trainer_utils import validate_quantization_for_training

from xllm import ChatGLMConfig, ChatGLMForConditionalGeneration, XLLMForConditionalGeneration, freeze_for_stage


quantization = pytest.importorskip("torchao.quantization")
bitsandbytes = pytest.importorskip("bitsandbytes")
LINEARS = ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h")


def int8() -> TorchAoConfig:
    return TorchAoConfig(quantization.Int8WeightOnlyConfig())


def nf4() -> BitsAndBytesConfig:
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)


def plain_weight(weight: torch.Tensor) -> torch.Tensor:
    """The float weight that a quantised one stands for."""
    if hasattr(weight, "quant_state"):
        return bitsandbytes.functional.dequantize_4bit(weight.data, weight.quant_state)
    return weight.dequantize()


@pytest.mark.parametrize("scheme", [int8, nf4])
def test_a_quantised_chatglm_is_the_float_model_with_rounded_weights(tmp_path, scheme):
    sizes = {"hidden_size": 64, "inner_hidden_size": 128, "initializer_range": 0.15}
    ChatGLMForConditionalGeneration(ChatGLMConfig(**{**CONFIG, **sizes})).save_pretrained(tmp_path)
    quantised = AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=scheme(), device_map="cpu")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path)
    state = dict(plain.named_parameters())
    replaced = 0
    for name, weight in quantised.named_parameters():
        if name.split(".")[-2] not in LINEARS or not name.endswith(".weight"):
            assert torch.equal(weight, state[name]), name  # embedding, head, norms and biases stay as they are
            continue
        rounded = plain_weight(weight)
        if scheme is int8:  # steps of a 127th of the largest weight of a row
            step = state[name].abs().amax(-1, keepdim=True) / 127
            assert ((rounded - state[name]).abs() <= 0.51 * step).all(), name
        else:  # two weights a byte
            assert (weight.dtype, 2 * weight.numel()) == (torch.uint8, state[name].numel()), name
            assert (rounded - state[name]).norm() < 0.12 * state[name].norm(), name
        assert not torch.equal(rounded, state[name])
        state[name].data.copy_(rounded)
        replaced += 1
    assert replaced == 2 * len(LINEARS)
    ids, mask = pad(ROWS)
    with torch.no_grad():
        got, expected = (model(ids, attention_mask=mask).logits[mask.bool()] for model in (quantised, plain))
    tolerance = 1e-4 if scheme is int8 else 1e-2  # bitsandbytes multiplies in bfloat16 on the CPU
    torch.testing.assert_close(got, expected, atol=tolerance * expected.abs().max().item(), rtol=0)
    options = {"attention_mask": mask, "max_new_tokens": 6, "eos_token_id": None, "do_sample": False}
    assert torch.equal(quantised.generate(ids, **options), plain.generate(ids, **options))


@pytest.mark.parametrize("scheme", [int8, nf4])
def test_only_the_language_model_is_quantised_under_trained_interfaces(tmp_path, scheme):
    tiny_model().save_pretrained(tmp_path)
    model = XLLMForConditionalGeneration.from_pretrained(tmp_path, quantization_config=scheme(), device_map="cpu")
    for name, parameter in model.named_parameters():
        is_quantised = parameter.dtype == torch.uint8 or type(parameter).__name__ == "Int8Tensor"
        expected = "language_model" in name and name.split(".")[-2] in LINEARS and name.endswith(".weight")
        assert is_quantised == expected, name
    freeze_for_stage(model, 2, ["image"])
    validate_quantization_for_training(model)  # what Trainer asks
    model.train()
    ids = torch.tensor([[*prompt(5, IMAGE, IMAGE, 7), 9]])
    model(input_ids=ids, pixel_values=torch.randn(1, 3, PIXELS, PIXELS), labels=ids).loss.backward()
    for name, parameter in model.named_parameters():
        trained = name.startswith("model.interfaces.image")
        assert (parameter.grad is not None and parameter.grad.abs().sum() > 0) or not trained or "key.bias" in name, (
            name
        )
        assert parameter.requires_grad == trained, name


def test_a_stage_trained_over_a_quantised_language_model_is_saved_as_any_other(tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path / "base")
    source = {"name_or_path": "../base", "revision": None}
    model.config.towers = dict.fromkeys(("vision_tower", "audio_tower", "language_model"), source)
    model.save_pretrained(tmp_path / "stage")
    load = XLLMForConditionalGeneration.from_pretrained
    quantised = load(tmp_path / "stage", quantization_config=int8(), device_map="cpu")
    weight = quantised.model.language_model.layers[0].attention.query_key_value.weight
    assert type(weight).__name__ == "Int8Tensor"
    with torch.no_grad():
        quantised.model.interfaces["image"].adapter.bias += 1.0
    quantised.save_pretrained(tmp_path / "next")
    assert "quantization_config" not in json.loads((tmp_path / "next" / "config.json").read_text(encoding="utf-8"))
    with safe_open(tmp_path / "next" / "model.safetensors", framework="pt") as file:
        assert {key.split(".")[1] for key in file.keys()} == {"interfaces"}  # noqa: SIM118
    again = load(tmp_path / "next").state_dict()
    for name, tensor in model.state_dict().items():
        moved = 1.0 if name == "model.interfaces.image.adapter.bias" else 0.0
        assert torch.equal(again[name], tensor + moved), name
    assert quantised.config.quantization_config is not None  # the model in memory is what it was


def test_exceptions_of_the_user_are_kept_and_the_interfaces_always_spared(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    scheme = TorchAoConfig(quantization.Int8WeightOnlyConfig(), modules_to_not_convert=["lm_head"])
    model = XLLMForConditionalGeneration.from_pretrained(tmp_path, quantization_config=scheme, device_map="cpu")
    quantised = {name for name, parameter in model.named_parameters() if type(parameter).__name__ == "Int8Tensor"}
    assert any("vision_tower" in name for name in quantised)
    assert not any("interfaces" in name for name in quantised)
    assert scheme.modules_to_not_convert == ["lm_head"]


# ---- LoRA -----------------------------------------------------------------------------------------------------------


def test_merged_lora_equals_unmerged():
    ids, mask = pad(ROWS)
    adapted = get_peft_model(
        build(), LoraConfig(task_type="CAUSAL_LM", target_modules=["query_key_value"], r=4, lora_alpha=8)
    ).eval()
    trained = [name for name, parameter in adapted.named_parameters() if parameter.requires_grad]
    assert len(trained) == 2 * CONFIG["num_layers"]
    assert all("attention.query_key_value.lora_" in name for name in trained)
    adapted(input_ids=ids, attention_mask=mask).logits.square().mean().backward()
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                assert parameter.grad.abs().sum() > 0, name
                parameter.normal_(std=0.3)
        unmerged = adapted(input_ids=ids, attention_mask=mask).logits[mask.bool()]
        options = {"attention_mask": mask, "max_new_tokens": 6, "eos_token_id": None, "do_sample": False}
        answers = adapted.generate(input_ids=ids, **options)
        merged = adapted.merge_and_unload()
        torch.testing.assert_close(merged(ids, attention_mask=mask).logits[mask.bool()], unmerged, atol=2e-5, rtol=0)
        assert (unmerged - build()(ids, attention_mask=mask).logits[mask.bool()]).abs().max() > 0.1
    assert torch.equal(merged.generate(ids, **options), answers)


def test_lora_over_a_quantised_chatglm_gets_gradients(tmp_path):
    build().save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=int8(), device_map="cpu")
    adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", target_modules=["query_key_value"]))
    ids, mask = pad(ROWS)
    adapted(input_ids=ids, attention_mask=mask).logits.square().mean().backward()
    gradients = {name: parameter.grad for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    assert len(gradients) == 4
    assert all(gradient.abs().sum() > 0 for name, gradient in gradients.items() if "lora_B" in name)
