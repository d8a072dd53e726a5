# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""A module of the user's travels with the checkpoints that use it."""

import json
import logging
import sys
from pathlib import Path

import pytest
import torch

from xllm import X2LConfig, XLLMConfig, XLLMForConditionalGeneration, XLLMProcessor
from xllm.assembly.module_copies import ModuleCopyError, copy_module, native_module, travelling_text
from xllm.assembly.modules import import_modules
from xllm.assembly.opening import load_checkpoint
from xllm.assembly.tiny import build_tiny
from xllm.cli import main
from xllm.hub_cards.remote_code import export_code
from xllm.modeling_xllm.converters import CONVERTERS
from xllm.processing.media_kinds import MEDIA_KINDS


MODULE = """
from torch import nn

from xllm import X2LConfig, XLLMProcessor
from xllm.modeling_xllm.converters import (
    ConverterOutput,
    X2LConverter as Base,
    register_converter,
)


class StatusConverter(Base):
    \"\"\"Twice the status.\"\"\"

    def forward(self, hidden, mask=None):
        return ConverterOutput(embeddings=2 * hidden, mask=mask)


register_converter("status", StatusConverter, exist_ok=True)
"""
ANSWER = """
import importlib.util, json, sys
assert importlib.util.find_spec("xllm") is None and importlib.util.find_spec("status_rows") is None
import torch
from transformers import AutoConfig, AutoModel, AutoProcessor
trust = {"trust_remote_code": True}
AutoConfig.from_pretrained(sys.argv[1], **trust)
AutoProcessor.from_pretrained(sys.argv[1], **trust)
model = AutoModel.from_pretrained(sys.argv[1], **trust).eval()
text = model.config.text_config
ids = torch.tensor([[250, 250, 20, 21, text.gmask_token_id, text.bos_token_id]])
print(json.dumps(model(input_ids=ids, status=torch.ones(1, 2, 8)).logits[0, -1].tolist()))
if len(sys.argv) > 2:
    model.save_pretrained(sys.argv[2])
    AutoProcessor.from_pretrained(sys.argv[1], **trust).save_pretrained(sys.argv[2])
"""

STATUS = {"readings": [[80, 21.5, 3], [79, 22, 4]]}
CHAT = """
import importlib.util, json, sys
assert importlib.util.find_spec("xllm") is None and importlib.util.find_spec("status_modality") is None
from transformers import AutoModel, AutoProcessor
model = AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True).eval()
processor = AutoProcessor.from_pretrained(sys.argv[1], trust_remote_code=True)
status = json.loads(sys.argv[2])
content = [{"type": "status", "status": status}, {"type": "text", "text": "What is this?"}]
inputs = processor.apply_chat_template(
    [{"role": "user", "content": content}], tokenize=True, return_dict=True, add_generation_prompt=True,
    return_tensors="pt",
)
print(json.dumps(model.generate(**inputs, max_new_tokens=6, do_sample=False).tolist()))
"""


@pytest.fixture
def status_kind():
    """The fixture module of the tests on modalities, imported, and unknown again afterwards."""
    path = list(sys.path)
    code = str(Path(__file__).resolve().parents[1] / "fixtures" / "status_modality.py")
    import_modules([code])
    yield code
    MEDIA_KINDS.pop("status")
    CONVERTERS.pop("status")
    sys.modules.pop("status_modality")
    sys.path[:] = path


@pytest.mark.slow
def test_a_status_is_answered_where_neither_the_module_nor_the_package_is(bare, status_kind, tmp_path):
    folder = str(tmp_path / "model")
    assert main(["init", folder, "--preset", "tiny", "--module", status_kind, "--modality", "status"]) == 0
    assert main(["push", folder, "user/status", "--tag", "v1", "--module", status_kind]) == 0
    answer = bare(CHAT, "user/status", json.dumps(STATUS))
    model, processor = load_checkpoint(folder)
    content = [{"type": "status", "status": STATUS}, {"type": "text", "text": "What is this?"}]
    inputs = processor.encode_conversations([[{"role": "user", "content": content}]])
    assert inputs["status_values"].shape == (1, 2, 3)
    expected = model.generate(**inputs, max_new_tokens=6, do_sample=False).tolist()
    assert len(expected[0]) > inputs["input_ids"].shape[1]
    assert answer == expected


def test_saving_a_model_or_a_processor_leaves_the_module_beside_it(status_kind, tmp_path):
    """Whoever saves: a script's `save_pretrained`, a Trainer; in any order, alone, and again."""
    folder = build_tiny(tmp_path / "made", ["status"])
    model, processor = load_checkpoint(str(folder))
    for name, parts in (("both", (processor, model)), ("model", (model,)), ("processor", (processor,))):
        saved = tmp_path / name
        for _ in range(2):
            for part in parts:
                part.save_pretrained(saved)
        assert "from .converters import" in (saved / "status_modality.py").read_text()
        for file in ("config.json", "processor_config.json"):
            if (saved / file).exists():
                assert json.loads((saved / file).read_text())["modules"] == ["status_modality"]
        assert (saved / "config.json").exists() == (name != "processor")
        assert (saved / "processor_config.json").exists() == (name != "model")


def test_a_module_that_cannot_travel_does_not_cost_the_weights(status_folder, module, monkeypatch, tmp_path, caplog):
    monkeypatch.setattr(CONVERTERS["status"], "__module__", "__main__")
    model = XLLMForConditionalGeneration.from_pretrained(status_folder)
    model.config.modules = []
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    monkeypatch.setattr(logging.getLogger("xllm"), "propagate", True)
    model.save_pretrained(tmp_path / "new")
    assert "is saved without a module that opening it needs" in caplog.text
    assert "StatusConverter is defined in __main__, not in a file" in caplog.text
    again = XLLMForConditionalGeneration.from_pretrained(tmp_path / "new")
    assert torch.equal(again.lm_head.weight, model.lm_head.weight)


