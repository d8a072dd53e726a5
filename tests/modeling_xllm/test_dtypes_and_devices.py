# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Half-precision towers and language model under fp32 interfaces, automatic types, and parts kept on disk."""

import pytest
import torch
from tiny import (
    assert_equal_whatever_is_made_by_default,
    batch_of,
    gradients,
    mixed_rows,
    tiny_config,
    tiny_model,
)
from transformers import LlamaForCausalLM, ParakeetEncoder
from transformers.models.blip_2.modeling_blip_2 import Blip2VisionModel

from xllm import XLLMForConditionalGeneration, freeze_for_stage


GREEDY = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": -1}
FROZEN = ("model.vision_tower.", "model.audio_tower.", "model.language_model.", "lm_head.")


@pytest.fixture(params=["chatglm", "llama"])
def saved(request, tmp_path):
    """Folder of an fp32 model, and its logits for a mixed batch."""
    model = tiny_model(request.param)
    model.save_pretrained(tmp_path / "model")
    return tmp_path / "model", model(**batch_of(mixed_rows())).logits


def dtypes_of(model) -> dict[str, set]:
    parts = {"interfaces": set(), "frozen": set()}
    for name, parameter in model.named_parameters():
        parts["frozen" if name.startswith(FROZEN) else "interfaces"].add(parameter.dtype)
    return parts


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_interfaces_stay_fp32_over_a_half_precision_model(saved, tmp_path, dtype):
    folder, logits = saved
    model = XLLMForConditionalGeneration.from_pretrained(folder, dtype=dtype).eval()
    assert dtypes_of(model) == {"interfaces": {torch.float32}, "frozen": {dtype}}
    inputs = batch_of(mixed_rows())
    mask = inputs["attention_mask"].bool()
    half = model(**inputs).logits
    assert half.dtype == dtype
    error = (half.float() - logits)[mask].pow(2).mean().sqrt() / logits[mask].std()
    assert error < 0.05  # bf16 keeps 8 bits: 0.4 % per operation
    answer = model.generate(**inputs, **GREEDY)
    model.save_pretrained(tmp_path / "half")
    again = XLLMForConditionalGeneration.from_pretrained(tmp_path / "half", dtype="auto").eval()
    assert again.dtype == dtype
    state = again.state_dict()
    for name, tensor in model.state_dict().items():
        assert state[name].dtype == tensor.dtype
        assert torch.equal(state[name], tensor)
    assert again.generate(**inputs, **GREEDY).tolist() == answer.tolist()


