# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""What makes a checkpoint whole, what a full disk is, what `--resume` takes; killed runs: `test_resume.py`."""

import errno
import hashlib
import json
import locale
import os
from types import SimpleNamespace

import pytest
import torch
from safetensors import SafetensorError
from torch import nn
from transformers import Trainer

from xllm.training.saving import checkpoints
from xllm.training.saving.checkpoints import (
    MANIFEST,
    SAVING,
    DiskFullError,
    WholeCheckpoints,
    disk_errors,
    fault,
    full_disk,
    is_full,
    last_whole_checkpoint,
    place,
    remove_checkpoints,
    seal,
    stored_bytes,
)
from xllm.training.saving.folders import ResumeError


@pytest.fixture
def sealed(tmp_path):
    """A checkpoint of three files, one of them in a folder."""
    folder = tmp_path / "checkpoint-2"
    (folder / "processor").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "weights.bin").write_bytes(bytes(range(100)))
    (folder / "processor" / "vocab.txt").write_text("a\nb\n")
    seal(folder, processes=3, learns=True)
    return folder


def test_the_manifest_counts_every_file(sealed):
    manifest = json.loads((sealed / MANIFEST).read_text())
    assert manifest["processes"] == 3
    assert manifest["learns"] is True
    assert set(manifest["files"]) == {"config.json", "weights.bin", os.path.join("processor", "vocab.txt")}
    assert manifest["files"]["weights.bin"] == [100, hashlib.sha256(bytes(range(100))).hexdigest()]


def flushes(monkeypatch):
    """The paths of what is flushed to the disk from now on."""
    paths, fsync = [], os.fsync
    monkeypatch.setattr(
        os, "fsync", lambda handle: paths.append(os.readlink(f"/proc/self/fd/{handle}")) or fsync(handle)
    )
    return paths


def test_a_sealed_checkpoint_is_on_the_disk(tmp_path, monkeypatch):
    """Its manifest too, and the names in every folder."""
    (tmp_path / "processor").mkdir()
    (tmp_path / "processor" / "vocab.txt").write_text("a")
    flushed, fsync = set(), os.fsync
    monkeypatch.setattr(
        os, "fsync", lambda handle: flushed.add(os.readlink(f"/proc/self/fd/{handle}")) or fsync(handle)
    )
    seal(tmp_path)
    assert flushed >= {str(path) for path in (tmp_path, *tmp_path.rglob("*"))}
    assert str(tmp_path / MANIFEST) in flushed


def test_digests_that_the_config_has_are_not_made_again(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text(json.dumps({checkpoints.RECORD: {"weights.bin": "known"}}))
    (tmp_path / "weights.bin").write_bytes(b"1234")
    made = []
    monkeypatch.setattr(checkpoints, "digests", lambda paths: made.extend(paths) or ["new"] * len(made))
    seal(tmp_path)
    assert [path.name for path in made] == ["config.json"]
    assert json.loads((tmp_path / MANIFEST).read_text())["files"] == {
        "config.json": [(tmp_path / "config.json").stat().st_size, "new"],
        "weights.bin": [4, "known"],
    }


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda folder: None, None),
        (lambda folder: (folder / MANIFEST).unlink(), "it has no manifest.json"),
        (lambda folder: (folder / MANIFEST).write_text("{"), "its manifest.json is damaged"),
        (lambda folder: (folder / MANIFEST).write_text("[]"), "its manifest.json is damaged"),
        (lambda folder: (folder / MANIFEST).write_text('{"files": {"a": 1}}'), "its manifest.json is damaged"),
        (lambda folder: (folder / "weights.bin").unlink(), "weights.bin is missing"),
        (lambda folder: (folder / "weights.bin").write_bytes(bytes(1001)), "weights.bin has 1,001 of 100 bytes"),
        (lambda folder: (folder / "weights.bin").write_bytes(bytes(100)), "weights.bin has been altered"),
        (lambda folder: (folder / "processor" / "vocab.txt").write_text("a\nc\n"), "processor/vocab.txt has been"),
    ],
)
def test_each_fault_is_told_apart(sealed, damage, said):
    damage(sealed)
    found = fault(sealed)
    assert found is None if said is None else found.startswith(said)


