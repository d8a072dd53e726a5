# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Checkpoints that are whole or not there, whenever the process is killed or the disk is full.

    stage2-speech/.saving/checkpoint-500/    written here, every file and folder flushed to the disk, then renamed to
    stage2-speech/checkpoint-500/            with manifest.json: size and SHA-256 of each file

A stage's own checkpoint goes the same way, file by file, its config.json last. The checkpoint before stays until the
next is whole; one that has been damaged since is set aside, and the one before it is taken.
"""

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from safetensors import SafetensorError
from transformers import Trainer
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, rotate_checkpoints
from transformers.utils import CONFIG_NAME, logging

from xllm.modeling_xllm.tower_sources import part_of
from xllm.modeling_xllm.weight_files import RECORD, digests, read_json, write_json
from xllm.training.saving.folders import ResumeError
from xllm.training.saving.lineage import FreezeReceipt
from xllm.training.stages import adapter_parameters
from xllm.training.trainers.engines import engine_of


logger = logging.get_logger(__name__)

SAVING = ".saving"  # a checkpoint is written here and then moved to its place
MANIFEST = "manifest.json"
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# What the writers of safetensors and torch say instead of an error number.
DISK_FULL_WORDS = ("No space left", "os error 28", "File too large", "Disk quota", "failed writing file")


def sync_folder(folder: Path) -> None:
    """Flush every file and folder below `folder`, and itself, to the disk."""
    for path in (*folder.rglob("*"), folder):
        _sync_entries(path)


def seal(folder: Path, **facts) -> None:
    """Write the manifest of a checkpoint, with `facts`, and flush all of it to the disk.

    The digests of the weights are those that config.json has already.
    """
    known = read_json(folder / CONFIG_NAME).get(RECORD) or {}
    files = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}
    new = [name for name in files if name not in known]
    found = {**known, **dict(zip(new, digests(files[name] for name in new)))}
    sizes = {name: [path.stat().st_size, found[name]] for name, path in files.items()}
    write_json(folder / MANIFEST, {**facts, "files": sizes})
    sync_folder(folder)


def fault(folder: Path) -> str | None:
    """What is wrong with a checkpoint that was sealed: a few words, or None if it is whole."""
    try:
        files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        sizes = {name: size for name, (size, _) in files.items()}
    except FileNotFoundError:
        return f"it has no {MANIFEST}"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"its {MANIFEST} is damaged"
    for name, size in sizes.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size:,} of {size:,} bytes"
    found = digests(folder / name for name in files)
    altered = [name for name, digest in zip(files, found) if digest != files[name][1]]
    return f"{altered[0]} has been altered" if altered else None


def _numbered(folder: Path) -> list[Path]:
    """The checkpoints of a run, the newest first."""
    steps = {path: path.name.removeprefix(f"{PREFIX_CHECKPOINT_DIR}-") for path in folder.glob("checkpoint-*")}
    found = [path for path, step in steps.items() if step.isdigit() and path.is_dir()]
    return sorted(found, key=lambda path: int(steps[path]), reverse=True)


def last_whole_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint of a run that is whole; newer ones that are not are set aside, with a warning."""
    shutil.rmtree(folder / SAVING, ignore_errors=True)
    damaged, whole = [], None
    for path in _numbered(folder):
        if (problem := fault(path)) is None:
            whole = path
            break
        aside = path.with_name(f"damaged-{path.name}")
        while aside.exists():
            aside = aside.with_name(f"{aside.name}+")
        os.replace(path, aside)
        damaged.append(f"{path.name}: {problem}")
    if damaged:
        logger.warning(
            f"{folder}: {len(damaged)} damaged checkpoint(s) set aside as damaged-* ({'; '.join(damaged)}); going on "
            f"from {whole.name if whole else 'the beginning of the stage'}"
        )
    return whole


def remove_checkpoints(folder: Path) -> None:
    """Remove what only `--resume` needed."""
    for path in _numbered(folder):
        shutil.rmtree(path, ignore_errors=True)


