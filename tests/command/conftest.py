# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""What the tests of commands share."""

import pytest
import torch
from processor_parts import word_tokenizer
from tiny import tiny_text_config
from transformers import LlamaForCausalLM

from xllm.cli import main


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> str:
    """A checkpoint as `xllm init` makes it; not to be written to."""
    folder = tmp_path_factory.mktemp("tiny") / "model"
    assert main(["init", str(folder), "--preset", "tiny"]) == 0
    return str(folder)


@pytest.fixture(scope="session")
def llm(tmp_path_factory):
    """A folder with a tiny Llama and a word-level tokenizer; not to be written to."""
    folder = tmp_path_factory.mktemp("sources") / "llm"
    torch.manual_seed(2)
    LlamaForCausalLM(tiny_text_config("llama")).save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    return folder
