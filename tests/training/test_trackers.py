# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""`trainer.report_to=tensorboard`: what is written is what `log.jsonl` says."""

import json
import sys
from collections import defaultdict
from types import ModuleType

import pytest
from transformers.integrations import integration_utils

from xllm.cli import main


class Recorder:
    """Stands for TensorBoard's writer where that is not installed; transformers' own callback writes to it."""

    scalars: defaultdict[str, dict[int, float]]

    def __init__(self, log_dir):
        Recorder.scalars = defaultdict(dict)

    def add_scalar(self, name, value, step):
        self.scalars[name][step] = value

    def add_text(self, *args):
        pass

    flush = close = add_text


def recorded(monkeypatch, folder):
    module = ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = Recorder
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(integration_utils, "is_tensorboard_available", lambda: True)
    return lambda: Recorder.scalars


def read_back(monkeypatch, folder):
    """The files themselves."""
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")

    def scalars():
        (file,) = folder.rglob("events.out.tfevents.*")
        events = accumulators.EventAccumulator(str(file.parent))
        events.Reload()
        return {name: {one.step: one.value for one in events.Scalars(name)} for name in events.Tags()["scalars"]}

    return scalars


@pytest.mark.parametrize("reader", [recorded, read_back])
def test_tensorboard_gets_what_the_log_says(tiny_checkpoint, media, tmp_path, monkeypatch, reader):
    scalars = reader(monkeypatch, tmp_path / "events")
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "events"))
    (tmp_path / "rows.csv").write_text(f"file,text\n{media / 'red.png'},red\n{media / 'blue.png'},blue\n")
    stage = {"stage": 2, "modalities": ["image"], "data": {"train": str(tmp_path / "rows.csv")}}
    trainer = {"max_steps": 3, "per_device_train_batch_size": 2, "logging_steps": 1, "use_cpu": True}
    recipe = {"model": str(tiny_checkpoint), "output_dir": str(tmp_path / "out"), "trainer": trainer}
    (tmp_path / "recipe.yaml").write_text(json.dumps({**recipe, "stages": [stage]}))
    assert main(["train", str(tmp_path / "recipe.yaml"), "trainer.report_to=tensorboard"]) == 0
    entries = [json.loads(line) for line in (tmp_path / "out" / "stage2-image" / "log.jsonl").open()]
    found = scalars()
    for name in ("loss", "loss_image", "grad_norm", "learning_rate"):
        logged = {entry["step"]: entry[name] for entry in entries if name in entry}
        assert logged.keys() == {1, 2, 3}
        assert found[f"train/{name}"] == pytest.approx(logged, rel=1e-5), name