def place(saving: Path, folder: Path) -> None:
    """Move a stage's own checkpoint to its place: config.json last, so that without it nothing is taken for one."""
    sync_folder(saving)
    for path in sorted(saving.iterdir(), key=lambda path: path.name == CONFIG_NAME):
        target = folder / path.name
        if target.is_dir():
            shutil.rmtree(target)
        if path.name == CONFIG_NAME:
            _sync_entries(folder)
        os.replace(path, target)
    saving.rmdir()
    _sync_entries(folder)


def _sync_entries(path: Path) -> None:
    """Flush a file, or the names in a folder, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class DiskFullError(OSError):
    """The disk is full; the message says where, and how to go on."""


@contextmanager
def full_disk(folder: Path) -> Iterator[None]:
    """A full disk is said in one line wherever a run in `folder` writes.

    Raises:
        DiskFullError: the message has the file or folder, and the bytes free.
    """
    try:
        yield
    except DiskFullError:
        raise
    except (OSError, SafetensorError) as error:
        if not is_full(error):
            raise
        there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        raise DiskFullError(
            f"{getattr(error, 'filename', None) or folder}: no room on the disk, {shutil.disk_usage(there).free:,} "
            "bytes are free; what was saved before is intact: make room and go on with --resume"
        ) from error


@contextmanager
def disk_errors(saving: Path, needed: Callable[[], int]) -> Iterator[None]:
    """What is half-written in `saving` is removed if the block fails; a full disk is said in one line.

    Raises:
        DiskFullError: the message has the folder and the bytes `needed` and free.
    """
    try:
        yield
    except Exception as error:
        shutil.rmtree(saving, ignore_errors=True)
        if not is_full(error):
            raise
        free = shutil.disk_usage(saving.parent).free
        raise DiskFullError(
            f"{saving.parent}: no room for a checkpoint: about {needed():,} bytes are needed, {free:,} are free; what "
            "was saved before is intact: make room and go on with --resume"
        ) from error


def is_full(error: BaseException | None) -> bool:
    """Whether a full disk is behind an error."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in DISK_FULL:
            return True
        writers = isinstance(error, (OSError, RuntimeError, SafetensorError))
        if writers and any(words in str(error) for words in DISK_FULL_WORDS):
            return True
        error = error.__cause__ or error.__context__
    return False


def stored_bytes(model, optimizer=None) -> int:
    """About how large a checkpoint is: the tensors of the model that no tower's source holds, the optimizer's."""
    towers = getattr(model.config, "towers", None) or {}
    tensors = [value for key, value in model.state_dict().items() if part_of(key) not in towers]
    for state in optimizer.state.values() if optimizer is not None else ():
        tensors += [value for value in state.values() if isinstance(value, torch.Tensor)]
    return sum(value.numel() * value.element_size() for value in tensors)