def test_fp32_interfaces_are_trained_through_a_bf16_language_model(saved):
    folder, _ = saved
    model = XLLMForConditionalGeneration.from_pretrained(folder, dtype=torch.bfloat16)
    names = freeze_for_stage(model, "align")
    model.train()
    inputs = batch_of(mixed_rows())
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05)
    losses = []
    for _ in range(8):
        loss = model(**inputs, labels=inputs["input_ids"]).loss
        loss.backward()
        losses.append(loss.item())
        grads = {name: p.grad.dtype for name, p in model.named_parameters() if p.grad is not None}
        assert set(grads) <= set(names)
        assert set(grads.values()) == {torch.float32}
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_new_interfaces_over_half_precision_towers_are_fp32_and_stay_finite(tmp_path, dtype):
    config = tiny_config("llama")
    parts = {
        "llm": LlamaForCausalLM(config.text_config),
        "vision": Blip2VisionModel(config.vision_config),
        "audio": ParakeetEncoder(config.audio_config),
    }
    for name, part in parts.items():
        part.to(dtype).save_pretrained(tmp_path / name)
    model = XLLMForConditionalGeneration.from_towers(
        str(tmp_path / "llm"),
        encoders={name: str(tmp_path / name) for name in ("vision", "audio")},
        modalities=config.modalities,
    )
    assert dtypes_of(model) == {"interfaces": {torch.float32}, "frozen": {dtype}}
    queries = model.model.interfaces["image"].converter.query_tokens
    assert not torch.equal(queries, queries.to(dtype).float())  # nor were they rounded
    freeze_for_stage(model, "align")
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    inputs = batch_of(mixed_rows())
    for _ in range(3):
        model(**inputs, labels=inputs["input_ids"]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_autocast_computes_what_bf16_does(saved):
    folder, logits = saved
    model = XLLMForConditionalGeneration.from_pretrained(folder).eval()
    inputs = batch_of(mixed_rows())
    freeze_for_stage(model, "align")
    with torch.autocast("cpu", torch.bfloat16):
        outputs = model(**inputs, labels=inputs["input_ids"])
    outputs.loss.backward()
    features = outputs.modality_features
    mask = model.model.place_features(inputs["input_ids"], inputs["attention_mask"], features)[1].bool()
    error = (outputs.logits.float() - logits)[mask].pow(2).mean().sqrt() / logits[mask].std()
    assert 0 < error < 0.05


@pytest.mark.parametrize("on_disk", ["model.language_model", "model.vision_tower", "model.interfaces"])
def test_a_part_kept_on_disk_is_read_when_needed(saved, tmp_path, on_disk):
    folder, logits = saved
    parts = ["model.vision_tower", "model.audio_tower", "model.interfaces", "model.language_model", "lm_head"]
    device_map = {part: "disk" if part == on_disk else "cpu" for part in parts}
    model = XLLMForConditionalGeneration.from_pretrained(
        folder, device_map=device_map, offload_folder=tmp_path / "offload"
    ).eval()
    offloaded = [name for name, parameter in model.named_parameters() if parameter.device.type == "meta"]
    assert offloaded
    assert all(name.startswith(on_disk) for name in offloaded)
    inputs = batch_of(mixed_rows())
    torch.testing.assert_close(model(**inputs).logits, logits, atol=1e-5, rtol=1e-4)
    output = model.generate(**inputs, **GREEDY)
    reference = XLLMForConditionalGeneration.from_pretrained(folder, device_map="auto").eval()
    assert output.tolist() == reference.generate(**inputs, **GREEDY).tolist()


@pytest.mark.parametrize("share", [0.3, 0.7])
def test_what_does_not_fit_goes_to_the_disk_wherever_it_stands(saved, tmp_path, share):
    """`device_map="auto"` cuts between any two modules, also inside an interface that another one shares."""
    folder, logits = saved
    room = sum(tensor.numel() * tensor.element_size() for tensor in tiny_model().parameters())
    model = XLLMForConditionalGeneration.from_pretrained(
        folder, device_map="auto", max_memory={"cpu": int(share * room)}, offload_folder=tmp_path / "offload"
    ).eval()
    on_disk = {name.split(".")[1] for name, tensor in model.named_parameters() if tensor.device.type == "meta"}
    assert {"interfaces", "language_model"} <= on_disk if share < 0.5 else on_disk
    inputs = batch_of(mixed_rows())
    torch.testing.assert_close(model(**inputs).logits, logits, atol=1e-5, rtol=1e-4)
    whole = XLLMForConditionalGeneration.from_pretrained(folder).eval()
    assert model.generate(**inputs, **GREEDY).tolist() == whole.generate(**inputs, **GREEDY).tolist()


@pytest.mark.parametrize("text", ["chatglm", "llama"])
def test_a_process_that_makes_other_tensors_by_default_computes_the_same(text):
    """What a step makes has the device and type of what it works on, and numbers for the host are made on the CPU."""
    model, batch = tiny_model(text), batch_of(mixed_rows())
    freeze_for_stage(model, 2)

    def numbers() -> dict:
        model.eval()
        outputs = model(**batch, labels=batch["input_ids"], use_cache=True)
        found = {"loss": outputs.loss, "logits": outputs.logits, "answer": model.generate(**batch, **GREEDY)}
        found["training"], grads = gradients(model.train(), **batch, labels=batch["input_ids"])
        return {**found, **grads}

    assert_equal_whatever_is_made_by_default(numbers)