def test_names_are_read_as_they_were_written_in_every_locale(tmp_path):
    (tmp_path / "né.txt").write_text("a")
    seal(tmp_path)
    before = locale.setlocale(locale.LC_CTYPE)
    try:
        locale.setlocale(locale.LC_CTYPE, "C")
        assert fault(tmp_path) is None
    finally:
        locale.setlocale(locale.LC_CTYPE, before)


def whole(folder, step):
    path = folder / f"checkpoint-{step}"
    path.mkdir()
    (path / "weights.bin").write_bytes(b"1")
    seal(path)


def test_the_newest_is_the_largest_number(tmp_path, caplog):
    for step in (9, 10, 100):
        whole(tmp_path, step)
    (tmp_path / SAVING).mkdir()
    (tmp_path / "checkpoint-999").write_text("a file")
    (tmp_path / "checkpoint-best").mkdir()
    assert last_whole_checkpoint(tmp_path).name == "checkpoint-100"
    assert not caplog.records
    assert not (tmp_path / SAVING).exists()
    (tmp_path / "checkpoint-7").symlink_to(tmp_path / "checkpoint-best")  # as of another disk: it cannot be removed
    remove_checkpoints(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-7", "checkpoint-999", "checkpoint-best"]


def test_what_was_set_aside_before_stays(tmp_path, caplog):
    for _ in range(3):
        whole(tmp_path, 5)
        (tmp_path / "checkpoint-5" / "weights.bin").unlink()
        assert last_whole_checkpoint(tmp_path) is None
    aside = ["damaged-checkpoint-5", "damaged-checkpoint-5+", "damaged-checkpoint-5++"]
    assert sorted(path.name for path in tmp_path.iterdir()) == aside
    assert "1 damaged checkpoint(s)" in caplog.records[-1].getMessage()
    assert caplog.records[-1].getMessage().endswith("going on from the beginning of the stage")


def test_a_checkpoint_is_placed_with_its_config_last(tmp_path, monkeypatch):
    """And all that it names is on the disk before: whenever the machine stops, a config.json has its files."""
    saving = tmp_path / SAVING
    (saving / "zz").mkdir(parents=True)
    for name in ("config.json", "a.bin", "zz/x"):
        (saving / name).write_text("new")
    (tmp_path / "zz").mkdir()
    (tmp_path / "zz" / "old").write_text("of the one before")
    (tmp_path / "a.bin").write_text("of the one before")
    steps, replace, sync = [], os.replace, checkpoints._sync_entries
    monkeypatch.setattr(os, "replace", lambda a, b: steps.append(f"move {b.name}") or replace(a, b))
    monkeypatch.setattr(checkpoints, "_sync_entries", lambda path: steps.append(path.name) or sync(path))
    place(saving, tmp_path)
    assert set(steps[:5]) == {"config.json", "a.bin", "zz", "x", SAVING}
    assert steps[5:] == ["move a.bin", "move zz", tmp_path.name, "move config.json", tmp_path.name]
    assert (tmp_path / "a.bin").read_text() == "new"
    assert [path.name for path in (tmp_path / "zz").iterdir()] == ["x"]
    assert not saving.exists()


def raised(error, cause=None, context=None):
    error.__cause__, error.__context__ = cause, context
    return error


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (OSError(errno.ENOSPC, "x"), True),
        (OSError(errno.EDQUOT, "x"), True),
        (OSError(errno.EFBIG, "x"), True),
        (OSError(errno.EACCES, "x"), False),
        (SafetensorError("No space left on device (os error 28)"), True),
        (SafetensorError("a header of 7 bytes"), False),
        (RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"), True),
        (RuntimeError("out of memory"), False),
        (ValueError("No space left"), False),  # not what a writer raises
        (raised(ValueError("x"), cause=OSError(errno.ENOSPC, "x")), True),
        (raised(ValueError("x"), context=raised(KeyError("x"), context=OSError(errno.ENOSPC, "x"))), True),
        (raised(ValueError("x"), cause=KeyError("x"), context=OSError(errno.ENOSPC, "x")), False),
        (None, False),
    ],
    ids=str,
)
def test_what_a_full_disk_is(error, full):
    assert is_full(error) is full


