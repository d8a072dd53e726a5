# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""`xllm test-interface`: good converters pass, and each check catches those that are broken in its way."""

import json
import re
import sys
from pathlib import Path

import pytest

from xllm import interface_checks
from xllm.cli import main
from xllm.interface_checks import CHECKS, check_interface
from xllm.modeling_xllm.converters import CONVERTERS
from xllm.processing.media_kinds import MEDIA_KINDS


QUICK = [name for name in CHECKS if name not in ("two processes", "remote code")]  # which start processes

GOOD = """
import torch
from torch import nn
from xllm.modeling_xllm.converters import ConverterOutput, X2LConverter, register_converter


class Good(X2LConverter):
    def __init__(self, row, owner_row):
        super().__init__(row, owner_row)
        self.dense = nn.Linear(row.encoder_hidden_size, row.encoder_hidden_size)
        self.prepare()

    def prepare(self):
        pass

    def forward(self, hidden, mask=None):
        return ConverterOutput(embeddings=self.dense(hidden), mask=mask)


class Pooled(Good):
    @classmethod
    def tokens_per_item(cls, row):
        return 1


register_converter("good", Good)
"""
# The check that is to catch it, what it says, other checks that notice it too, and the converter.
FAULTS = [
    ("shapes", "tokens are 16 wide, output_size says 17", {*CHECKS} - {"shapes"}, """
class Broken(Good):
    @classmethod
    def output_size(cls, owner_row):
        return owner_row.encoder_hidden_size + 1
"""),
    ("shapes", "an item has 12 tokens more than it has placeholders", {"padding", "batch"}, """
class Broken(Good):
    def forward(self, hidden, mask=None):
        return super().forward(hidden.repeat(1, 2, 1), mask.repeat(1, 2).sort(descending=True)[0])
"""),
    ("shapes", "real tokens of an item do not come first", {"batch"}, """
class Broken(Good):
    def forward(self, hidden, mask=None):
        return super().forward(hidden.flip(1), mask.flip(1))
"""),
    ("shapes", "hold NaN or Inf", {*QUICK}, """
class Broken(Pooled):
    def forward(self, hidden, mask=None):
        count = torch.zeros(()) if mask is None else mask[:, 11:].sum(1)[:, None]  # of the shorter item 0
        return ConverterOutput(embeddings=(self.dense(hidden).sum(1) / count)[:, None])
"""),
    ("shapes", "embeddings of 2 items have shape (2, 16)", {*CHECKS}, """
class Broken(Pooled):
    def forward(self, hidden, mask=None):
        return ConverterOutput(embeddings=self.dense(hidden[:, 0]))
"""),
    ("shapes", "no item has a token", {*CHECKS}, """
class Broken(Good):
    def forward(self, hidden, mask=None):
        return ConverterOutput(embeddings=self.dense(hidden), mask=torch.zeros_like(mask))
"""),
    ("shapes", "changes what it is given in place: make new tensors", {"saving", "dtypes"}, """
class Broken(Good):
    def forward(self, hidden, mask=None):
        return super().forward(hidden.mul_(2), mask)
"""),
    ("padding", "padding changes tokens: item 0 differs by", set(), """
class Broken(Pooled):  # right where the padding is zeros
    def forward(self, hidden, mask=None):
        count = torch.ones_like(hidden[:, :, :1]).sum(1) if mask is None else mask.sum(1, keepdim=True)
        return ConverterOutput(embeddings=self.dense(hidden.sum(1) / count.to(hidden.dtype))[:, None])
"""),
    ("batch", "a batch changes tokens: item 0 differs by", {"beams"}, """
class Broken(Good):
    def forward(self, hidden, mask=None):
        centre = (hidden * mask[..., None]).sum((0, 1)) / mask.sum()
        return ConverterOutput(embeddings=self.dense(hidden - 3 * centre), mask=mask)
"""),
    ("gradients", "converter.dense.weight gets no gradient", {"two processes"}, """
class Broken(Good):
    def forward(self, hidden, mask=None):
        return ConverterOutput(embeddings=self.dense(hidden).detach(), mask=mask)
"""),
    ("gradients", "converter.spare gets no gradient", {"two processes"}, """
class Broken(Good):
    def prepare(self):
        self.spare = nn.Parameter(torch.zeros(3))
"""),
    ("gradients", "all gradients of the converter are 0", set(), """
class Broken(Good):
    def forward(self, hidden, mask=None):
        return ConverterOutput(embeddings=self.dense(hidden).sign() + 0 * self.dense(hidden), mask=mask)
"""),
    ("gradients", "the gradient of converter.dense.weight holds NaN or Inf", {"two processes"}, """
class Broken(Good):
    def forward(self, hidden, mask=None):
        return ConverterOutput(embeddings=(0 * self.dense(hidden)).sqrt() + hidden, mask=mask)
"""),
    ("frozen parts", "converter.seen moved although frozen", set(), """
class Broken(Good):
    def prepare(self):
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, hidden, mask=None):
        self.seen += len(hidden)
        return super().forward(hidden, mask)
"""),
    ("frozen parts", "converter.dense.weight, converter.dense.bias moved although frozen", set(), """
class Broken(Good):
    def forward(self, hidden, mask=None):
        self.requires_grad_(True)
        return super().forward(hidden, mask)
"""),
    ("saving", "after saving and loading its tokens differ", {"remote code"}, """
class Broken(Good):
    def prepare(self):
        self.register_buffer("scale", torch.randn(16), persistent=False)

    def forward(self, hidden, mask=None):
        return super().forward(hidden * self.scale, mask)
"""),
    ("dtypes", "must have the same dtype, but got Float and BFloat16", set(), """
class Broken(Good):
    def forward(self, hidden, mask=None):
        return ConverterOutput(embeddings=self.dense(hidden.float()), mask=mask)
"""),
    ("dtypes", "tokens differ from float32's by", set(), """
class Broken(Good):  # a small difference of large numbers
    def forward(self, hidden, mask=None):
        large = self.dense(hidden) + 1000
        return ConverterOutput(embeddings=large - 1000, mask=mask)
"""),
    ("beams", "the beams of prompt 0 answer otherwise beside others", {*QUICK} - {"shapes"}, """
class Broken(Good):  # draws in evaluation too
    def forward(self, hidden, mask=None):
        return ConverterOutput(embeddings=9 * torch.randn_like(self.dense(hidden)), mask=mask)
"""),
    ("two processes", "dense.weight gets no gradient from a stand-in of zeros", set(), """
class Broken(Good):
    def forward(self, hidden, mask=None):
        return ConverterOutput(embeddings=self.dense(hidden) if hidden.any() else hidden, mask=mask)
"""),
    ("two processes", "on two processes is not the mean of both", set(), """
class Broken(Good):
    def forward(self, hidden, mask=None):
        shared = torch.distributed.is_initialized()
        return ConverterOutput(embeddings=self.dense(hidden) * (2 if shared else 1), mask=mask)
"""),
    ("two processes", "RuntimeError: only one", set(), """
class Broken(Good):
    def forward(self, hidden, mask=None):
        if torch.distributed.is_initialized():
            raise RuntimeError("only one")
        return super().forward(hidden, mask)
"""),
    ("remote code", "FileNotFoundError: .*scale.txt", set(), """
from pathlib import Path

SCALE = float(Path(__file__).with_name("scale.txt").read_text())

class Broken(Good):
    pass
"""),
    ("remote code", "as remote code it gives other logits", set(), """
class Broken(Good):
    def forward(self, hidden, mask=None):
        return super().forward(hidden * (1 if "broken_interface" in type(self).__module__[:16] else 2), mask)
"""),
]  # fmt: skip


