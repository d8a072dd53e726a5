# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Which modalities a parameter belongs to, what steps leave alone, which engines are refused, how a run that was saved
by other processes goes on; see test_two_processes.py for real ones.
"""

import json
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
import torch
from tiny import tiny_model
from torch.utils.data import DataLoader
from transformers import TrainingArguments

from xllm import freeze_for_stage
from xllm.training.data.dataset import ChatDataset
from xllm.training.data.samples import Sample
from xllm.training.recipes.strict import RecipeError
from xllm.training.saving.checkpoints import MANIFEST
from xllm.training.saving.folders import ResumeError
from xllm.training.saving.lineage import FrozenTensorError
from xllm.training.trainers.engines import check_engine, deepspeed_settings, engine_copy
from xllm.training.trainers.processes import first_alone, users_of_parameters
from xllm.training.trainers.trainer import XLLMTrainer


def make_trainer(model, folder) -> XLLMTrainer:
    arguments = TrainingArguments(folder, report_to="none", use_cpu=True, weight_decay=0.5, learning_rate=0.1)
    return XLLMTrainer(model, arguments, train_dataset=[])


def test_users_of_parameters():
    model = tiny_model()
    freeze_for_stage(model, 2)
    model.model.vision_tower.requires_grad_(True)
    users = users_of_parameters(model)
    start = "model.interfaces.image.converter."
    assert users[f"{start}query_tokens"] == ("image",)  # video has its own, and the Q-Former of image
    assert users[f"{start}qformer.layernorm.weight"] == ("image", "video")
    assert users["model.interfaces.video.adapter.weight"] == ("video",)
    assert users["model.vision_tower.embeddings.class_embedding"] == ("image", "video")
    assert users.keys() == {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_what_no_process_used_is_not_moved(tmp_path):
    """Gradients of zero, as from an empty item: weight decay and moments would move it."""
    model = tiny_model()
    freeze_for_stage(model, 2)
    trainer = make_trainer(model, tmp_path)
    optimizer = trainer.create_optimizer()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    trainer._used = torch.tensor([0.0, 0.0, 1.0])  # image, speech, video
    optimizer.step()
    moved = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    decayed = {name for name in before if name.startswith(("model.interfaces.video.", "model.interfaces.image.conv"))}
    assert {"model.interfaces.video.adapter.weight", "model.interfaces.video.converter.query_tokens"} <= moved
    assert moved <= decayed - {"model.interfaces.image.converter.query_tokens"}
    assert len(moved) > 10


def test_batches_are_not_dealt_out(tmp_path):
    assert make_trainer(tiny_model(), tmp_path).accelerator.dispatch_batches is False


def test_the_first_process_is_alone_without_others():
    with first_alone() as is_first:
        assert is_first


def test_the_epoch_reaches_workers_that_live_on(tiny_processor):
    samples = [Sample(where=str(index), prompts=["a", "b", "c", "d"], answers=["x", "y", "z"]) for index in range(8)]
    data = ChatDataset([samples], tiny_processor, weights=[0.5])
    loader = DataLoader(data, batch_size=None, num_workers=2, persistent_workers=True)
    epochs = []
    for epoch in range(3):
        data.set_epoch(epoch)
        epochs.append([(item["where"], item["messages"]) for item in loader])
    assert epochs[0] != epochs[1] != epochs[2]
    data.set_epoch(1)
    assert [(data[index]["where"], data[index]["messages"]) for index in range(len(data))] == epochs[1]


NEEDS_DEEPSPEED = pytest.mark.skipif(find_spec("deepspeed") is None, reason="deepspeed is not installed")
ZERO = {"zero_optimization": {"stage": 2}}


@NEEDS_DEEPSPEED
@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("{", "is not a JSON file that can be read"),
        (json.dumps({}), "has no zero_optimization"),
        (json.dumps({**ZERO, "optimizer": {"type": "AdamW"}}), "has 'optimizer' of its own, .* leave it out"),
        (json.dumps({**ZERO, "scheduler": {}}), "has 'scheduler' of its own"),
        (None, "is not a JSON file that can be read"),
    ],
)
def test_configurations_of_deepspeed_that_are_refused(written, message, tmp_path):
    path = tmp_path / "zero.json"
    if written is not None:
        path.write_text(written)
    with pytest.raises(RecipeError, match=message):
        deepspeed_settings(str(path))


@NEEDS_DEEPSPEED
def test_a_configuration_of_deepspeed_gets_what_the_recipe_says(tmp_path):
    path = tmp_path / "zero.json"
    path.write_text(json.dumps({**ZERO, "gradient_clipping": 0.5}))
    settings = deepspeed_settings(str(path))
    assert settings["gradient_clipping"] == 0.5
    assert settings["gradient_accumulation_steps"] == settings["train_micro_batch_size_per_gpu"] == "auto"


def test_deepspeed_that_is_not_installed_is_said(monkeypatch):
    monkeypatch.setattr("xllm.training.trainers.engines.is_deepspeed_available", lambda: False)
    with pytest.raises(RecipeError, match=r"pip install 'xllm-transformers\[deepspeed\]'"):
        deepspeed_settings(ZERO)


def arguments_of(engine: str, processes: int = 2, device: str = "cuda", version: int = 2) -> SimpleNamespace:
    """What `check_engine` reads of `TrainingArguments`, also where there is no such device."""
    is_fsdp = engine == "fsdp"
    return SimpleNamespace(
        deepspeed_plugin=None if is_fsdp else SimpleNamespace(zero_stage=int(engine[-1])),
        fsdp_plugin_args={"fsdp_version": version} if is_fsdp else None,
        fsdp_config={},
        world_size=processes,
        device=torch.device(device),
    )


@pytest.mark.parametrize(
    ("arguments", "how", "message"),
    [
        (("zero2", 1), {}, "trainer.deepspeed: there is one process; start it with torchrun"),
        (("fsdp", 1), {}, "trainer.fsdp: there is one process"),
        (("fsdp", 2, "cpu"), {}, "trainer.fsdp: accelerate shards no model on cpu"),
        (("fsdp", 2, "cuda", 1), {}, "only version 2 of FSDP is known"),
        (("zero3",), {"caches": True}, "data.cache_features makes one process run modules"),
        (("fsdp",), {"distills": True}, "distill makes one process run modules"),
        (("zero1",), {"is_quantized": True}, "a quantised language model cannot be divided"),
        (("zero2",), {"streams": True}, "a stream was never trained from with it; leave out data.streaming"),
        (("zero2",), {"muon": True}, "Muon steps by whole matrices, which an engine may divide"),
    ],
)
def test_engines_that_cannot_train_a_stage_are_refused(arguments, how, message):
    how = {"caches": False, "distills": False, **how}
    model = SimpleNamespace(is_quantized=how.pop("is_quantized", False))
    with pytest.raises(RecipeError, match=message):
        check_engine(arguments_of(*arguments), model, **how)


@pytest.mark.parametrize("engine", ["fsdp", "zero1", "zero2", "zero3"])
def test_engines_that_can(engine):
    check_engine(arguments_of(engine), SimpleNamespace(is_quantized=False), engine == "zero2", engine == "zero2")


def test_what_an_engine_has_trained_comes_home(tmp_path):
    """The copy has tensors of its own, as an engine's has; a frozen one that has moved is an error."""
    model = tiny_model()
    freeze_for_stage(model, 2)
    trainer = make_trainer(engine_copy(model), tmp_path)
    trainer.home = model
    for parameter in trainer.model.parameters():
        parameter.data = parameter.data.clone() + (1.0 if parameter.requires_grad else 0.0)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    trainer.bring_home()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name] + 1.0 if parameter.requires_grad else before[name])
    trainer.model.lm_head.weight.data[0] += 1.0
    with pytest.raises(FrozenTensorError, match=r"1 frozen tensors have moved, nothing was saved: lm_head.weight"):
        trainer.bring_home()


def test_a_checkpoint_of_another_engine_is_refused(tmp_path, caplog):
    trainer = make_trainer(tiny_model(), tmp_path)
    manifest = tmp_path / MANIFEST
    manifest.write_text(json.dumps({"processes": 1, "engine": "zero2"}))
    with pytest.raises(ResumeError, match=r"saved with zero2, this run has neither of trainer.deepspeed and trainer"):
        trainer._check_shape(str(tmp_path))
    manifest.write_text(json.dumps({"processes": 2, "engine": ""}))
    trainer._check_shape(str(tmp_path))
    assert "saved by 2 processes and goes on with 1" in caplog.text


def test_an_engine_goes_on_with_as_many_processes(tmp_path, monkeypatch):
    monkeypatch.setattr("xllm.training.saving.checkpoints.engine_of", lambda args: "zero3")
    trainer = make_trainer(tiny_model(), tmp_path)
    (tmp_path / MANIFEST).write_text(json.dumps({"processes": 2, "engine": "zero3"}))
    with pytest.raises(ResumeError, match="saved by 2 processes, each its part; go on with as many"):
        trainer._check_shape(str(tmp_path))
