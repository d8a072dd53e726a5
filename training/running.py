# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""A stage that runs: training, receipt, lineage, checkpoint, evaluations."""

import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import PrinterCallback, TrainerCallback, set_seed
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from xllm.assembly.processors import save as save_checkpoint
from xllm.modeling_xllm.packing import packs_by_default
from xllm.modeling_xllm.tower_sources import part_of
from xllm.modeling_xllm.weight_files import read_json, write_json
from xllm.training.adapters import begin_lora
from xllm.training.batches.collator import XLLMDataCollator, chat_settings
from xllm.training.batches.notes import NamedBatches
from xllm.training.evaluation.evaluation import run_evaluation
from xllm.training.feature_cache import FeatureCache
from xllm.training.inspection.report import REPORT_NAME, StageReport
from xllm.training.preparing import Prepared, make_stage_one, switches, training_arguments
from xllm.training.saving.checkpoints import MANIFEST, SAVING, disk_errors, place, remove_checkpoints, stored_bytes
from xllm.training.saving.folders import STAGE_FILE, begin, check_same, read_record, stage_record
from xllm.training.saving.interruption import Interruption
from xllm.training.saving.lineage import (
    RECEIPT_NAME,
    FreezeReceipt,
    adapter_entry,
    adapter_fingerprint,
    interfaces_fingerprint,
    lineage_entry,
)
from xllm.training.stage_one import save_stage_one, stage_one_task
from xllm.training.stages import Stage, freeze_for_stage
from xllm.training.starts import reset_interfaces, start_from
from xllm.training.trainers.callbacks import JsonlCallback, NoCheckpointAtTheEnd, ProgressCallback
from xllm.training.trainers.engines import engine_copy, engine_of
from xllm.training.trainers.processes import first_alone, is_first
from xllm.training.trainers.trainer import XLLMTrainer


RESULTS = "results.json"


@dataclass
class StageResult:
    """What a stage gives: its folder, the parameters trained, the last logged losses, its evaluations by name."""

    folder: Path
    trained: list[str]
    log: dict[str, float]
    evaluations: dict[str, dict] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)


def run_prepared(
    model,
    processor,
    prepared: Prepared,
    folder: Path,
    seed: int,
    progress: Any,
    save: bool = True,
    heads=None,
    resume: bool = False,
    stop: Interruption | None = None,
) -> StageResult:
    """Train a stage that `prepare` has checked, in place, or go on with it; save it, evaluate it.

    Args:
        heads: where the heads of an earlier stage 1 are, if anywhere.
        resume (`bool`): go on from the last whole checkpoint in `folder`, if there is one.
        stop (`Interruption`, *optional*): ends the training after a step when a signal arrives.

    Raises:
        Interrupted: a signal has ended it. ResumeError: `folder` belongs to another run.
    """
    spec, stage, modalities = prepared.spec, prepared.stage, prepared.modalities
    set_seed(seed)
    reset_interfaces(model, spec.reset)
    start_from(model, spec.init_from)
    adapter = adapter_fingerprint(model)
    begin_lora(model, spec.lora)
    freeze_for_stage(model, stage, modalities, **switches(spec))
    receipt, parent = FreezeReceipt(model), interfaces_fingerprint(model)
    record = {**stage_record(prepared, seed), "start": {"frozen": receipt.fingerprint, "interfaces": parent}}
    before = read_record(folder) if resume else {}
    if before:
        check_same(folder, before, record)
    learner, task = make_learner(model, processor, prepared, heads, progress)
    trained = freeze_for_stage(learner, stage, modalities, **switches(spec))
    for part in {part_of(name) for name in trained if ".lora_" not in name} & set(model.config.towers or ()):
        del model.config.towers[part]  # trained here: it will no longer be what its source holds
    report = None
    if is_first():  # before an engine is at work
        report = _noted(StageReport(model, processor, learner, prepared, before.get("report")), record, folder, before)
    trainer = make_trainer(learner, processor, prepared, task, folder, seed, progress, stop)
    trainer.receipt, trainer.groups, trainer.skipped = receipt, spec.optim, prepared.train.skipped
    _train(trainer, prepared, receipt, progress, resume)
    if stop is not None and stop.step:
        stop.check(folder / f"{PREFIX_CHECKPOINT_DIR}-{stop.step}")
    frozen = receipt.check()
    adapter_now = adapter_entry(model, adapter, receipt, spec.lora is not None and spec.lora.merge)
    learner.eval()
    model.eval()
    log = next((entry for entry in reversed(trainer.state.log_history) if "loss" in entry), {})
    result = StageResult(folder, trained, log, skipped=prepared.train.skipped())
    model.config.stage = {"stage": stage.value, "modalities": modalities}
    weights, data = interfaces_fingerprint(model), record["data"]["train"]
    entry = lineage_entry(stage.value, modalities, parent, weights, data, frozen, adapter_now)
    model.config.lineage = [*(model.config.lineage or []), entry]
    heads_of = learner if learner is not model else None
    with first_alone() as is_mine:
        if is_mine and save:
            _save(model, processor, result, receipt, record, heads_of, prepared.keeps_checkpoints)
        elif is_mine and heads_of is not None:
            save_stage_one(learner, processor, folder)
        if stop is not None:
            stop.check(folder)
        if report is not None:
            evaluate(model, processor, prepared, result, heads_of, progress)
            report.write(folder, frozen, log, result.evaluations)
    return result


