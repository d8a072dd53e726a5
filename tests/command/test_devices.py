# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""`--device` and `--dtype` of the commands that answer: where the model goes, in which precision."""

import pytest
import torch

from xllm.assembly import opening
from xllm.assembly.opening import default_device, load_checkpoint
from xllm.cli import main
from xllm.commands.chat import Chat


ROW = '{"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]}'


@pytest.fixture
def half(folder, tmp_path):
    """The tiny preset with its weights in half precision."""
    model, processor = load_checkpoint(folder)
    model.to(torch.float16).save_pretrained(tmp_path / "half")
    processor.save_pretrained(tmp_path / "half")
    return str(tmp_path / "half")


@pytest.mark.parametrize(
    ("options", "dtype"),
    [
        ([], torch.float32),
        (["--device", "cpu"], torch.float32),
        (["--dtype", "auto"], torch.float16),
        (["--dtype", "bfloat16"], torch.bfloat16),
    ],
)
def test_on_the_cpu_a_model_is_float32_unless_told(half, options, dtype, monkeypatch):
    seen = []
    monkeypatch.setattr(opening.__name__ + ".default_device", lambda: "cpu")
    monkeypatch.setattr(Chat, "ask", lambda chat, *_: seen.append(chat.model) or "")
    assert main(["chat", half, "?", *options]) == 0
    (model,) = seen
    assert model.lm_head.weight.dtype == dtype
    assert model.device.type == "cpu"
    assert {p.dtype for p in model.model.interfaces.parameters()} == {torch.float32}


def test_an_accelerator_is_taken_if_there_is_one(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: None)
    assert default_device() == "cpu"
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: torch.device("cuda"))
    assert default_device() == "cuda"


@pytest.mark.parametrize("command", ["chat", "evaluate"])
@pytest.mark.parametrize("device", ["cuda:77", "gpu"])
def test_a_device_that_is_not_here_is_one_line(folder, tmp_path, capsys, command, device):
    (tmp_path / "a.jsonl").write_text(
        '{"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]}'
    )
    own = {"chat": ["?"], "evaluate": ["--task", "qa", "--data", str(tmp_path / "a.jsonl")]}[command]
    assert main([command, folder, *own, "--device", device]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"xllm {command}: --device is {device!r}, which is no device here: ")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_answers_of_a_gpu(folder, tmp_path, capsys, dtype):
    assert main(["chat", folder, "What is it?", "--max-new-tokens", "4", "--device", "cuda", "--dtype", dtype]) == 0
    (tmp_path / "a.jsonl").write_text(
        '{"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]}'
    )
    data = ["--task", "qa", "--data", str(tmp_path / "a.jsonl"), "--max-new-tokens", "2"]
    assert main(["evaluate", folder, *data, "--dtype", dtype]) == 0
    assert capsys.readouterr().out.rstrip().endswith("n = 1")
