# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""`import xllm` makes the classes known to transformers, in any process, and is quick."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from xllm import ChatGLMTokenizer
from xllm.assembly.tiny import build_tiny


OPEN = """
import sys
assert "torch" not in sys.modules
from transformers import AUTO
print(AUTO.from_pretrained(sys.argv[1]).__class__.__name__)
"""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return build_tiny(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory, tiny):
    folder = tmp_path_factory.mktemp("tokenizer")
    ChatGLMTokenizer.from_pretrained(tiny).save_pretrained(folder)
    assert not (folder / "config.json").exists()
    return folder


def run(arguments: list[str], folder: Path) -> str:
    root = str(Path(__file__).resolve().parents[1])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([root, str(folder)])}
    result = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("auto", "expected"),
    [
        ("AutoModelForMultimodalLM", "XLLMForConditionalGeneration"),
        ("AutoProcessor", "XLLMProcessor"),
        ("AutoFeatureExtractor", "XLLMFeatureExtractor"),
        ("AutoVideoProcessor", "XLLMVideoProcessor"),
        ("AutoTokenizer", "ChatGLMTokenizer"),
    ],
)
def test_a_module_of_a_package_that_imports_xllm(tiny, tokenizer_folder, tmp_path, auto, expected):
    package = tmp_path / "mypkg"
    package.mkdir()
    (package / "__init__.py").write_text("import xllm\n")
    (package / "run.py").write_text(OPEN.replace("AUTO", auto))
    folder = tokenizer_folder if auto == "AutoTokenizer" else tiny
    assert run(["-m", "mypkg.run", str(folder)], tmp_path) == expected


@pytest.mark.slow
@pytest.mark.parametrize("module", ["assembly.module_copies", "assembly.opening", "hub_cards.remote_code"])
def test_parts_that_copy_modules_can_be_imported_first(tmp_path, module):
    assert run(["-c", f"import xllm.{module}; print('imported')"], tmp_path).endswith("imported")


@pytest.mark.slow
def test_a_part_of_the_package_and_transformers_before_it(tmp_path):
    code = """
from transformers import AutoModelForCausalLM
from xllm.modeling_xllm.configuration_chatglm import ChatGLMConfig
config = ChatGLMConfig(hidden_size=8, num_attention_heads=2, num_hidden_layers=1, intermediate_size=8)
print(type(AutoModelForCausalLM.from_config(config)).__name__)
"""
    assert run(["-c", code], tmp_path) == "ChatGLMForConditionalGeneration"


def test_our_tokenizer_opens_a_published_chatglm_whatever_code_lies_beside_it(tokenizer_folder, tmp_path):
    folder = shutil.copytree(tokenizer_folder, tmp_path / "chatglm-6b")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["auto_map"] = {"AutoTokenizer": ["tokenization_chatglm.ChatGLMTokenizer", None]}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "tokenization_chatglm.py").write_text("raise ImportError('for transformers 4')\n")
    published = {"model_type": "chatglm", "vocab_size": 130528, "num_layers": 1}
    published["auto_map"] = {"AutoConfig": "configuration_chatglm.ChatGLMConfig"}
    (folder / "config.json").write_text(json.dumps(published))
    for trust in (True, None):
        assert type(AutoTokenizer.from_pretrained(folder, trust_remote_code=trust)) is ChatGLMTokenizer
    (folder / "tokenizer_config.json").write_text("{}")
    assert type(AutoTokenizer.from_pretrained(folder)) is ChatGLMTokenizer