@pytest.fixture
def module(tmp_path, monkeypatch):
    """The module's file, imported."""
    path = tmp_path / "user" / "status_rows.py"
    path.parent.mkdir()
    path.write_text(MODULE)
    monkeypatch.setattr(sys, "path", list(sys.path))
    import_modules([str(path)])
    yield path
    CONVERTERS.pop("status")
    sys.modules.pop("status_rows")


@pytest.fixture
def status_folder(module, tiny_folder, tmp_path):
    """The tiny preset with a row that the module's converter reads."""
    config = XLLMConfig.from_pretrained(tiny_folder)
    config.modalities["status"] = X2LConfig(
        encoder=None, input_name="status", converter="status", placeholder_token="<StatusHere>", token_id=250,
        encoder_hidden_size=8,
    )  # fmt: skip
    folder = tmp_path / "status"
    XLLMForConditionalGeneration(XLLMConfig(**config.to_dict())).save_pretrained(folder)
    XLLMProcessor.from_pretrained(tiny_folder).save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_a_pushed_module_answers_where_neither_it_nor_the_package_is(bare, status_folder, module, tmp_path, capsys):
    model = XLLMForConditionalGeneration.from_pretrained(status_folder)
    text = model.config.text_config
    ids = torch.tensor([[250, 250, 20, 21, text.gmask_token_id, text.bos_token_id]])
    expected = model(input_ids=ids, status=torch.ones(1, 2, 8)).logits[0, -1].tolist()
    assert main(["push", str(status_folder), "user/status", "--tag", "v1", "--module", str(module)]) == 0
    assert bare(ANSWER, "user/status", str(tmp_path / "saved")) == pytest.approx(expected, abs=1e-5)
    assert bare(ANSWER, str(tmp_path / "saved")) == pytest.approx(expected, abs=1e-5)

    # With the package but without the module, what was saved is pushed again by the copy beside it.
    CONVERTERS.pop("status")
    del sys.modules["status_rows"]
    sys.path.remove(str(module.parent))
    files = export_code(tmp_path / "saved")
    assert "status_rows.py" in files
    (copy,) = import_modules([str(native_module(tmp_path / "saved" / "status_rows.py"))])
    assert CONVERTERS["status"] is copy.StatusConverter
    again = XLLMForConditionalGeneration.from_pretrained(tmp_path / "saved")
    assert torch.equal(again.state_dict()["lm_head.weight"], model.state_dict()["lm_head.weight"])


def test_what_the_copy_says(status_folder, module):
    export_code(status_folder)
    assert export_code(status_folder)[-1] == "status_rows.py", "again, over what is there"
    text = (status_folder / "status_rows.py").read_text()
    for line in (
        "from .configuration_xllm import X2LConfig\n",
        "from .processing_xllm import XLLMProcessor\n",
        "from .converters import ConverterOutput, X2LConverter as Base, register_converter\n",
        "from torch import nn\n",
    ):
        assert line in text
    assert "xllm import" not in text.replace("_xllm import", "")
    for name in ("modeling_xllm.py", "processing_xllm.py"):
        assert (status_folder / name).read_text().count("from .status_rows import") == 1
    for name in ("config.json", "processor_config.json"):
        assert json.loads((status_folder / name).read_text())["modules"] == ["status_rows"]
    assert XLLMConfig.from_pretrained(status_folder).modalities["status"].converter == "status"


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import xllm.training.stages", r"line 1: `import xllm.training.stages`: write"),
        ("\nfrom xllm.training.stages import freeze_for_stage", "line 2: .*: freeze_for_stage does not travel"),
        ("from xllm import publish", "publish does not travel"),
        ("from xllm.modeling_xllm import converters", "converters does not travel"),
        ("from xllm.modeling_xllm.stage1 import heads", "heads does not travel"),
        ("from . import helpers", "`from . import helpers`: only a single file travels"),
        ("from .helpers import thing", "`from .helpers import thing`: only a single file travels"),
        ("import my_helpers", "it imports my_helpers, which is not installed"),
        ("from my_helpers.parts import thing", "it imports my_helpers"),
    ],
)
def test_imports_that_cannot_travel_are_named(tmp_path, code, message):
    path = tmp_path / "mine.py"
    path.write_text(code + "\n")
    with pytest.raises(ModuleCopyError, match=message):
        travelling_text(path)


def test_files_that_cannot_travel_are_named(tmp_path, status_folder, module, monkeypatch):
    for name, message in (
        ("cif.py", "a file of ours or of Python's library is called cif.py"),
        ("os.py", "a file of ours or of Python's library is called os.py"),
        ("__init__.py", "a package cannot travel"),
    ):
        (tmp_path / name).write_text("")
        with pytest.raises(ModuleCopyError, match=message):
            copy_module(tmp_path / name, status_folder)
    monkeypatch.setattr(CONVERTERS["status"], "__module__", "__main__")
    with pytest.raises(ModuleCopyError, match="StatusConverter is defined in __main__, not in a file"):
        export_code(status_folder)


def test_a_module_that_is_named_but_not_there(status_folder, module, monkeypatch):
    config = json.loads((status_folder / "config.json").read_text())
    (status_folder / "config.json").write_text(json.dumps({**config, "modules": ["another"]}))
    with pytest.raises(ModuleCopyError, match=r"another\.py: no such file; give .* with --module"):
        export_code(status_folder)
    assert not (status_folder / "modeling_xllm.py").exists(), "nothing half-written"
