# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Runs that learn nothing, or nonsense, stop and say why; broken samples of every kind are skipped, or named."""

import errno
import json
import math

import numpy as np
import pytest
import torch

from xllm.cli import main
from xllm.processing import media_sources
from xllm.training.batches.notes import NamedBatches
from xllm.training.data.dataset import SampleError
from xllm.training.data.media_rows import DataError
from xllm.training.recipes.recipe import RecipeError, load_recipe
from xllm.training.train import check, run_stage, train
from xllm.training.trainers import guards
from xllm.training.trainers.guards import TrainingError
from xllm.training.trainers.trainer import XLLMTrainer


TRAINER = {"max_steps": 4, "per_device_train_batch_size": 2, "logging_steps": 10, "learning_rate": 1e-2}
TRAINER |= {"save_strategy": "steps", "save_steps": 1, "use_cpu": True}


@pytest.fixture
def clips(media):
    return [{"file": str(media / f"{name}.wav"), "text": name} for name in ("low", "high")]


def stage(rows, number=2, modality="speech", **data):
    return {
        "stage": number,
        "modalities": [modality],
        "data": {"train": {"dataset": rows}, **data},
        "trainer": TRAINER,
    }


def state(folder):
    return {path.name for path in folder.glob("*checkpoint*")}


def test_nan_stops_the_run_and_names_module_step_and_samples(tiny, media, tmp_path):
    model, processor = tiny
    rows = [{"file": str(media / f"{name}.png"), "text": name} for name in ("red", "blue")]
    steps = []

    def poison(module, args, output):
        if not module.training:  # the report asks the model before it is trained
            return output
        steps.append(1)
        return output * (math.nan if len(steps) >= 3 else 1.0)

    model.model.interfaces["image"].adapter.register_forward_hook(poison)
    message = (
        r"stage 2 \(image\), step 3: the loss is nan: first in the output of model.interfaces.image.adapter; "
        r"samples: dataset\[\d\], dataset\[\d\]; nothing of this step was saved"
    )
    with pytest.raises(TrainingError, match=message):
        run_stage(model, processor, stage(rows, modality="image"), tmp_path, progress=False)
    assert state(tmp_path) == {"checkpoint-1", "checkpoint-2"}
    assert all(parameter.isfinite().all() for parameter in model.parameters()), "the weights are those before the step"
    assert not (tmp_path / "config.json").exists()


def test_on_a_gpu_nothing_waits_and_the_weights_stay(tiny, media, tmp_path, monkeypatch):
    """As if numbers arrived two steps later: the fused optimizer, which knows `found_inf` here too, stands still."""

    class Late:
        def __init__(self):
            self.waits = 0

        def query(self):
            return False

        def synchronize(self):
            self.waits += 1

    model, processor = tiny
    monkeypatch.setattr(XLLMTrainer, "_may_wait", staticmethod(lambda values: True))
    monkeypatch.setattr(guards, "_send", lambda values: (values.clone(), Late()))
    adapter, seen = model.model.interfaces["image"].adapter, []

    def poison(module, args, output):
        if not module.training:  # the report asks the model before it is trained
            return output
        seen.append(module.weight.detach().clone())
        return output * (math.nan if len(seen) >= 3 else 1.0)

    adapter.register_forward_hook(poison)
    rows = [{"file": str(media / f"{name}.png"), "text": name} for name in ("red", "blue")]
    late = stage(rows, modality="image")
    late["trainer"] = {**TRAINER, "max_steps": 10, "save_steps": 100}
    with pytest.raises(TrainingError, match=r"step 3: the loss is nan: first in the output of model.interfaces.image"):
        run_stage(model, processor, late, tmp_path, progress=False)
    steps = len(seen) - 1  # and once more to find the module
    assert steps == 3 + guards.IN_FLIGHT
    assert not torch.equal(seen[1], seen[2])
    assert all(torch.equal(weight, seen[2]) for weight in seen[2:])
    late["trainer"] = {**TRAINER, "max_steps": 3, "save_steps": 3}
    seen.clear()
    with pytest.raises(TrainingError, match="step 3: the loss is nan"):
        run_stage(model, processor, late, tmp_path / "saving", progress=False)
    assert not state(tmp_path / "saving"), "it is looked at before a checkpoint is written"