class WholeCheckpoints(Trainer):
    """The Trainer's own checkpoints, each written aside and renamed; with the freeze receipt."""

    model: Any
    receipt: FreezeReceipt | None = None
    skipped: Callable[[], list[str]] = staticmethod(list)  # the samples left out so far
    learns = False  # a gradient has reached what is trained, in this process or before the run was resumed
    _aside: str | None = None

    def _get_output_dir(self, trial) -> str:
        return self._aside or super()._get_output_dir(trial)

    def _save_checkpoint(self, model, trial) -> None:
        folder = Path(self._get_output_dir(trial))
        saving = folder / SAVING
        if self.args.should_save:
            shutil.rmtree(saving, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        with disk_errors(saving, lambda: stored_bytes(self.model, self.optimizer)):
            self._aside = str(saving)
            try:
                super()._save_checkpoint(model, trial)
            finally:
                self._aside = None
            self.accelerator.wait_for_everyone()  # every rank writes the state of its own random numbers
            if self.args.should_save:
                self._place_checkpoint(saving, folder)
        self.accelerator.wait_for_everyone()

    def _place_checkpoint(self, saving: Path, folder: Path) -> None:
        name = f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        if str(self.state.best_model_checkpoint).startswith(str(saving)):
            self.state.best_model_checkpoint = str(folder / name)
            self.state.save_to_json(str(saving / name / TRAINER_STATE_NAME))
        facts = {"processes": self.args.world_size, "engine": engine_of(self.args)}
        seal(saving / name, **facts, skipped=self.skipped(), learns=self.learns)
        if (folder / name).exists():  # the same step, saved again with its evaluation
            os.replace(folder / name, saving / "before")
        os.replace(saving / name, folder / name)
        _sync_entries(folder)
        shutil.rmtree(saving)
        rotate_checkpoints(
            output_dir=str(folder),
            save_total_limit=self.args.save_total_limit,
            best_model_checkpoint=self.state.best_model_checkpoint,
        )

    def _save(self, output_dir: Any = None, state_dict=None) -> None:
        """A checkpoint with its `frozen.json`; none at all if a frozen tensor has moved."""
        if self.receipt is not None:
            self.receipt.check()
        super()._save(output_dir, state_dict)
        if self.receipt is not None and self.args.should_save:
            self.receipt.write(output_dir or str(self.args.output_dir))

    def last_checkpoint(self) -> str | None:
        """Where to go on, the same on every rank; see `last_whole_checkpoint`.

        Raises:
            ResumeError: the engine is another, or holds the model on another number of processes.
        """
        found = last_whole_checkpoint(Path(str(self.args.output_dir))) if self.args.should_save else None
        path = broadcast_object_list([None if found is None else str(found)])[0]
        if path is not None:
            self._check_shape(path)
        return path

    def _check_shape(self, path: str) -> None:
        now, engine = self.args.world_size, engine_of(self.args)
        saved = {"engine": engine, **read_json(Path(path, MANIFEST))}
        if saved["engine"] != engine:
            names = [one or "neither of trainer.deepspeed and trainer.fsdp" for one in (saved["engine"], engine)]
            raise ResumeError(f"{path} was saved with {names[0]}, this run has {names[1]}; go on with the former")
        if saved["processes"] == now:
            return
        if engine:
            raise ResumeError(f"{path} was saved by {saved['processes']} processes, each its part; go on with as many")
        logger.warning(
            f"{path} was saved by {saved['processes']} processes and goes on with {now}: the weights will not be bit "
            "for bit those of an uninterrupted run"
        )

    def _run_epoch(self, *args, **kwargs):
        if hasattr(self.train_dataset, "set_epoch"):  # accelerate's data loader does not always pass it on
            self.train_dataset.set_epoch(kwargs["epoch"])
        return super()._run_epoch(*args, **kwargs)

    def _init_training_state(self, max_steps, *args):
        begun = super()._init_training_state(max_steps, *args)
        _, epochs, resumed, _ = args
        if resumed is None:
            return begun
        self.state.compute_steps(
            self.args, max_steps
        )  # how often to log, save and evaluate is the recipe's, not theirs
        return (epochs, 0) if self.state.global_step >= max_steps else begun

    def _issue_warnings_after_load(self, load_result) -> None:
        """Frozen towers come from their sources, an adapter has a file of its own; the rest is in the checkpoint.

        Raises:
            ValueError: a trained tensor is not there, or one that the model has not.
        """
        trained = {name for name, parameter in self.model.named_parameters() if parameter.requires_grad}
        elsewhere = {*getattr(self.model, "all_tied_weights_keys", ()), *adapter_parameters(self.model)}
        lost = sorted((trained - elsewhere) & set(load_result.missing_keys))
        own = {name.replace(".base_layer.", ".") for name in self.model.state_dict()}
        if wrong := lost or sorted(set(load_result.unexpected_keys) - own):
            what = "lacks trained" if lost else "holds other"
            raise ValueError(
                f"the checkpoint {what} tensors, e.g. {wrong[0]} ({len(wrong)} in all); nothing is resumed"
            )


__all__ = [
    "MANIFEST",
    "SAVING",
    "WholeCheckpoints",
    "disk_errors",
    "fault",
    "full_disk",
    "is_full",
    "last_whole_checkpoint",
    "place",
    "remove_checkpoints",
    "seal",
    "stored_bytes",
    "sync_folder",
]
