# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""PEFT's LoRA and DoRA on the language model and on interfaces: train, save, load, merge, beside stages."""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tiny import batch_of, mixed_rows, tiny_model

from xllm import XLLMForConditionalGeneration, add_lora, freeze_for_stage
from xllm.training.saving.lineage import FreezeReceipt


LANGUAGE_MODEL = r"model\.language_model\..*\.(query_key_value|q_proj|v_proj)"
INTERFACES = r"model\.interfaces\.(.*\.(query|value|dense)|\w+\.adapter)"
GREEDY = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": -1}


def batch() -> dict[str, torch.Tensor]:
    inputs = batch_of(mixed_rows())
    return {**inputs, "labels": inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)}


def lora(target_modules: str, use_dora: bool, **kwargs) -> LoraConfig:
    # B starts at random values, or the first step would not tell a trained adapter from none.
    return LoraConfig(
        r=2, lora_alpha=4, target_modules=target_modules, use_dora=use_dora, init_lora_weights=False, **kwargs
    )


def train_a_step(model) -> list[str]:
    """One step of SGD; returns the names of the tensors that moved."""
    model.train()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model(**batch()).loss.backward()
    optimizer.step()
    model.eval()
    return [name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])]


@pytest.mark.parametrize("use_dora", [False, True], ids=["lora", "dora"])
@pytest.mark.parametrize("target", [LANGUAGE_MODEL, INTERFACES], ids=["language_model", "interfaces"])
@pytest.mark.parametrize("kind", ["chatglm", "llama"])
def test_an_adapter_is_trained_saved_loaded_and_merged(tmp_path, kind, target, use_dora):
    model = get_peft_model(tiny_model(kind), lora(target, use_dora))
    moved = train_a_step(model)
    part = "language_model" if target == LANGUAGE_MODEL else "interfaces"
    assert moved
    assert all(f".{part}." in name and ".lora_" in name for name in moved)
    inputs = batch_of(mixed_rows())
    logits, answer = model(**inputs).logits, model.generate(**inputs, **GREEDY)

    model.save_pretrained(tmp_path / "adapter")
    loaded = PeftModel.from_pretrained(tiny_model(kind), tmp_path / "adapter")
    torch.testing.assert_close(loaded(**inputs).logits, logits, atol=0, rtol=0)

    merged = loaded.merge_and_unload()
    assert type(merged) is XLLMForConditionalGeneration
    torch.testing.assert_close(merged(**inputs).logits, logits, atol=1e-4, rtol=1e-4)
    assert merged.generate(**inputs, **GREEDY).tolist() == answer.tolist()
    merged.save_pretrained(tmp_path / "merged")
    again = XLLMForConditionalGeneration.from_pretrained(tmp_path / "merged").state_dict()
    assert again.keys() == merged.state_dict().keys()
    assert all(torch.equal(tensor, again[name]) for name, tensor in merged.state_dict().items())


def test_an_interface_is_saved_whole_beside_the_adapter_of_the_language_model(tmp_path):
    config = lora(LANGUAGE_MODEL, False, modules_to_save=["interfaces.image"])
    model = get_peft_model(tiny_model(), config)
    receipt = FreezeReceipt(model)
    moved = train_a_step(model)
    assert {name.split(".")[3] for name in moved} == {"language_model", "interfaces"}
    assert any("interfaces.image" in name and name.endswith("query_tokens") for name in moved)
    assert not any("interfaces.speech" in name or "interfaces.video" in name for name in moved)
    receipt.check()
    inputs = batch_of(mixed_rows())
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny_model(), tmp_path)
    torch.testing.assert_close(loaded(**inputs).logits, model(**inputs).logits, atol=0, rtol=0)
    merged = loaded.merge_and_unload()
    torch.testing.assert_close(merged(**inputs).logits, model(**inputs).logits, atol=1e-4, rtol=1e-4)


def test_a_merged_language_model_is_stored_once_its_source_is_not_named_any_more(tmp_path):
    base = tiny_model()
    base.save_pretrained(tmp_path / "base")
    base.config.towers = {
        part: {"name_or_path": "../base", "revision": None} for part in ("vision_tower", "language_model")
    }
    base.save_pretrained(tmp_path / "stage")
    stage = XLLMForConditionalGeneration.from_pretrained(tmp_path / "stage", dtype="auto")
    merged = get_peft_model(stage, lora(LANGUAGE_MODEL, False)).merge_and_unload()
    merged.config.towers.pop("language_model")
    merged.save_pretrained(tmp_path / "merged")
    again = XLLMForConditionalGeneration.from_pretrained(tmp_path / "merged").state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in merged.state_dict().items())
    moved = [name for name, tensor in base.state_dict().items() if not torch.equal(tensor, again[name])]
    assert moved
    assert all(".language_model." in name for name in moved)


def test_a_stage_trains_its_parts_and_the_adapters():
    model = tiny_model()
    adapter = add_lora(model, r=2, alpha=4)
    names = freeze_for_stage(model, "align", "speech")
    assert set(adapter) < set(names)
    assert all(name in adapter or name.startswith("model.interfaces.speech.") for name in names)
    moved = train_a_step(model)
    assert set(moved) <= set(names)
    assert any("interfaces.speech.adapter" in name for name in moved)
    assert any("language_model" in name and ".lora_B" in name for name in moved)


def test_a_stage_leaves_the_weights_under_an_interface_s_adapter_frozen():
    model = get_peft_model(tiny_model(), lora(INTERFACES, True))
    names = freeze_for_stage(model.get_base_model(), "integrate", "image")
    assert not any(".base_layer." in name for name in names)
    assert any("interfaces.image.adapter.lora_" in name for name in names)
    assert not any(".base_layer." in name for name in train_a_step(model))


def test_an_adapter_on_the_towers_is_trained_too():
    model = get_peft_model(tiny_model(), lora(r"model\.vision_tower\..*\.qkv", False))
    assert all(".vision_tower." in name and ".lora_" in name for name in train_a_step(model))