def _noted(report: StageReport, record: dict, folder: Path, before: dict) -> StageReport:
    """The report, what it will need being in the record; a stage that begins is written down with it."""
    record["report"] = report.begun
    if not before:
        begin(folder, record)
    return report


def make_learner(model, processor, prepared: Prepared, heads, progress: bool) -> tuple:
    """What is trained, the model or a stage-1 model around its modules (with `heads` of another), and the task."""
    if prepared.stage is not Stage.CONVERT:
        return model, "chat"
    learner = make_stage_one(model, processor, prepared, heads)
    if progress and is_first():
        sys.stderr.write(f"{prepared.title}: {learner.start}\n")
    return learner, stage_one_task(model.config, prepared.modalities)


def _train(trainer: XLLMTrainer, prepared: Prepared, receipt: FreezeReceipt, progress: bool, resume: bool) -> None:
    if (features := prepared.spec.data.cache_features) is not None:
        trainer.features = FeatureCache(features, trainer.model, receipt.before)
    checkpoint = trainer.last_checkpoint() if resume else None
    how = {}
    if checkpoint is not None:
        how["resume_from_checkpoint"] = checkpoint
        saved = read_json(Path(checkpoint, MANIFEST))
        prepared.train.skip_again(saved.get("skipped", ()))
        trainer.learns = saved.get("learns", False)
        if progress and trainer.is_world_process_zero():
            sys.stderr.write(f"{prepared.title}: goes on from {checkpoint}\n")
    trainer.train(**how)


def evaluate(model, processor, prepared: Prepared, result: StageResult, learner=None, progress=False) -> StageResult:
    """Run the evaluations of a stage that are still missing in `results.json`; `learner` is its stage-1 model."""
    path = result.folder / RESULTS
    result.evaluations = read_json(path)
    for evaluation, sources in zip(prepared.spec.evaluate, prepared.evaluations):
        if evaluation.name not in result.evaluations:
            result.evaluations[evaluation.name] = run_evaluation(
                model, processor, evaluation, prepared.modalities, result.folder, learner, progress, sources
            )
            write_json(path, result.evaluations)
    return result


def _make_up(record: dict, result: StageResult, prepared: Prepared, progress: bool, load: Callable) -> None:
    """What a stage that was trained lacks of its evaluations, and its report."""
    folder = result.folder
    evaluated = all(evaluation.name in result.evaluations for evaluation in prepared.spec.evaluate)
    begun = None if (folder / REPORT_NAME).is_file() else record.get("report")
    if evaluated and begun is None:
        return
    model, processor = load(folder)
    learner = make_stage_one(model, processor, prepared, folder) if prepared.stage is Stage.CONVERT else None
    evaluate(model, processor, prepared, result, learner and learner.eval(), progress)
    if begun is not None:
        receipt = read_json(folder / RECEIPT_NAME)
        frozen = {"tensors": len(receipt["tensors"]), "sha256": receipt["after"]}
        report = StageReport(model, processor, learner or model, prepared, begun)
        report.write(folder, frozen, result.log, result.evaluations)