def test_a_full_disk_names_its_file_once(tmp_path):
    folder = tmp_path / "not" / "there"
    with (
        pytest.raises(DiskFullError, match=r"^data.arrow: no room on the disk, [\d,]+ bytes are free; what"),
        full_disk(folder),
        full_disk(tmp_path),
    ):
        raise OSError(errno.ENOSPC, "No space", "data.arrow")
    with pytest.raises(DiskFullError, match=rf"^{folder}: no room on the disk"), full_disk(folder):
        raise SafetensorError("os error 28")
    with pytest.raises(OSError, match="Permission denied") as caught, full_disk(folder):
        raise PermissionError(errno.EACCES, "Permission denied")
    assert not isinstance(caught.value, DiskFullError)


@pytest.mark.parametrize(
    ("error", "kind", "said"),
    [
        (OSError(errno.ENOSPC, "x"), DiskFullError, "{}: no room for a checkpoint: about 1,234 bytes are needed, "),
        (KeyError("x"), KeyError, "'x'"),
    ],
)
def test_what_is_half_written_goes_whatever_the_error(tmp_path, error, kind, said):
    def write(error=None):
        saving.mkdir()
        with disk_errors(saving, lambda: 1234):
            (saving / "half").write_text("x")
            if error is not None:
                raise error

    saving = tmp_path / SAVING
    with pytest.raises(kind) as caught:
        write(error)
    assert str(caught.value).startswith(said.format(tmp_path))
    assert not saving.exists()
    with pytest.raises(kind), disk_errors(saving, lambda: 1234):
        raise error  # before anything is written
    write()
    assert saving.exists()


def test_the_size_of_a_checkpoint():
    model = nn.ModuleDict({"vision_tower": nn.Linear(3, 4, bias=False), "head": nn.Linear(4, 5)})
    model.config = SimpleNamespace(towers=None)
    assert stored_bytes(model) == 4 * (12 + 20 + 5)
    head = torch.optim.AdamW(model["head"].parameters())
    model["head"](torch.ones(4)).sum().backward()
    head.step()  # two moments and a counter of each parameter
    assert stored_bytes(model, head) == 4 * (12 + 25) + 2 * 4 * 25 + 2 * 4
    counted = SimpleNamespace(state={"weight": {"step": 7, "moment": torch.zeros(3)}})  # of another optimizer
    assert stored_bytes(model, counted) == 4 * (12 + 25) + 4 * 3
    model.config.towers = {checkpoints.part_of("vision_tower.weight"): {}}
    assert stored_bytes(model) == 4 * 25
    model.half()
    assert stored_bytes(model) == 2 * 25


class Tensors(nn.Module):
    """A frozen tensor, a trained one, one tied to another, one inside an adapter and one around which one is."""

    all_tied_weights_keys = ("tied",)

    def __init__(self):
        super().__init__()
        self.frozen = nn.Parameter(torch.zeros(1), requires_grad=False)
        self.trained, self.tied, self.added = (nn.Parameter(torch.zeros(1)) for _ in range(3))
        self.part = nn.ModuleDict({"base_layer": nn.Linear(1, 1, bias=False)}).requires_grad_(False)


@pytest.mark.parametrize(
    ("missing", "unexpected", "said"),
    [
        ([], [], None),
        (["frozen", "tied", "added", "nowhere"], ["frozen", "part.weight"], None),
        (["frozen", "trained"], [], r"the checkpoint lacks trained tensors, e.g. trained \(1 in all\)"),
        ([], ["trained", "other", "another"], r"holds other tensors, e.g. another \(2 in all\); nothing is resumed"),
        (["trained"], ["other"], "lacks trained tensors"),
    ],
)
def test_each_trained_tensor_is_in_the_checkpoint_or_elsewhere(monkeypatch, missing, unexpected, said):
    monkeypatch.setattr(checkpoints, "adapter_parameters", lambda model: ["added"])
    trainer = trainer_of(1)
    trainer.model, result = Tensors(), SimpleNamespace(missing_keys=missing, unexpected_keys=unexpected)
    if said is None:
        return trainer._issue_warnings_after_load(result)
    with pytest.raises(ValueError, match=said):
        trainer._issue_warnings_after_load(result)


