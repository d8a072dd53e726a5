# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""An X-LLM over several devices, as `device_map` distributes it: tensors without values know on which device they are
and refuse to meet one of another. What the host asks for is taken from the same step on one device.
"""

import copy

import accelerate
import pytest
import torch
from accelerate import cpu_offload, disk_offload, dispatch_model, infer_auto_device_map
from tiny import batch_of, mixed_rows, tiny_model
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from xllm import freeze_for_stage
from xllm.modeling_xllm import host_reads
from xllm.modeling_xllm.x2l_interfaces import X2LInterface


FIRST, SECOND, THIRD = (f"cuda:{number}" for number in range(3))
PARTS = ("model.vision_tower", "model.audio_tower", "model.interfaces", "model.language_model", "lm_head")
MAPS = {
    "speech behind": dict(zip(PARTS, (FIRST, SECOND, FIRST, FIRST, FIRST))),
    "language model behind": dict(zip(PARTS, (FIRST, FIRST, FIRST, SECOND, SECOND))),
    "interfaces behind": dict(zip(PARTS, (FIRST, FIRST, SECOND, FIRST, FIRST))),
    "each its own": dict(zip(PARTS, (FIRST, SECOND, THIRD, SECOND, FIRST))),
    "interfaces apart": {
        **{part: FIRST for part in PARTS if part != "model.interfaces"},
        "model.interfaces.image": FIRST,
        "model.interfaces.video": SECOND,
        "model.interfaces.speech": THIRD,
    },
}  # fmt: skip


class HostNumbers:
    """The numbers that steps on one device ask for, given to the same steps of a model without values."""

    def __init__(self, monkeypatch):
        self.kept: list[list[list[int]]] = []
        read = host_reads._read

        def keep(waiting) -> None:
            read(waiting)
            self.kept.append([asked._values for asked in waiting])

        def give(waiting) -> None:
            if len(waiting) == len(kept := self.kept.pop(0)):  # else the step has failed, and its own error is told
                for asked, values in zip(waiting, kept):
                    asked._values = values

        self.patch = lambda gives: monkeypatch.setattr(host_reads, "_read", give if gives else keep)


def without_values(model, mode: FakeTensorMode):
    """A copy of the model whose tensors have shapes and devices alone."""
    model = copy.deepcopy(model)
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                fake = torch.nn.Parameter(mode.from_tensor(parameter.detach()), parameter.requires_grad)
                module._parameters[name] = fake
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = mode.from_tensor(buffer)
    return model


def place(module, name: str, device: str, **_) -> None:
    """In the place of accelerate's function, which makes parameters of the class of those that it finds."""
    path, _, name = name.rpartition(".")
    module = module.get_submodule(path)
    if name in module._buffers:
        module._buffers[name] = module._buffers[name].to(device)
    else:
        parameter = module._parameters[name]
        module._parameters[name] = torch.nn.Parameter(parameter.detach().to(device), parameter.requires_grad)


def labelled_batch() -> dict:
    batch = batch_of([(ids + [30], media) for ids, media in mixed_rows()])
    batch["labels"] = batch["input_ids"].where(batch["input_ids"] == 30, -100)
    return batch


def steps(model, batch: dict):
    """A training forward, one of an evaluation, and one behind its cache."""
    model.train()
    yield "training", model(**batch)
    model.eval()
    outputs = model(**batch, use_cache=True)
    yield "evaluation", outputs
    with torch.no_grad():
        yield "decoding", model(input_ids=batch["input_ids"][:, -1:], past_key_values=outputs.past_key_values)


def check_on(model, device_map: dict[str, str], monkeypatch) -> None:
    """All steps of a model that is distributed so."""
    batch, numbers = labelled_batch(), HostNumbers(monkeypatch)
    freeze_for_stage(model, 2)
    numbers.patch(gives=False)
    expected = {name: output.loss is None or output.logits is None for name, output in steps(model, batch)}
    numbers.patch(gives=True)
    monkeypatch.setattr(accelerate.hooks, "set_module_tensor_to_device", place)
    mode = FakeTensorMode()
    model = without_values(model, mode)
    with mode:
        model = dispatch_model(model, device_map, main_device=FIRST)
        batch = {name: mode.from_tensor(tensor).to(FIRST) for name, tensor in batch.items()}
        for name, output in steps(model, batch):
            value = output.loss if output.logits is None else output.logits
            assert isinstance(value, FakeTensor)
            assert str(value.device) == FIRST
            assert expected.pop(name) == (output.loss is None or output.logits is None)
    assert not expected
    assert not numbers.kept
    assert len({str(parameter.device) for parameter in model.parameters()}) == len(set(device_map.values()))


