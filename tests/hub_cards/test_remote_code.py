# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""A checkpoint with its code: opened where this package is not installed."""

import ast
import json
import os
import shutil
import site
import subprocess
import sys
import venv

import numpy as np
import pytest

from xllm.assembly.opening import load_checkpoint
from xllm.hub_cards.publish import publish
from xllm.hub_cards.remote_code import code_files, export_code


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
        ("XLLMCIFFeatureExtractor", "feature_extraction_cif.XLLMCIFFeatureExtractor"),
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
    assert code_files()[0].is_file()


@pytest.mark.slow
def test_a_machine_without_the_package_chats(hub, tiny_folder, interfaces_folder, tmp_path):
    publish(interfaces_folder, "user/tiny", tag="v1")  # its towers are in another repository
    export_code(shutil.copytree(tiny_folder, tmp_path / "local"))
    rng = np.random.default_rng(0)
    np.save(tmp_path / "image.npy", rng.integers(0, 255, (40, 30, 3), dtype=np.uint8))
    np.save(tmp_path / "audio.npy", np.sin(np.arange(16000) / 20).astype(np.float32))
    media = [{"type": kind, kind: str(tmp_path / f"{kind}.npy")} for kind in ("image", "audio")]
    messages = [{"role": "user", "content": [*media, {"type": "text", "text": "What is this?"}]}]

    # A venv with the packages of this one but not what is installed in editable mode here: files named in a .pth count,
    # .pth files in those folders do not.
    venv.create(tmp_path / "bare", symlinks=True)
    python = tmp_path / "bare" / "bin" / "python"
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    packages = [path for path in {*sys.path, *site.getsitepackages()} if path.endswith("site-packages")]
    shared = tmp_path / "bare" / "lib" / version / "site-packages" / "shared.pth"
    shared.write_text("\n".join(packages) + "\n")
    settings = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
    environment = {name: value for name, value in os.environ.items() if name not in ("HF_HUB_OFFLINE", "PYTHONPATH")}
    found = subprocess.run(
        [python, "-P", "-c", "import importlib.util; print(importlib.util.find_spec('xllm'))"],
        capture_output=True, text=True, check=True, cwd=tmp_path,
    )  # fmt: skip
    if found.stdout.strip() != "None":
        pytest.skip("the package is installed as a copy in site-packages and cannot be hidden")
    result = subprocess.run(
        [python, "-P", "-c", CHAT, json.dumps(messages), str(tmp_path / "local")],
        env=environment | settings, capture_output=True, text=True, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr

    for part in messages[0]["content"][:2]:
        part[part["type"]] = np.load(part[part["type"]])
    model, processor = load_checkpoint(str(tiny_folder))
    inputs = processor.apply_chat_template(
        messages, tokenize=True, return_dict=True, add_generation_prompt=True, return_tensors="pt"
    )
    expected = model.generate(**inputs, max_new_tokens=6, do_sample=False).tolist()
    assert json.loads(result.stdout.splitlines()[-1]) == [expected, expected]