def trainer_of(processes, deepspeed=None, **more):
    trainer = object.__new__(WholeCheckpoints)
    trainer.args = SimpleNamespace(world_size=processes, deepspeed=deepspeed, fsdp=None, fsdp_config=None, **more)
    return trainer


@pytest.mark.parametrize(
    ("saved", "said"),
    [
        ({"engine": "", "processes": 2}, None),
        ({"processes": 2}, None),  # of a version without engines
        ({"engine": "", "processes": 4}, "was saved by 4 processes and goes on with 2"),
        ({"engine": "zero3", "processes": 2}, "was saved with zero3, this run has neither of trainer.deepspeed and"),
    ],
)
def test_a_checkpoint_of_another_engine_is_not_taken(tmp_path, caplog, monkeypatch, saved, said):
    (tmp_path / MANIFEST).write_text(json.dumps(saved))
    monkeypatch.setattr(checkpoints, "engine_of", lambda args: "")
    if "engine" in saved and saved["engine"]:
        with pytest.raises(ResumeError, match=said):
            trainer_of(2)._check_shape(str(tmp_path))
        return
    trainer_of(2)._check_shape(str(tmp_path))
    assert [said in record.getMessage() for record in caplog.records] == [True] * (said is not None)


def test_an_engine_holds_its_parts_on_as_many_processes(tmp_path, monkeypatch):
    (tmp_path / MANIFEST).write_text(json.dumps({"engine": "zero3", "processes": 4}))
    monkeypatch.setattr(checkpoints, "engine_of", lambda args: "zero3")
    trainer_of(4)._check_shape(str(tmp_path))
    with pytest.raises(ResumeError, match="was saved by 4 processes, each its part; go on with as many"):
        trainer_of(2)._check_shape(str(tmp_path))


def test_all_ranks_go_on_with_the_checkpoint_that_the_first_finds(tmp_path, monkeypatch):
    told, there = [], tmp_path / "checkpoint-3"
    monkeypatch.setattr(checkpoints, "engine_of", lambda args: "")
    monkeypatch.setattr(checkpoints, "last_whole_checkpoint", {tmp_path: there, tmp_path / "new": None}.get)

    def broadcast(found):
        told.extend(found)
        return [told[0]]

    monkeypatch.setattr(checkpoints, "broadcast_object_list", broadcast)

    def last(folder):
        told.clear()
        return [trainer_of(2, output_dir=str(folder), should_save=is_first).last_checkpoint() for is_first in (1, 0)]

    there.mkdir()
    (there / MANIFEST).write_text(json.dumps({"engine": "", "processes": 2}))
    assert last(tmp_path) == [str(there)] * 2
    assert told == [str(there), None]
    assert last(tmp_path / "new") == [None] * 2
    (there / MANIFEST).write_text(json.dumps({"engine": "zero3", "processes": 2}))
    with pytest.raises(ResumeError, match="was saved with zero3"):
        last(tmp_path)