@pytest.mark.parametrize("text", ["chatglm", "llama"])
@pytest.mark.parametrize("name", MAPS)
def test_parts_on_several_devices(text, name, monkeypatch):
    model = tiny_model(text)
    model.set_attn_implementation("eager")
    check_on(model, MAPS[name], monkeypatch)


def automatic_map(model, shares) -> dict[str, int]:
    """What accelerate finds for devices with these shares of the model's memory, as `device_map="auto"` asks it."""
    room = sum(tensor.numel() * tensor.element_size() for tensor in model.parameters())
    memory = {number: int(share * room) + 1 for number, share in enumerate(shares)}
    with torch.device("meta"):  # as from_pretrained makes it
        bare = type(model)(model.config)
    return infer_auto_device_map(bare, memory, no_split_module_classes=bare._no_split_modules)


@pytest.mark.parametrize("text", ["chatglm", "llama"])
@pytest.mark.parametrize("shares", [(0.1, 0.5, 1), (0.45, 0.2, 1), (0.6, 1)], ids=str)
def test_an_automatic_map_cuts_where_it_may(text, shares, monkeypatch):
    """Between layers, towers and whole interfaces."""
    model = tiny_model(text)
    model.set_attn_implementation("eager")
    device_map = {part: f"cuda:{device}" for part, device in automatic_map(model, shares).items()}
    assert len(set(device_map.values())) > 1
    check_on(model, device_map, monkeypatch)


def test_no_limit_of_memory_cuts_an_interface():
    """But FSDP, which shards by the same list, must not see them: an interface may use another's converter."""
    model = tiny_model("chatglm")
    interfaces, cuts = [name for name, module in model.named_modules() if isinstance(module, X2LInterface)], set()
    assert interfaces
    for first in range(2, 100, 2):
        device_map = automatic_map(model, (first / 100, 0.3, 1))
        whole = [part for part in device_map if part in interfaces or part == "model.interfaces"]
        assert not [part for part in device_map for name in interfaces if part.startswith(f"{name}.")]
        cuts.add(tuple(device_map[part] for part in whole))
    assert len(cuts) > 3, "the limits do not reach the interfaces"
    assert "X2LInterface" not in model._no_split_modules


@pytest.mark.parametrize("share", [0.4, 0.6, 0.8])
def test_what_is_opened_over_two_places_says_the_same(share, tmp_path):
    """`device_map="auto"` with room for a share of the model, the rest being on the disk."""
    model, batch = tiny_model("chatglm").eval(), batch_of(mixed_rows())
    model.save_pretrained(tmp_path / "model")
    room = sum(tensor.numel() * tensor.element_size() for tensor in model.parameters())
    how = {"max_memory": {"cpu": int(share * room)}, "offload_folder": str(tmp_path / "disk")}
    opened = type(model).from_pretrained(tmp_path / "model", device_map="auto", **how)
    assert set(opened.hf_device_map.values()) == {"cpu", "disk"}
    assert not [part for part in opened.hf_device_map if part.count(".") > 2 and "interfaces" in part]
    assert all("X2LInterface" not in (getattr(part, "_no_split_modules", None) or ()) for part in opened.modules())
    with torch.no_grad():
        torch.testing.assert_close(opened(**batch).logits, model(**batch).logits)


@pytest.mark.parametrize("text", ["chatglm", "llama"])
@pytest.mark.parametrize("way", [cpu_offload, disk_offload])
def test_a_whole_model_that_is_offloaded_says_the_same(text, way, tmp_path):
    model, batch = tiny_model(text), batch_of(mixed_rows())
    options = {"max_new_tokens": 3, "do_sample": False, "eos_token_id": -1}
    logits, said = model(**batch).logits, model.generate(**batch, **options)
    where = {"offload_dir": tmp_path} if way is disk_offload else {}
    way(model, execution_device="cpu", **where)
    assert all(parameter.device.type == "meta" for parameter in model.parameters())
    torch.testing.assert_close(model(**batch).logits, logits)
    assert torch.equal(model.generate(**batch, **options), said)
