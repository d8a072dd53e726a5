# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""What a checkpoint and its freeze receipt cost per GB, beside plain hashing and `safetensors.save_file`.

    python benchmarks/save_cost.py [--frozen 0.5] [--trained 0.25] [--repeats 5]

A model of so many GB of frozen and of trained tensors (one interface, float32) is saved by `XLLMTrainer` as in the
middle of a stage, with the state of its optimizer; what is frozen is in its sources, as after `xllm init`. Printed:
seconds per GB (medians; the parts take turns in one process) of taking the receipt, of one SHA-256 over the same
tensors one after the other, of the whole save, of `safetensors.save_file`, `torch.save` and a flush of the same bytes;
and their ratios. How often each byte of frozen tensors, and of files, is hashed in a save is counted.
"""

import argparse
import hashlib
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from unittest import mock

import torch
from safetensors.torch import save_file
from transformers import TrainingArguments, set_seed
from transformers.utils import logging

from xllm.assembly.opening import load_checkpoint
from xllm.assembly.tiny import build_tiny
from xllm.modeling_xllm import weight_files
from xllm.modeling_xllm.tower_sources import part_of
from xllm.training.batches.collator import XLLMDataCollator
from xllm.training.saving import checkpoints, lineage
from xllm.training.saving.lineage import FreezeReceipt
from xllm.training.stages import freeze_for_stage, frozen_tensors
from xllm.training.trainers.trainer import XLLMTrainer


def enlarge(model, args: argparse.Namespace) -> None:
    """Frozen layers and trained weights of the given sizes, beside the tiny ones."""
    width, count = 1024, max(1, round(args.frozen * 1e9 / 4 / 1024**2))
    language = model.model.language_model
    language.extra = torch.nn.ModuleList(torch.nn.Linear(width, width, bias=False) for _ in range(count))
    language.extra.requires_grad_(False)
    interface = model.model.interfaces["image"]
    count = max(1, round(args.trained * 1e9 / 4 / 1024**2))
    interface.adapter.extra = torch.nn.ModuleList(torch.nn.Linear(width, width, bias=False) for _ in range(count))


def seconds(do) -> float:
    """How long it takes."""
    began = time.perf_counter()
    do()
    return time.perf_counter() - began


def plain_hash(tensors: list[torch.Tensor]) -> None:
    """One after the other."""
    for tensor in tensors:
        hashlib.sha256(tensor.detach().numpy()).hexdigest()


def plain_save(folder: Path, tensors: dict[str, torch.Tensor], state: dict) -> None:
    """What has to be written, flushed; what was written before goes when it is whole, as of checkpoints."""
    for name in ("plain.safetensors", "plain.pt"):
        aside = folder / f"next-{name}"
        save_file(tensors, aside) if name.endswith("safetensors") else torch.save(state, aside)
        with aside.open("rb") as file:
            os.fsync(file.fileno())
    for name in ("plain.safetensors", "plain.pt"):
        os.replace(folder / f"next-{name}", folder / name)


def counted_save(trainer: XLLMTrainer) -> dict[str, float]:
    """How often bytes are hashed in one save: of frozen tensors, and of the files that it writes."""
    frozen = sum(tensor.nbytes for tensor in frozen_tensors(trainer.model).values())
    hashed = {"tensors": 0, "files": 0}
    digest, digests = lineage.tensor_digest, weight_files.digests

    def count_tensor(tensor):
        hashed["tensors"] += tensor.nbytes
        return digest(tensor)

    def count_files(files):
        files = list(files)
        hashed["files"] += sum(Path(file).stat().st_size for file in files)
        return digests(files)

    with (
        mock.patch.object(lineage, "tensor_digest", count_tensor),
        mock.patch.object(weight_files, "digests", count_files),
        mock.patch.object(checkpoints, "digests", count_files),
    ):
        trainer._save_checkpoint(trainer.model, None)
    (folder,) = Path(trainer.args.output_dir).glob("checkpoint-*")
    written = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return {"frozen tensors": hashed["tensors"] / frozen, "files": hashed["files"] / written}


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frozen", type=float, default=0.5)
    parser.add_argument("--trained", type=float, default=0.25)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    logging.set_verbosity_error()
    set_seed(0)
    times: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model, processor = load_checkpoint(str(build_tiny(folder / "tiny")))
        enlarge(model, args)
        parts = {part_of(name) for name, _ in model.named_parameters()} - {"interfaces"}
        model.config.towers = {part: {"name_or_path": str(folder / "tiny"), "revision": None} for part in parts}
        freeze_for_stage(model, 2, "image")
        how = {"output_dir": str(folder / "run"), "report_to": "none", "use_cpu": True, "save_total_limit": 1}
        arguments = TrainingArguments(**how, remove_unused_columns=False, label_names=["labels"])
        trainer = XLLMTrainer(model, arguments, XLLMDataCollator(processor), train_dataset=[{}])
        trainer.create_optimizer_and_scheduler(10)
        for group in trainer.optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = torch.zeros_like(parameter)
        trainer.optimizer.step()
        trainer.receipt = FreezeReceipt(model)
        frozen = list(frozen_tensors(model).values())
        trained = {name: tensor.detach() for name, tensor in model.named_parameters() if tensor.requires_grad}
        state = trainer.optimizer.state_dict()
        passes = counted_save(trainer)
        gb = {"frozen": sum(tensor.nbytes for tensor in frozen) / 1e9}
        gb["written"] = sum(path.stat().st_size for path in (folder / "run").rglob("*") if path.is_file()) / 1e9
        for _ in range(args.repeats):
            parts = {
                "receipt": (lambda: trainer.receipt.check(), "frozen"),
                "plain SHA-256": (lambda: plain_hash(frozen), "frozen"),
                "save": (lambda: trainer._save_checkpoint(model, None), "written"),
                "save_file, torch.save, fsync": (lambda: plain_save(folder, trained, state), "written"),
            }
            for part, (do, which) in parts.items():
                times.setdefault(part, []).append(seconds(do) / gb[which])
    per_gb = {part: statistics.median(values) for part, values in times.items()}
    ratios = {
        "receipt / plain SHA-256": per_gb["receipt"] / per_gb["plain SHA-256"],
        "save, receipt aside / plain save": (per_gb["save"] - per_gb["receipt"] * gb["frozen"] / gb["written"])
        / per_gb["save_file, torch.save, fsync"],
    }
    found = {"GB": gb, "seconds per GB": per_gb, "ratios": ratios, "times each byte is hashed": passes}
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