def finished(
    folder: Path, prepared: Prepared, seed: int, progress: bool, load: Callable[[Path], tuple]
) -> StageResult:
    """The result of a stage that was trained by an earlier run; what its evaluations lack, and its report,
    are made up for.

    Args:
        load: opens a checkpoint as (model, processor).

    Raises:
        ResumeError: recipe or data are not those that it was trained with.
    """
    record = read_record(folder)
    check_same(folder, record, stage_record(prepared, seed))
    with first_alone() as is_mine:
        result = StageResult(folder, evaluations=read_json(folder / RESULTS), **record["result"])
        if is_mine:
            _make_up(record, result, prepared, progress, load)
    return result


def _fires_once_per_frame(learner) -> bool:
    return learner.config.cformer_config.cif_one_token_per_frame and learner.cformer.cif is not None


def make_trainer(
    learner, processor, prepared: Prepared, task: str, folder: Path, seed: int, progress: Any, stop=None
) -> XLLMTrainer:
    """The trainer of a stage that `prepare` has checked; `task` is the collator's."""
    data = prepared.spec.data
    collate = {"processor": processor, "task": task, "max_length": data.max_length, "loss_on": data.loss_on}
    if task == "chat":
        collate |= chat_settings(learner.config, learner.generation_config)
        packing = packs_by_default(learner) if data.packing is None else data.packing
        collate |= {"distills": prepared.spec.distill is not None, "packing": packing}
    else:
        collate |= {"modality": prepared.modalities[0], "text_tokenizer": learner.tokenizer}
    collator = XLLMDataCollator(augmentation=prepared.augmentation, **collate)
    callbacks: list[TrainerCallback] = [JsonlCallback(folder, prepared.train.skipped, collator.cuts)]
    if progress:
        callbacks.append(ProgressCallback(prepared.title, None if progress is True else progress))
    if not prepared.keeps_checkpoints:
        callbacks.append(NoCheckpointAtTheEnd())
    if stop is not None:
        callbacks.append(stop)
    args = training_arguments(prepared, folder, seed)
    engine = engine_of(args)
    trainer = XLLMTrainer(
        model=engine_copy(learner) if engine else learner,
        args=args,
        data_collator=NamedBatches(collator, task == "transcribe" and _fires_once_per_frame(learner)),
        train_dataset=prepared.train,
        eval_dataset=prepared.eval,
        processing_class=processor,
        callbacks=callbacks,
    )
    trainer.home = learner if engine else None
    trainer.distill = prepared.spec.distill
    trainer.title = prepared.title
    trainer.one_modality = data.one_modality
    trainer.remove_callback(PrinterCallback)  # prints to standard output, which belongs to the results
    return trainer


def _save(model, processor, result: StageResult, receipt: FreezeReceipt, record: dict, learner, keep: bool) -> None:
    """Write the checkpoint beside the logs, completely or not at all; those of the Trainer go unless they are kept."""
    saving = result.folder / SAVING
    shutil.rmtree(saving, ignore_errors=True)
    with disk_errors(saving, lambda: stored_bytes(model)):
        save_checkpoint(model, processor, saving)
        receipt.write(saving)
        if learner is not None:
            save_stage_one(learner, processor, saving)
        facts = {"trained": result.trained, "log": result.log, "skipped": result.skipped}
        write_json(saving / STAGE_FILE, {**record, "result": facts})
        place(saving, result.folder)
    if not keep:
        remove_checkpoints(result.folder)


__all__ = ["StageResult", "evaluate", "finished", "make_learner", "make_trainer", "run_prepared"]