@pytest.mark.parametrize("broken", ["weight", "gradient"])
def test_what_is_not_finite_is_found(tiny, clips, tmp_path, broken):
    model, processor = tiny
    if broken == "weight":
        with torch.no_grad():
            model.model.language_model.word_embeddings.weight[5] = math.inf
        message = r"step 1: .*: model.language_model.word_embeddings.weight itself is not finite; samples: dataset"
    else:
        adapter = model.model.interfaces["speech"].adapter
        adapter.register_full_backward_hook(lambda *args: (args[1][0] * math.nan,))
        message = "step 1: the gradient is nan: the outputs are finite, the gradient of model.interfaces.speech.conv"
    with pytest.raises(TrainingError, match=message):
        run_stage(model, processor, stage(clips), tmp_path, progress=False)


def test_no_gradient_in_the_first_steps_stops_the_run(tiny, clips, tmp_path, monkeypatch):
    model, processor = tiny
    monkeypatch.setattr(guards, "FIRST_STEPS", 3)
    original = XLLMTrainer.compute_loss
    monkeypatch.setattr(XLLMTrainer, "compute_loss", lambda *args, **kwargs: original(*args, **kwargs) * 0)
    with pytest.raises(TrainingError, match=r"no gradient has reached any of the \d+ trained tensors in the first 3"):
        run_stage(model, processor, stage(clips), tmp_path, progress=False)
    (short := stage(clips))["trainer"] = {**TRAINER, "max_steps": 1}
    with pytest.raises(TrainingError, match="in the first 1 steps"):
        run_stage(model, processor, short, tmp_path / "short", progress=False)
    assert not (tmp_path / "short" / "config.json").exists()


@pytest.mark.parametrize("learnt_before", [True, False])
def test_a_resumed_run_is_judged_by_all_its_steps(tiny_checkpoint, clips, tmp_path, monkeypatch, learnt_before):
    """The last two of four steps have no gradient: an error only if the first two had none either."""
    recipe = {"model": str(tiny_checkpoint), "output_dir": str(tmp_path), **stage(clips)}
    original, steps = XLLMTrainer.compute_loss, []

    def lose(*args, **kwargs):
        steps.append(1)
        if len(steps) == 3:
            raise KeyboardInterrupt
        return original(*args, **kwargs) * (1.0 if learnt_before and len(steps) < 3 else 0.0)

    monkeypatch.setattr(XLLMTrainer, "compute_loss", lose)
    with pytest.raises(KeyboardInterrupt):
        train(recipe, progress=False)
    if learnt_before:
        assert train(recipe, progress=False, resume=True).stages[0].folder.is_dir()
        return
    with pytest.raises(TrainingError, match="no gradient has reached"):
        train(recipe, progress=False, resume=True)


def test_a_batch_without_a_target_is_an_error(tiny, clips, tmp_path, monkeypatch):
    from xllm.training.batches.collator import XLLMDataCollator

    model, processor = tiny
    original = XLLMDataCollator.__call__

    def masked(collator, samples):
        batch = original(collator, samples)
        return {**batch, "labels": torch.full_like(batch["labels"], -100)}

    monkeypatch.setattr(XLLMDataCollator, "__call__", masked)
    with pytest.raises(SampleError, match=r"dataset\[\d\]: no token of the answer carries loss"):
        run_stage(model, processor, stage(clips), tmp_path, progress=False)
    with pytest.raises(SampleError, match="no sample of the data can be used"):
        run_stage(model, processor, stage(clips, on_error="skip"), tmp_path / "b", progress=False)


