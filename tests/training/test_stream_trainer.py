# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Streams in the Trainer: a run that goes on in epoch 2 has the batches and weights of one that never stopped."""

import json

import pytest
import torch
from process_runs import ROOT, run_warm
from safetensors.torch import load_file
from stream_runs import PLAIN, trained, trainer_of

from xllm.training.data.media_rows import DataError
from xllm.training.train import check, train
from xllm.training.trainers.stream_trainer import STATE_NAME
from xllm.training.trainers.trainer import XLLMTrainer


@pytest.fixture
def rows(tmp_path, media):
    """Two files: pictures, and text alone; 30 rows."""
    pictures = [
        {"file": str(media / f"{color}.png"), "text": f"{color} {n}"} for n in range(10) for color in ("red", "blue")
    ]
    words = [
        {"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": f"w{n}"}]} for n in range(10)
    ]
    folder = tmp_path / "rows"
    folder.mkdir()
    for name, held in (("pictures", pictures), ("words", words)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in held))
    return folder


def test_going_on_in_epoch_2_gives_the_same_batches_and_weights(tiny_checkpoint, rows, tmp_path):
    """14 steps of 2 x 2 rows of 30: the checkpoint at step 10 is behind row 40."""
    whole = trainer_of(tiny_checkpoint, rows, tmp_path / "whole", 14)
    whole.train()
    saving = {"save_strategy": "steps", "save_steps": 10, "dataloader_num_workers": 2}
    first = trainer_of(tiny_checkpoint, rows, tmp_path / "run", 10, **saving)
    first.train()
    state = json.loads((tmp_path / "run/checkpoint-10" / STATE_NAME).read_text())
    assert state["position"] == 20
    assert max(mark[0] for _, marks in state["marks"].values() for mark in marks) >= 1
    again = trainer_of(tiny_checkpoint, rows, tmp_path / "run", 14)
    again.train(resume_from_checkpoint=str(tmp_path / "run/checkpoint-10"))
    assert first.seen + again.seen == whole.seen
    assert all(torch.equal(value, trained(whole.model)[name]) for name, value in trained(again.model).items())
    assert again.state.log_history[-2]["epoch"] == whole.state.log_history[-2]["epoch"] == 1.0

    (tmp_path / "run/checkpoint-10" / STATE_NAME).unlink()
    broken = trainer_of(tiny_checkpoint, rows, tmp_path / "run", 14)
    with pytest.raises(DataError, match="no such file; the checkpoint was not made with `data.streaming`"):
        broken.train(resume_from_checkpoint=str(tmp_path / "run/checkpoint-10"))


@pytest.mark.slow
def test_two_ranks_and_then_one_do_what_two_do(tiny_checkpoint, rows, tmp_path):
    """Pictures on one rank and text on the other; the second half of the run again, on one rank, with twice as many
    batches per step. The checkpoint has what both ranks had consumed.
    """
    run_warm(ROOT / "tests/stream_runs.py", tiny_checkpoint, rows, tmp_path, 24)
    seen = [json.loads((tmp_path / f"seen-{rank}.json").read_text()) for rank in (0, 1)]
    assert len(seen[0]) == len(seen[1]) == 24
    assert seen[0] != seen[1]
    state = json.loads((tmp_path / "checkpoint-12" / STATE_NAME).read_text())
    assert (state["lanes"], state["position"], len(state["marks"])) == (48, 24, 24)
    assert max(mark[0] for _, marks in state["marks"].values() for mark in marks) >= 1

    alone = trainer_of(tiny_checkpoint, rows, tmp_path / "alone", 24, dropout=0.0, **PLAIN)
    alone.train(resume_from_checkpoint=str(tmp_path / "checkpoint-12"))
    assert alone.seen == [batch for both in zip(seen[0][12:], seen[1][12:]) for batch in both]
    expected = torch.load(tmp_path / "trained.pt")
    for name, value in trained(alone.model).items():
        start, end = (expected[when][name] for when in ("start", "end"))
        assert (end - start).norm() > 1e-3 * start.norm()
        assert (value - end).norm() < 1e-4 * (end - start).norm()


@pytest.fixture
def recipe(tiny_checkpoint, rows, tmp_path):
    trainer = {"max_steps": 3, "per_device_train_batch_size": 4, "use_cpu": True, "logging_steps": 1, "save_steps": 10}
    return {
        "model": str(tiny_checkpoint),
        "output_dir": str(tmp_path / "out"),
        "stage": 3,
        "modalities": ["image"],
        "data": {"train": [str(rows / "*.jsonl")], "streaming": True, "shuffle_buffer": 48},
        "trainer": {**trainer, "learning_rate": 1e-2},
    }


def test_a_recipe_streams_by_one_key(recipe):
    assert check(recipe)[0].startswith("stage 3 (image): 2 files, streamed (")
    folder = train(recipe, progress=False).checkpoint
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in log if "loss" in entry] == [1, 2, 3]
    entry = json.loads((folder / "config.json").read_text())["lineage"][-1]
    assert entry["data"]["samples"] == "2 files, streamed"


def test_a_recipe_goes_on_after_a_crash_in_epoch_2(recipe, tmp_path, monkeypatch):
    recipe["trainer"] |= {"max_steps": 14, "save_strategy": "steps"}
    whole = train({**recipe, "output_dir": str(tmp_path / "whole")}, progress=False).checkpoint
    step, count = XLLMTrainer.training_step, iter(range(13))

    def crash(*args):
        if next(count, None) is None:
            raise SystemError("the machine is gone")
        return step(*args)

    monkeypatch.setattr(XLLMTrainer, "training_step", crash)
    with pytest.raises(SystemError):
        train(recipe, progress=False)
    monkeypatch.undo()
    state = json.loads((tmp_path / "out/stage3-image/checkpoint-10" / STATE_NAME).read_text())
    assert state["position"] * 4 > 30
    recipe["trainer"]["dataloader_num_workers"] = 2
    again = train(recipe, progress=False, resume=True).checkpoint
    found = [load_file(folder / "model.safetensors") for folder in (whole, again)]
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())
