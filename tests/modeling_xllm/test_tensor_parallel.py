# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""ChatGLM cut over two processes, alone and inside an X-LLM, against the whole."""

from pathlib import Path

import pytest
import torch
from process_runs import run_warm
from tiny import TEXT, batch_of, left_pad, mixed_rows, prompt, tiny_model, tiny_text_config

from xllm import ChatGLMForConditionalGeneration


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["chatglm", "xllm"])
def test_two_ranks_compute_what_one_does(tmp_path, kind):
    if kind == "xllm":
        model, inputs = tiny_model("chatglm"), batch_of(mixed_rows())
    else:
        model = ChatGLMForConditionalGeneration(tiny_text_config("chatglm")).eval()
        inputs = left_pad([prompt(TEXT), prompt(TEXT, 20, 21)])
    model.save_pretrained(tmp_path)
    torch.save(inputs, tmp_path / "inputs.pt")
    with torch.no_grad():
        expected = model(**inputs).logits
    said = model.generate(**inputs, max_new_tokens=4, do_sample=False, eos_token_id=None)
    script = Path(__file__).with_name("tensor_parallel_rank.py")
    run_warm(script, tmp_path, tmp_path)
    for rank in range(2):
        got = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert got["rows"] == 3 * 32 // 2  # half of the heads
        torch.testing.assert_close(got["logits"], expected, atol=1e-5, rtol=1e-4)
        assert torch.equal(got["said"], said)
