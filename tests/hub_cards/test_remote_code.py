# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""A checkpoint with its code: opened where this package is not installed."""

import ast
import json
import shutil

import numpy as np
import pytest
from transformers import LlamaConfig

from xllm import XLLMConfig, XLLMForConditionalGeneration
from xllm.assembly.opening import load_checkpoint
from xllm.hub_cards.publish import publish
from xllm.hub_cards.remote_code import export_code


CHAT = """
import importlib.util, json, sys
assert importlib.util.find_spec("xllm") is None
import numpy as np
from transformers import AutoConfig, AutoFeatureExtractor, AutoModel, AutoModelForMultimodalLM, AutoProcessor
from transformers import AutoTokenizer, AutoVideoProcessor

source = {"trust_remote_code": True, "revision": "v1"}
for auto in (AutoConfig, AutoTokenizer, AutoFeatureExtractor, AutoVideoProcessor):
    auto.from_pretrained("user/tiny", **source)
processor = AutoProcessor.from_pretrained("user/tiny", **source)
messages = json.loads(sys.argv[1])
for part in messages[0]["content"]:
    if part["type"] != "text":
        part[part["type"]] = np.load(part[part["type"]])
inputs = processor.apply_chat_template(
    messages, tokenize=True, return_dict=True, add_generation_prompt=True, return_tensors="pt"
)
answers = []
hub = AutoModel.from_pretrained("user/tiny", **source)
local = AutoModelForMultimodalLM.from_pretrained(sys.argv[2], trust_remote_code=True)
for model in (hub, local):
    answers.append(model.generate(**inputs, max_new_tokens=6, do_sample=False).tolist())
hub.save_pretrained("again")
print(json.dumps(answers))
"""


OPEN = """
import importlib.util, json, sys
assert importlib.util.find_spec("xllm") is None
import torch
from transformers import AutoConfig, AutoModel, AutoModelForMultimodalLM, AutoProcessor, AutoTokenizer

auto = {"AutoModel": AutoModel, "AutoModelForMultimodalLM": AutoModelForMultimodalLM}[sys.argv[2]]
trust = {"trust_remote_code": True}
config = AutoConfig.from_pretrained(sys.argv[1], **trust)
assert type(AutoTokenizer.from_pretrained(sys.argv[1], **trust)).__name__ == "ChatGLMTokenizer"
processor = AutoProcessor.from_pretrained(sys.argv[1], **trust)
model = auto.from_pretrained(sys.argv[1], **trust)
assert type(config).__name__ == type(model.config).__name__ == "XLLMConfig"
messages = [{"role": "user", "content": [{"type": "text", "text": "What is this?"}]}]
inputs = processor.apply_chat_template(
    messages, tokenize=True, return_dict=True, add_generation_prompt=True, return_tensors="pt"
)
pixels = torch.arange(3 * 32 * 32).reshape(1, 3, 32, 32) / 3072
ids = torch.tensor([[config.image_token_id] * 4 + inputs["input_ids"][0].tolist()])

def answer():
    with torch.no_grad():
        return model.eval()(input_ids=ids, pixel_values=pixels).logits[0, -1].tolist()
"""
TUNE = (
    OPEN
    + """
before = answer()
model.train()
optimizer = torch.optim.SGD([p for n, p in model.named_parameters() if "interfaces" in n], lr=0.5)
model(input_ids=ids, pixel_values=pixels, labels=ids).loss.backward()
optimizer.step()
after = answer()
assert before != after
model.save_pretrained("tuned")
processor.save_pretrained("tuned")
if len(sys.argv) > 3:
    model.push_to_hub(sys.argv[3])
    processor.push_to_hub(sys.argv[3])
print(json.dumps(after))
"""
)
ANSWER = OPEN + "print(json.dumps(answer()))"


@pytest.fixture
def llama_folder(tiny_folder, tmp_path):
    """The tiny preset over another language model."""
    folder = shutil.copytree(tiny_folder, tmp_path / "llama")
    config = XLLMConfig.from_pretrained(folder)
    size = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    config.text_config = LlamaConfig(vocab_size=config.text_config.vocab_size, **size)
    XLLMForConditionalGeneration(config).save_pretrained(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["tiny_folder", "llama_folder"])