@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_features_that_are_not_finite_are_those_of_a_row(tiny, clips, tmp_path, monkeypatch, on_error):
    """Samples of 1e30 are finite, their power is not."""
    model, processor = tiny
    rows = [{**clips[0], "file": np.sin(np.arange(6400)).astype(np.float32) * 1e30}, *clips]
    if on_error == "raise":
        with pytest.raises(SampleError, match=r"dataset\[0\]: input_features holds NaN or Inf"):
            run_stage(model, processor, stage(rows), tmp_path, progress=False)
        return
    result = run_stage(model, processor, stage(rows, on_error="skip"), tmp_path, progress=False, save=False)
    assert result.skipped == ["dataset[0]"]


def test_a_rate_of_nothing_is_said(tiny, clips, tmp_path, caplog):
    """By the key, or by an entry of `optim` for all that is trained."""
    model, processor = tiny
    for change in ({"trainer": {**TRAINER, "learning_rate": 0.0}}, {"optim": [{"match": "*", "lr": 0.0}]}):
        caplog.clear()
        run_stage(model, processor, {**stage(clips), **change}, tmp_path / next(iter(change)), progress=False)
        assert "stage 2 (speech): the learning rate of all that is trained is 0" in caplog.text


def test_a_stage_without_data_of_its_modality_is_refused(tiny_checkpoint, clips, tmp_path, caplog):
    recipe = {"model": str(tiny_checkpoint), "output_dir": str(tmp_path / "out"), **stage(clips)}
    with pytest.raises(DataError, match="stage 3 trains image, but no sample of data.train holds any of it"):
        train({**recipe, "stage": 3, "modalities": ["speech", "image"]})
    texts = {"train": {"dataset": [{"text": "a"}], "modality": "text"}}
    with pytest.raises(DataError, match="stage 3 trains image, speech, video, but no sample"):
        train({**recipe, "stage": 3, "modalities": None, "data": texts})
    assert check({**recipe, "stage": 3, "modalities": None})
    assert "no sample of data.train holds image, video; see `modalities`" in caplog.text
    assert not (tmp_path / "out").exists()


@pytest.fixture
def broken(media, tmp_path):
    """Rows that are broken in every way, by what is said of each; good ones between them."""
    (tmp_path / "gone.wav").write_bytes((media / "low.wav").read_bytes())
    (tmp_path / "eio.wav").write_bytes((media / "low.wav").read_bytes())
    files = {
        "broken.wav: ": str(media / "broken.wav"),
        "http://[bad/x.wav": "http://[bad/x.wav",
        "gone.wav: no such file": str(tmp_path / "gone.wav"),
        "missing.wav": str(tmp_path / "missing.wav"),
        "Input/output error": str(tmp_path / "eio.wav"),
        "TypeError: a processor's own": str(media / "high.wav"),
    }
    rows = [{"file": file, "text": "low"} for file in files.values()]
    long = {"file": str(media / "low.wav"), "text": "low " * 100}
    rows += [long, {"file": str(media / "low.wav"), "text": "low"}]
    return {**{text: index for index, text in enumerate(files)}, "tokens": len(files)}, rows


def break_the_rest(monkeypatch, tmp_path):
    """What no file can show: a read error, and an exception of a processor that is not about values."""
    original = media_sources._open_path

    def open_path(path):
        if str(path).endswith("eio.wav"):
            raise OSError(errno.EIO, "Input/output error")
        if str(path).endswith("high.wav"):
            raise TypeError("a processor's own")
        return original(path)

    monkeypatch.setattr(media_sources, "_open_path", open_path)