@pytest.fixture(autouse=True)
def _forgotten():
    """What a test registers is unknown again afterwards."""
    kinds, converters, path = dict(MEDIA_KINDS), dict(CONVERTERS), list(sys.path)
    yield
    for table, before in ((MEDIA_KINDS, kinds), (CONVERTERS, converters)):
        table.clear()
        table.update(before)
    sys.modules.pop("broken_interface", None)
    sys.path[:] = path


def only(monkeypatch, names):
    """No other checks."""
    monkeypatch.setattr(interface_checks, "CHECKS", {name: CHECKS[name] for name in names})


def broken(folder: Path, code: str) -> str:
    (folder / "broken_interface.py").write_text(f"{GOOD}\n{code}\nregister_converter('broken', Broken)\n")
    (folder / "scale.txt").write_text("2.0")
    return f"{folder / 'broken_interface.py'}:Broken"


SOUNDS = {"num_query_tokens": 1, "frames_per_token": 5}
TOKENS = {"token_level": True, "converter_config": {"cif_hidden_size": 16, "cif_predictor": "none", "hidden_size": 32,
          "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 64}}  # fmt: skip


@pytest.mark.parametrize(
    ("target", "fields"),
    [("linear", {}), ("linear", {"frames_per_token": 5}), ("qformer", {}), ("qformer", SOUNDS), ("cformer", {}),
     ("cformer", TOKENS), ("xllm.device.device_status:FieldsConverter", {})],
)  # fmt: skip
def test_our_converters_keep_what_is_checked(monkeypatch, target, fields):
    only(monkeypatch, QUICK)
    assert dict(check_interface(target, fields)) == dict.fromkeys(QUICK, "")


@pytest.mark.slow
@pytest.mark.parametrize("target", ["linear", "qformer", "cformer"])
def test_they_keep_all_on_two_processes_and_as_remote_code(capsys, target):
    assert main(["test-interface", target]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines] == list(CHECKS)
    assert all(line.endswith(" ok") for line in lines)


@pytest.mark.parametrize(
    ("check", "said", "others", "code"),
    [pytest.param(*fault, marks=() if fault[0] in QUICK else pytest.mark.slow) for fault in FAULTS],
)
def test_each_check_catches_its_own(monkeypatch, tmp_path, check, said, others, code):
    only(monkeypatch, dict.fromkeys([*QUICK, check]))
    found = dict(check_interface(broken(tmp_path, code)))
    assert re.search(said if ".*" in said else re.escape(said), found[check]), found
    assert "\n" not in found[check]
    assert {name for name, problem in found.items() if problem} <= {check, *others}, found


def test_every_check_has_a_fault():
    assert {fault[0] for fault in FAULTS} == set(CHECKS)


def test_the_command_says_what_is_wrong(monkeypatch, tmp_path, capsys):
    target = broken(tmp_path, next(code for _, said, _, code in FAULTS if "spare" in said))
    only(monkeypatch, ["shapes", "gradients"])
    assert main(["test-interface", target]) == 1
    assert capsys.readouterr().out == "shapes         ok\ngradients      FAILS   converter.spare gets no gradient\n"
    assert main(["test-interface", target, "--json"]) == 1
    said = json.loads(capsys.readouterr().out)
    assert said == {"shapes": "", "gradients": "converter.spare gets no gradient"}


@pytest.mark.parametrize(
    ("code", "arguments", "said"),
    [
        ("Broken = Good", ["{file}:Missing"], "broken_interface.py: there is no class Missing in it"),
        ("Broken = Good", ["{file}:nn"], "broken_interface.py:nn: no subclass of X2LConverter"),
        ("", ["{file}:Pooled"], "no row can name it: call register_converter('pooled', Pooled) in its module"),
        ("1 / 0", ["{file}:Good"], "broken_interface.py: ZeroDivisionError while it was imported: division by zero"),
        ("class Broken(Good:", ["{file}:Good"], "broken_interface.py: SyntaxError while it was imported: invalid"),
        ("", ["{file}.py:Good"], "broken_interface.py.py: no such file"),
        ("", ["no_such_module:Good"], "module no_such_module: there is no such module"),
        ("", ["{file}"], "expected FILE.py:Class, module:Class, or one of qformer, cformer, linear"),
        ("", ["{file}:"], "expected FILE.py:Class, module:Class, or one of"),
        ("", [":linear"], "expected FILE.py:Class, module:Class, or one of"),
        ("", ["mlp"], "mlp: expected FILE.py:Class, module:Class, or one of"),
        ("", ["linear", "depth=3"], "linear: no row can be made: modalities['checked']: a modality row has no"),
        ("", ["linear", "depth"], "override 'depth': expected key=value"),
        ("", ["qformer", "num_query_tokens=none"], "no row can be made"),
        ("", ["qformer", "encoder=vision"], "encoder is not yours to give: the checks set"),
        ("Good.check_row = None", ["{file}:Good"], "no row can be made: modalities['checked']: 'NoneType'"),
        ("Good.check_row = lambda row: 1 / 0", ["{file}:Good"], "no row can be made: ZeroDivisionError: division"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_one_line(tmp_path, capsys, code, arguments, said):
    file = tmp_path / "broken_interface.py"
    file.write_text(f"{GOOD}\n{code}\n")
    assert main(["test-interface", *(argument.format(file=file) for argument in arguments)]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("xllm test-interface: ")
    assert said in captured.err
    assert captured.err.count("\n") == 1
