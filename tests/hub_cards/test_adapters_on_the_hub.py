# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""An adapter of the language model travels with the checkpoint, and opens with the code beside it."""

import pytest
import torch

from xllm import add_lora
from xllm.assembly.opening import load_checkpoint
from xllm.hub_cards.publish import publish


OPEN = """
import json, sys
import torch
from transformers import AutoModel

model = AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True).eval()
text = model.config.text_config
ids = torch.tensor([[11, 12, text.gmask_token_id, text.bos_token_id]])
with torch.no_grad():
    print(json.dumps(model(input_ids=ids).logits[0, -1].tolist()))
"""


@pytest.fixture
def adapted_folder(tiny_folder, tmp_path):
    """The tiny preset with an adapter that changes its answers, and a stray beside it."""
    model, processor = load_checkpoint(str(tiny_folder))
    names = add_lora(model, r=2)
    with torch.no_grad():
        for name in names:
            model.get_parameter(name).normal_(std=0.2)
    model.save_pretrained(tmp_path / "adapted")
    processor.save_pretrained(tmp_path / "adapted")
    (tmp_path / "adapted" / "adapter" / "token.txt").write_text("secret")
    return tmp_path / "adapted"


def test_it_is_pushed_with_the_interfaces(hub, adapted_folder, capsys):
    publish(adapted_folder, "user/adapted", tag="v1")
    repo = hub.repos["user/adapted"]
    files = repo.commits[repo.resolve("v1")]
    assert {name for name in files if name.startswith("adapter/")} == {
        "adapter/adapter_config.json", "adapter/adapter_model.safetensors",
    }  # fmt: skip
    here, there = (load_checkpoint(source)[0].state_dict() for source in (str(adapted_folder), "user/adapted@v1"))
    assert any(".lora_A." in name for name in there)
    assert here.keys() == there.keys()
    assert all(torch.equal(here[name], there[name]) for name in here)


@pytest.mark.slow
def test_it_opens_without_the_package(hub, bare, adapted_folder, tiny_folder, tmp_path):
    publish(adapted_folder, "user/adapted", tag="v1")
    publish(tiny_folder, "user/plain", tag="v1")
    answers = [bare(OPEN, name) for name in ("user/adapted", "user/plain")]
    assert answers[0] != answers[1]