def test_a_model_is_tuned_saved_and_opened_again_without_the_package(request, bare, tmp_path, kind):
    folder = request.getfixturevalue(kind)
    local = shutil.copytree(folder, tmp_path / "local")
    export_code(local)
    publish(folder, "user/tiny", tag="v1")
    for source, auto, *target in (
        ("user/tiny", "AutoModelForMultimodalLM", "user/tuned"),
        (str(local), "AutoModel"),
        (str(tmp_path / "tuned"), "AutoModel"),  # once more, what was saved
    ):
        after = bare(TUNE, source, auto, *target)
        for name in (str(tmp_path / "tuned"), *target):
            assert bare(ANSWER, name, "AutoModel") == after
    assert bare(ANSWER, str(tmp_path / "tuned"), "AutoModelForMultimodalLM") == after
    model = load_checkpoint(str(tmp_path / "tuned"))[0]  # with the package too
    assert type(model) is XLLMForConditionalGeneration


def test_the_code_is_flat_and_complete(tiny_folder, tmp_path):
    folder = shutil.copytree(tiny_folder, tmp_path / "repo")
    names = export_code(folder)
    assert sorted(names) == sorted(path.name for path in folder.glob("*.py"))
    assert export_code(folder) == names, "again, over what is there"
    modules = {path.stem: ast.parse(path.read_text(encoding="utf-8")) for path in folder.glob("*.py")}
    for tree in modules.values():
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.level:
                assert node.module in modules
    maps = [json.loads((folder / name).read_text())["auto_map"] for name in ("config.json", "tokenizer_config.json")]
    processor = json.loads((folder / "processor_config.json").read_text())
    maps += [
        processor["auto_map"],
        processor["feature_extractor"]["auto_map"],
        processor["video_processor"]["auto_map"],
    ]
    for target in (target for entry in maps for target in entry.values()):
        module, name = (target[0] if isinstance(target, list) else target).split(".")
        bound = {getattr(node, "name", None) for node in modules[module].body}
        bound |= {alias.name for node in modules[module].body for alias in getattr(node, "names", ())}
        assert name in bound
    assert "AutoModelForMultimodalLM" in maps[0]


@pytest.mark.parametrize(
    ("kind", "target"),
    [
        ("XLLMCIFFeatureExtractor", "feature_extraction_xllm.XLLMCIFFeatureExtractor"),
        ("WhisperFeatureExtractor", None),  # transformers has it
    ],
)
def test_the_extractor_is_named_by_its_class(tiny_folder, tmp_path, kind, target):
    folder = shutil.copytree(tiny_folder, tmp_path / "repo")
    path = folder / "processor_config.json"
    settings = json.loads(path.read_text())
    settings["feature_extractor"]["feature_extractor_type"] = kind
    path.write_text(json.dumps(settings))
    names = export_code(folder)
    auto_map = json.loads(path.read_text())["feature_extractor"].get("auto_map", {})
    assert auto_map.get("AutoFeatureExtractor") == target
    assert target is None or f"{target.split('.')[0]}.py" in names


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ValueError, match="model_type 'llama', expected 'xllm'"):
        export_code(tmp_path)


@pytest.mark.slow
def test_a_machine_without_the_package_chats(bare, tiny_folder, interfaces_folder, tmp_path):
    publish(interfaces_folder, "user/tiny", tag="v1")  # its towers are in another repository
    export_code(shutil.copytree(tiny_folder, tmp_path / "local"))
    rng = np.random.default_rng(0)
    np.save(tmp_path / "image.npy", rng.integers(0, 255, (40, 30, 3), dtype=np.uint8))
    np.save(tmp_path / "audio.npy", np.sin(np.arange(16000) / 20).astype(np.float32))
    media = [{"type": kind, kind: str(tmp_path / f"{kind}.npy")} for kind in ("image", "audio")]
    messages = [{"role": "user", "content": [*media, {"type": "text", "text": "What is this?"}]}]

    result = bare(CHAT, json.dumps(messages), str(tmp_path / "local"))
    for part in messages[0]["content"][:2]:
        part[part["type"]] = np.load(part[part["type"]])
    model, processor = load_checkpoint(str(tiny_folder))
    inputs = processor.apply_chat_template(
        messages, tokenize=True, return_dict=True, add_generation_prompt=True, return_tensors="pt"
    )
    expected = model.generate(**inputs, max_new_tokens=6, do_sample=False).tolist()
    assert result == [expected, expected]