def test_the_best_checkpoint_is_where_it_was_placed(tmp_path, monkeypatch):
    """The Trainer's state names the folder that it was written in, which is gone; the same step may be saved twice."""
    trainer = trainer_of(1, save_total_limit=2)
    monkeypatch.setattr(checkpoints, "engine_of", lambda args: "")
    flushed = flushes(monkeypatch)
    for step in (1, 2, 2, 3, 4):
        written = tmp_path / SAVING / f"checkpoint-{step}"
        written.mkdir(parents=True)
        (written / "weights.bin").write_text(str(step))
        best = str(written) if step == 1 else str(tmp_path / "checkpoint-1")
        states = []
        trainer.state = SimpleNamespace(global_step=step, best_model_checkpoint=best, save_to_json=states.append)
        trainer._place_checkpoint(tmp_path / SAVING, tmp_path)
        assert trainer.state.best_model_checkpoint == str(tmp_path / "checkpoint-1")
        assert len(states) == (step == 1)
        assert not (tmp_path / SAVING).exists()
        assert fault(tmp_path / f"checkpoint-{step}") is None
        facts = json.loads((tmp_path / f"checkpoint-{step}" / MANIFEST).read_text())
        assert facts | {"processes": 1, "engine": "", "skipped": [], "learns": False} == facts
        assert flushed[-1] == str(tmp_path), "the name too"
        os.utime(tmp_path / f"checkpoint-{step}", (0, 10**9 - step))  # as a copy may have it
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-1", "checkpoint-4"], (
        "the best and the last"
    )


def test_one_rank_alone_clears_and_places(tmp_path, monkeypatch):
    """The others wait before it writes, until all have written, and until it is in its place."""
    left = tmp_path / SAVING / "left by a killed run"
    done = []
    monkeypatch.setattr(Trainer, "_save_checkpoint", lambda self, model, trial: done.append("writes"))
    monkeypatch.setattr(WholeCheckpoints, "_place_checkpoint", lambda self, saving, folder: done.append("places"))
    for saves, is_left in ((False, True), (True, True), (True, False)):
        if is_left:
            left.mkdir(parents=True, exist_ok=True)
        trainer = trainer_of(2, output_dir=str(tmp_path), should_save=saves)
        trainer.hp_search_backend, trainer.accelerator = (
            None,
            SimpleNamespace(wait_for_everyone=lambda: done.append("waits")),
        )
        trainer._save_checkpoint(None, None)
        assert left.exists() == (is_left and not saves)
        assert done == ["waits", "writes", "waits", *["places"] * saves, "waits"]
        done.clear()


def test_a_checkpoint_has_its_receipt_or_is_not_saved(tmp_path, monkeypatch):
    done = []
    monkeypatch.setattr(Trainer, "_save", lambda self, folder, tensors: done.append((folder, tensors)))

    def save(receipt, folder="here", saves=True):
        done.clear()
        trainer = trainer_of(1, output_dir=tmp_path, should_save=saves)
        trainer.receipt = receipt
        trainer._save(folder, "tensors")
        return done

    receipt = SimpleNamespace(check=lambda: done.append("checked"), write=done.append)
    assert save(None) == [("here", "tensors")]
    assert save(receipt) == ["checked", ("here", "tensors"), "here"]
    assert save(receipt, None) == ["checked", (None, "tensors"), str(tmp_path)]
    assert save(receipt, saves=False) == ["checked", ("here", "tensors")]
    receipt.check = {}.popitem
    with pytest.raises(KeyError):
        save(receipt)
    assert not done


@pytest.mark.parametrize(
    ("resumed", "step", "begins"),
    [(None, 0, (1, 2)), ("checkpoint-3", 3, (1, 2)), ("checkpoint-4", 4, (9, 0)), ("checkpoint-5", 5, (9, 0))],
)
def test_a_run_at_its_end_goes_through_no_epoch(monkeypatch, resumed, step, begins):
    """What was saved with other intervals of logging and saving goes on with those of the recipe."""
    computed = []
    monkeypatch.setattr(Trainer, "_init_training_state", lambda self, *args: (1, 2))
    trainer = trainer_of(1)
    trainer.state = SimpleNamespace(global_step=step, compute_steps=lambda *args: computed.append(args))
    assert trainer._init_training_state(4, 3, 9, resumed, None) == begins
    assert computed == ([] if resumed is None else [(trainer.args, 4)])


def test_data_are_told_the_epoch_where_they_ask(monkeypatch):
    monkeypatch.setattr(Trainer, "_run_epoch", lambda self, *args, **kwargs: (args, kwargs))
    trainer, told = trainer_of(1), []
    for trainer.train_dataset in ([], SimpleNamespace(set_epoch=told.append)):
        assert trainer._run_epoch(1, epoch=3) == ((1,), {"epoch": 3})
    assert told == [3]
