# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""A module of the user's travels with the checkpoints that use it."""

import json
import sys

import pytest
import torch

from xllm import X2LConfig, XLLMConfig, XLLMForConditionalGeneration, XLLMProcessor
from xllm.assembly.module_copies import ModuleCopyError, copy_module, native_module, travelling_text
from xllm.assembly.modules import import_modules
from xllm.cli import main
from xllm.hub_cards.remote_code import export_code
from xllm.modeling_xllm.converters import CONVERTERS


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
        ("from . import helpers", "`from . import helpers`: what travels is a single file"),
        ("from .helpers import thing", "`from .helpers import thing`: what travels is a single file"),
        ("import my_helpers", "it imports my_helpers, no installed library"),
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
        ("cif.py", "one of our own files is called cif.py"),
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
    assert not list(status_folder.glob("*.py")), "nothing half-written"
