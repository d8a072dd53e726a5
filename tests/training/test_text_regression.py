# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""`xllm evaluate --task text`: the language model inside is the bare one, to the last bit, until it is changed."""

import json

import pytest
import torch

from xllm.assembly.opening import load_checkpoint
from xllm.cli import main
from xllm.modeling_xllm.language_models import language_model_of


@pytest.fixture
def texts(tmp_path):
    rows = [("What?", "a dog"), ("Which of many words is it?", "red"), ("Is it?", "yes it is")]
    lines = []
    for question, answer in rows:
        turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        lines.append(json.dumps({"messages": turns}) + "\n")
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(lines))
    return path


def test_a_frozen_language_model_is_the_bare_one(tiny_checkpoint, texts, tmp_path, capsys):
    model, processor = load_checkpoint(str(tiny_checkpoint))
    bare = language_model_of(model.config).causal_lm_class(model.config.text_config)
    bare.base_model.load_state_dict(model.model.language_model.state_dict())
    bare.get_output_embeddings().load_state_dict(model.get_output_embeddings().state_dict())
    bare.save_pretrained(tmp_path / "llm")
    command = ["evaluate", str(tiny_checkpoint), "--task", "text", "--data", str(texts), "--batch-size", "2"]
    assert main(command) == 1
    assert "holds its language model itself: name the bare one by --against" in capsys.readouterr().err
    assert main([*command, "--against", str(tmp_path / "llm"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["largest_difference"], found["n"]) == (0, 3)
    assert found["loss"] == found["bare_loss"] > 0

    with torch.no_grad():
        for parameter in model.model.language_model.layers[0].parameters():
            parameter.mul_(1.5)
    changed = tmp_path / "changed"
    model.save_pretrained(changed)
    processor.save_pretrained(changed)
    assert main([*command[:1], str(changed), *command[2:], "--against", str(tmp_path / "llm"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["largest_difference"] > 0
    assert found["loss"] != found["bare_loss"]


def test_rows_with_media_are_refused(tiny_checkpoint, media, tmp_path, capsys):
    content = [{"type": "image", "path": str(media / "red.png")}, {"type": "text", "text": "What?"}]
    turns = [{"role": "user", "content": content}, {"role": "assistant", "content": "red"}]
    (tmp_path / "rows.jsonl").write_text(json.dumps({"messages": turns}))
    load_checkpoint(str(tiny_checkpoint))[0].model.language_model.save_pretrained(tmp_path / "llm")
    command = ["evaluate", str(tiny_checkpoint), "--task", "text", "--data", str(tmp_path / "rows.jsonl")]
    assert main([*command, "--against", str(tmp_path / "llm")]) == 1
    assert "rows.jsonl:1: has media, which the bare language model cannot read" in capsys.readouterr().err
