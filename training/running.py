# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""A stage that runs: training, receipt, lineage, checkpoint, evaluations."""

import os
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path

from transformers import PrinterCallback, set_seed

from xllm.assembly.processors import save as save_checkpoint
from xllm.modeling_xllm.tower_sources import part_of
from xllm.modeling_xllm.weight_files import copy_tensors, write_json
from xllm.training.adapters import begin_lora
from xllm.training.callbacks import JsonlCallback, ProgressCallback
from xllm.training.collator import XLLMDataCollator
from xllm.training.evaluation import run_evaluation
from xllm.training.lineage import (
    FreezeReceipt,
    adapter_entry,
    adapter_fingerprint,
    data_fingerprint,
    interfaces_fingerprint,
    lineage_entry,
)
from xllm.training.preparing import Prepared, make_stage_one, switches, training_arguments
from xllm.training.stage_one import save_stage_one, stage_one_task
from xllm.training.stages import Stage, freeze_for_stage
from xllm.training.trainer import XLLMTrainer


SAVING = ".saving"  # a checkpoint is written here and then moved to its place, config.json last


@dataclass
class StageResult:
    """What a stage gives: its folder, the parameters trained, the last logged losses, its evaluations by name."""

    folder: Path
    trained: list[str]
    log: dict[str, float]
    evaluations: dict[str, dict] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)


def _start_from(model, init_from: dict[str, str]) -> None:
    """Give an interface what another has learnt (video's stage 2 starts from the image interface, paper sec. 3.2)."""
    for name, other in init_from.items():
        own, given = (model.model.interfaces[row].state_dict() for row in (name, other))
        copy_tensors({key: given[key] for key in own.keys() & given.keys()}, own, f"init_from: {other} for {name}")


def run_prepared(
    model, processor, prepared: Prepared, folder: Path, seed: int, progress: bool, save: bool = True, heads=None
) -> StageResult:
    """Train a stage that `prepare` has checked, in place; save it, evaluate it."""
    spec, stage, modalities = prepared.spec, prepared.stage, prepared.modalities
    set_seed(seed)
    _start_from(model, spec.init_from)
    adapter = adapter_fingerprint(model)
    begin_lora(model, spec.lora)
    freeze_for_stage(model, stage, modalities, **switches(spec))
    receipt, parent = FreezeReceipt(model), interfaces_fingerprint(model)
    learner, task = model, "chat"
    if stage is Stage.CONVERT:
        task = stage_one_task(model.config, modalities)
        learner = make_stage_one(model, processor, prepared, heads)
        if progress:
            sys.stderr.write(f"{prepared.title}: {learner.start}\n")
    trained = freeze_for_stage(learner, stage, modalities, **switches(spec))
    for part in {part_of(name) for name in trained if ".lora_" not in name} & set(model.config.towers or ()):
        del model.config.towers[part]  # trained here: it will no longer be what its source holds
    trainer = _make_trainer(learner, processor, prepared, task, folder, seed, progress)
    trainer.receipt, trainer.groups = receipt, spec.optim
    trainer.train()
    frozen = receipt.check()
    adapter_now = adapter_entry(model, adapter, receipt, spec.lora is not None and spec.lora.merge)
    learner.eval()
    model.eval()
    log = next((entry for entry in reversed(trainer.state.log_history) if "loss" in entry), {})
    result = StageResult(folder, trained, log, skipped=prepared.train.skipped())
    model.config.stage = {"stage": stage.value, "modalities": modalities}
    data, weights = data_fingerprint(prepared.train.samples), interfaces_fingerprint(model)
    entry = lineage_entry(stage.value, modalities, parent, weights, data, frozen, adapter_now)
    model.config.lineage = [*(model.config.lineage or []), entry]
    if not trainer.is_world_process_zero():
        return result
    if save:
        _save(model, processor, folder, receipt)
    if learner is not model:
        save_stage_one(learner, processor, folder)
    for evaluation, sources in zip(spec.evaluate, prepared.evaluations):
        stage_one = learner if learner is not model else None
        result.evaluations[evaluation.name] = run_evaluation(
            model, processor, evaluation, modalities, folder, stage_one, progress, sources
        )
    if result.evaluations:
        write_json(folder / "results.json", result.evaluations)
    return result


def _make_trainer(
    learner, processor, prepared: Prepared, task: str, folder: Path, seed: int, progress: bool
) -> XLLMTrainer:
    data = prepared.spec.data
    collate = {"processor": processor, "task": task, "max_length": data.max_length, "loss_on": data.loss_on}
    if task != "chat":
        collate |= {"modality": prepared.modalities[0], "text_tokenizer": learner.tokenizer}
    callbacks = [JsonlCallback(folder, prepared.train.skipped)]
    if progress:
        callbacks.append(ProgressCallback(prepared.title))
    trainer = XLLMTrainer(
        model=learner,
        args=training_arguments(prepared, folder, seed),
        data_collator=XLLMDataCollator(augmentation=prepared.augmentation, **collate),
        train_dataset=prepared.train,
        eval_dataset=prepared.eval,
        processing_class=processor,
        callbacks=callbacks,
    )
    trainer.remove_callback(PrinterCallback)  # prints to standard output, which belongs to the results
    return trainer


def _save(model, processor, folder: Path, receipt: FreezeReceipt) -> None:
    """Write the checkpoint beside the logs, completely or not at all."""
    saving = folder / SAVING
    shutil.rmtree(saving, ignore_errors=True)
    save_checkpoint(model, processor, saving)
    receipt.write(saving)
    for path in sorted(saving.iterdir(), key=lambda path: path.name == "config.json"):
        os.replace(path, folder / path.name)
    saving.rmdir()


__all__ = ["StageResult", "run_prepared"]
