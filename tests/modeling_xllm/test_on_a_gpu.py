# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""What only a GPU can show, against the same model in float32 on the CPU: `pytest -m gpu`. What a CPU can do too runs
there as well, so that the tests themselves are tried everywhere.
"""

import pytest
import torch
from accelerate import cpu_offload
from tiny import batch_of, gradients, mixed_rows, tiny_model
from transformers import CompileConfig
from transformers.utils import is_flash_attn_2_available

from xllm import XLLMForConditionalGeneration, freeze_for_stage


GREEDY = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": -1}
ON_A_GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")]
DEVICES = ["cpu", pytest.param("cuda", marks=ON_A_GPU)]


def on(device: str, batch: dict) -> dict:
    return {name: tensor.to(device) for name, tensor in batch.items()}


def in_half(model, folder, device: str, dtype: torch.dtype):
    """The model opened again in `dtype`, there."""
    model.save_pretrained(folder)
    return XLLMForConditionalGeneration.from_pretrained(folder, dtype=dtype).eval().to(device)


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Root mean square of the difference, relative to that of what is expected."""
    return float((found.float().cpu() - expected).pow(2).mean().sqrt() / expected.pow(2).mean().sqrt())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("text", ["chatglm", "llama"])
def test_half_precision_computes_the_same_model(text, dtype, device, tmp_path):
    model, batch = tiny_model(text), batch_of([(ids + [30], media) for ids, media in mixed_rows()])
    batch["labels"] = batch["input_ids"].where(batch["input_ids"] == 30, -100)
    real = batch["attention_mask"].bool()
    half = in_half(model, tmp_path, device, dtype)
    with torch.no_grad():
        expected, found = model(**batch).logits, half(**on(device, batch)).logits
    assert error(found[real.to(device)], expected[real]) < 0.05
    for one in (model, half):
        freeze_for_stage(one, 2)  # in eval mode, without dropout
    loss, wanted = gradients(model, **batch)
    half_loss, found = gradients(half, **on(device, batch))
    torch.testing.assert_close(half_loss.float().cpu(), loss, rtol=0.02, atol=0.02)
    for name, gradient in wanted.items():
        if gradient.abs().max() > 1e-4:
            assert error(found[name], gradient) < 0.3, name


@pytest.mark.parametrize("device", DEVICES)
def test_an_offloaded_model_computes_on_the_device(device):
    model, batch = tiny_model("chatglm"), batch_of(mixed_rows())
    with torch.no_grad():
        expected, said = model(**batch).logits, model.generate(**batch, **GREEDY)
        cpu_offload(model, execution_device=device)
        found = model(**on(device, batch)).logits
    assert error(found, expected) < 1e-3
    assert model.generate(**on(device, batch), **GREEDY).tolist() == said.tolist()


@pytest.mark.parametrize("device", DEVICES[1:])  # half a minute each where a CPU compiles
@pytest.mark.parametrize("text", ["chatglm", "llama"])
def test_compiled_decoding_says_the_same(text, device):
    model, batch = tiny_model(text).to(device), on(device, batch_of(mixed_rows()))
    static = {"cache_implementation": "static", "compile_config": CompileConfig(fullgraph=True, mode=None)}
    assert model.generate(**batch, **GREEDY, **static).tolist() == model.generate(**batch, **GREEDY).tolist()


@pytest.mark.parametrize("device", DEVICES[1:])
@pytest.mark.parametrize("text", ["llama", "qwen3"])
@pytest.mark.skipif(not is_flash_attn_2_available(), reason="flash_attn is not installed")
def test_flash_attention_computes_the_same(text, device, tmp_path):
    batch = on(device, batch_of(mixed_rows()))
    model = in_half(tiny_model(text), tmp_path, device, torch.bfloat16)
    real = batch["attention_mask"].bool()
    with torch.no_grad():
        expected = model(**batch).logits[real].float().cpu()
        model.set_attn_implementation("flash_attention_2")
        assert error(model(**batch).logits[real], expected) < 0.05


@pytest.mark.parametrize("device", DEVICES[1:])
@pytest.mark.parametrize("text", ["chatglm", "llama"])
def test_a_training_forward_waits_twice(text, device):
    """As the driver counts them; tests/modeling_xllm/test_host_reads.py counts the operations that would."""
    model = tiny_model(text).to(device)
    batch = on(device, batch_of([(ids + [30], media) for ids, media in mixed_rows()]))
    batch["labels"] = batch["input_ids"].where(batch["input_ids"] == 30, -100)
    freeze_for_stage(model, 3)
    model.train()
    model(**batch)
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with pytest.warns(UserWarning, match="synchroniz") as waits:
            model(**batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len([one for one in waits if "synchroniz" in str(one.message)]) <= 2