@pytest.mark.parametrize(("number", "workers"), [(2, 0), (1, 2)])
def test_broken_samples_of_every_kind_are_skipped_and_named(
    tiny, broken, tmp_path, monkeypatch, caplog, number, workers
):
    """Stage 2: the long text is over max_length; stage 1: it has more tokens than the clip has frames."""
    model, processor = tiny
    reasons, rows = broken
    break_the_rest(monkeypatch, tmp_path)
    data = stage(rows, number, on_error="skip", max_length=60)
    data["trainer"] = {**TRAINER, "dataloader_num_workers": workers}
    original = XLLMTrainer.train

    def train_later(trainer, *args, **kwargs):
        (tmp_path / "gone.wav").unlink()
        return original(trainer, *args, **kwargs)

    monkeypatch.setattr(XLLMTrainer, "train", train_later)
    result = run_stage(model, processor, data, tmp_path / "out", progress=False, save=False)
    assert sorted(result.skipped) == [f"dataset[{index}]" for index in sorted(reasons.values())]
    last = json.loads((tmp_path / "out" / "log.jsonl").read_text().splitlines()[-1])
    assert (last["skipped_samples"], len(last["skipped"])) == (len(reasons), len(reasons))
    if not workers:
        for text, index in reasons.items():
            assert any(f"dataset[{index}]: " in line and text in line for line in caplog.messages), text


def test_a_run_of_broken_samples_alone_stops(tiny, media, tmp_path):
    model, processor = tiny
    rows = [{"file": str(media / "broken.wav"), "text": "a"}] * 3
    with pytest.raises(SampleError, match="no sample of the data can be used"):
        run_stage(model, processor, stage(rows, on_error="skip"), tmp_path, progress=False)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("what", ["broken.wav", "max_length"])
def test_an_error_is_one_line_that_names_the_row(tiny_checkpoint, media, tmp_path, capfd, workers, what):
    name = "broken.wav" if what == "broken.wav" else "low.wav"
    (media / "one.csv").write_text(f"file,text\n{name},{'low ' * 100}\n")
    recipe = {"model": str(tiny_checkpoint), "output_dir": str(tmp_path / "out"), "stage": 2, "modalities": ["speech"]}
    recipe |= {"data": {"train": str(media / "one.csv"), "max_length": 60}}
    recipe |= {"trainer": {**TRAINER, "dataloader_num_workers": workers}}
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    assert main(["train", str(tmp_path / "recipe.yaml")]) == 1
    line = capfd.readouterr().err.splitlines()[-1]
    assert line.startswith(f"xllm train: {media / 'one.csv'}:2: ")
    assert what in line
    assert len(line) < 400


def test_samples_that_make_no_batch_together_are_all_named():
    def collator(samples):
        if len(samples) > 1:
            raise ValueError("too many")
        return {}

    with pytest.raises(SampleError, match="a:1, a:2: no batch together: too many"):
        NamedBatches(collator)([{"where": "a:1"}, {"where": "a:2"}])


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"trainer.resume_from_checkpoint": "x"},
            "resume_from_checkpoint cannot be set: use `xllm train RECIPE --resume`",
        ),
        ({"trainer.push_to_hub": True}, "trainer.push_to_hub cannot be set: nothing is pushed while training: use"),
        ({"trainer.do_train": True}, "trainer.do_train cannot be set: it has no effect here: leave it out"),
        ({"trainer.logging_nan_inf_filter": True}, "NaN and Inf stop the run"),
        ({"trainer.learning_rate": "abc"}, "trainer.learning_rate is 'abc', expected float"),
        ({"max_steps": 3}, "unknown key 'max_steps'; did you mean 'trainer.max_steps'?"),
        ({"stages.0.learning_rate": 3}, "unknown key 'stages.0.learning_rate'; did you mean 'stages.0.trainer.learn"),
    ],
)
def test_keys_without_effect_are_refused(keys, message):
    recipe = {"model": "m", "output_dir": "o", "stages": [{"stage": 2, "data": {"train": "a.csv"}}]}
    with pytest.raises(RecipeError) as error:
        load_recipe(recipe, keys)
    assert message in str(error.value)


def test_a_tracker_that_is_missing_names_its_extra(monkeypatch):
    from transformers.integrations import integration_utils

    monkeypatch.setattr(integration_utils, "get_available_reporting_integrations", list)
    recipe = {"model": "m", "output_dir": "o", "stage": 2, "data": {"train": "a.csv"}}
    with pytest.raises(
        RecipeError, match=r'tensorboard is not installed: pip install "xllm-transformers\[tensorboard\]"'
    ):
        load_recipe(recipe, {"trainer.report_to": "tensorboard"})
