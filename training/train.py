# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Runs a recipe: its stages one after the other, each from the previous one's checkpoint.

    train("recipe.yaml", ["trainer.max_steps=100", "output_dir=runs/a"]) -> TrainingResult    (a file, name or dict)
    run_stage(model, processor, stage, folder) -> StageResult    (objects in memory; `stage` is a StageSpec or a dict)

A data source may be `{"dataset": [...]}` with samples or a `datasets.Dataset` instead of a path. Everything that can
be wrong with recipe, model and data files is found before anything is written. A stage leaves, in
`output_dir/stageN-...`: the checkpoint that `from_pretrained`, the next stage and `xllm chat` open, `frozen.json`
(hashes of what did not move), `log.jsonl`, `losses.png`, the heads of stage 1, and `results.json` of its evaluations.

Deviations from the authors' loop: the Trainer's semantics (gradients averaged over accumulated tokens, warm-up in
optimiser steps, cosine per step, clipping at 1.0) instead of summed gradients and a per-epoch cosine.
"""

import os
import shutil
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback, TrainingArguments, set_seed

from xllm.assembly.processors import save
from xllm.modeling_xllm.conversion.output import check_unused
from xllm.modeling_xllm.tower_sources import part_of
from xllm.modeling_xllm.weight_files import copy_tensors, resolve_source, write_json
from xllm.training.augmentation import Augmentation
from xllm.training.callbacks import JsonlCallback, ProgressCallback
from xllm.training.collator import XLLMDataCollator
from xllm.training.data import ChatDataset
from xllm.training.evaluation import check_evaluation, run_evaluation
from xllm.training.lineage import FreezeReceipt, data_fingerprint, interfaces_fingerprint, lineage_entry
from xllm.training.media_rows import media_rows
from xllm.training.recipe import Recipe, RecipeError, StageSpec, load_recipe
from xllm.training.sources import Sample
from xllm.training.stage_one import build_stage_one, save_stage_one, stage_one_task
from xllm.training.stages import Stage, StageError, freeze_for_stage, resolve_modalities, resolve_stage
from xllm.training.strict import build
from xllm.training.trainer import XLLMTrainer


OTHER_FOLDER = "; choose another output_dir"
SAVING = ".saving"  # a checkpoint is written here and then moved to its place, config.json last


@dataclass
class StageResult:
    """What a stage gives: its folder, the parameters trained, the last logged losses, its evaluations by name."""

    folder: Path
    trained: list[str]
    log: dict[str, float]
    evaluations: dict[str, dict] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)


@dataclass
class TrainingResult:
    """Results of all stages; `checkpoint` is the last one's folder."""

    stages: list[StageResult]

    @property
    def checkpoint(self) -> Path:
        return self.stages[-1].folder


@dataclass
class _Prepared:
    """A stage whose recipe, model and data have been checked."""

    spec: StageSpec
    stage: Stage
    modalities: list[str]
    train: ChatDataset
    eval: ChatDataset | None
    augmentation: Augmentation
    arguments: dict[str, Any]
    evaluations: list[list[list[Sample]]]  # samples of each evaluation, by source

    @property
    def title(self) -> str:
        names = "text" if self.stage is Stage.TEXT else "+".join(self.modalities)
        return f"stage {self.stage.value} ({names})"


def train(
    recipe: str | Path | Mapping | Recipe,
    overrides: Iterable[str] | Mapping[str, Any] = (),
    progress: bool = True,
    trust_remote_code: bool = False,
) -> TrainingResult:
    """Run all stages of a recipe.

    Args:
        recipe: a YAML file, the name of a shipped recipe, a dict of the same form, or a `Recipe`.
        overrides: `"a.b=value"` strings, or a mapping of dotted keys.
        progress (`bool`): show progress on standard error.
        trust_remote_code (`bool`): run the user's modules that lie beside the model.

    Raises:
        RecipeError: see `load_recipe`. StageError: a stage does not fit the model. DataError: see `load_source`.
        CheckpointError: the model cannot be opened. ValueError: the output folder is in use.
    """
    recipe, model, processor, prepared = _prepare_all(recipe, overrides, trust_remote_code)
    output = Path(recipe.output_dir).expanduser()
    results, heads = [], defaultdict(lambda: recipe.model)
    for stage in prepared:
        folder = output / stage.spec.folder
        first = stage.modalities[0] if stage.modalities else ""
        results.append(_run(model, processor, stage, folder, recipe.seed, progress, heads=heads[first]))
        if stage.stage is Stage.CONVERT:
            heads[first] = folder
    return TrainingResult(results)


def check(
    recipe: str | Path | Mapping | Recipe,
    overrides: Iterable[str] | Mapping[str, Any] = (),
    trust_remote_code: bool = False,
) -> list[str]:
    """What `train` would do, a line per stage, after all its checks; nothing is trained or written."""
    recipe, model, _, prepared = _prepare_all(recipe, overrides, trust_remote_code)
    lines = []
    for stage in prepared:
        freeze_for_stage(model, stage.stage, stage.modalities, **_switches(stage.spec))
        count = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        folder = Path(recipe.output_dir).expanduser() / stage.spec.folder
        lines.append(f"{stage.title}: {len(stage.train)} samples, {count:,} parameters -> {folder}")
    return lines


def _prepare_all(recipe, overrides, trust_remote_code: bool = False) -> tuple[Recipe, Any, Any, list[_Prepared]]:
    recipe = load_recipe(recipe, overrides)
    for stage in recipe.stages:
        check_unused(Path(recipe.output_dir).expanduser() / stage.folder, OTHER_FOLDER)
    set_seed(recipe.seed)
    model, processor = _open_model(recipe, trust_remote_code)
    media = {}  # what one stage has decoded the next need not
    prepared = [_prepare(model, processor, stage, recipe.seed, media) for stage in recipe.stages]
    converted = set()  # a later stage 1 of the same row continues the heads of the first
    for stage in prepared:
        if stage.stage is Stage.CONVERT:
            heads = None if stage.modalities[0] in converted else recipe.model
            _stage_one(model, processor, stage, heads, check_only=True)
            converted.add(stage.modalities[0])
    return recipe, model, processor, prepared


def run_stage(
    model,
    processor,
    stage: StageSpec | Mapping,
    folder: str | Path,
    seed: int = 42,
    progress: bool = True,
    save: bool = True,
) -> StageResult:
    """Run one stage on a model in memory; the model is trained in place.

    Args:
        model (`XLLMForConditionalGeneration`), processor (`XLLMProcessor`).
        stage (`StageSpec` or `dict`): as in a recipe; a source may hold a `dataset` instead of a `path`.
        folder: for checkpoint, log and plot.
        save (`bool`): write the checkpoint; without it only log, plot and heads.

    Raises:
        as `train`.
    """
    spec = build(StageSpec, dict(stage) if isinstance(stage, Mapping) else stage, "stage", "")
    check_unused(folder, OTHER_FOLDER)
    prepared = _prepare(model, processor, spec, seed)
    return _run(model, processor, prepared, Path(folder), seed, progress, save)


def _open_model(recipe: Recipe, trust_remote_code: bool = False):
    if recipe.init is not None:
        from xllm.training.standins import build_standin

        return build_standin(recipe.init, recipe.source)
    from xllm.assembly.opening import load_checkpoint

    model, processor = load_checkpoint(recipe.model, trust_remote_code)
    for tower in (model.config.towers or {}).values():  # relative to this checkpoint, but the next one lies elsewhere
        tower["name_or_path"] = resolve_source(tower["name_or_path"], recipe.model)
    return model, processor


def _prepare(model, processor, spec: StageSpec, seed: int, media: dict | None = None) -> _Prepared:
    """Check a stage against model and data; nothing is trained or written."""
    stage = resolve_stage(spec.stage)
    modalities = resolve_modalities(model.config, spec.modalities)
    if stage is Stage.CONVERT:
        stage_one_task(model.config, modalities, spec.objective, spec.text_side)
    elif given := [name for name in ("objective", "text_side", "text_tokenizer") if getattr(spec, name)]:
        raise StageError(f"{given[0]} belongs to stage 1; stage {stage.value} learns to say the answer")
    freeze_for_stage(model, stage, modalities, **_switches(spec))
    _check_init_from(model.config, spec)
    augmentation = Augmentation.from_spec(spec.data.augment)
    common = {"processor": processor, "modalities": modalities, "on_error": spec.data.on_error, "seed": seed}
    common["cache_media"] = spec.data.cache_media and (True if media is None else media)
    train_set = ChatDataset.from_specs(spec.data.train, augmentation=augmentation, **common)
    eval_set = ChatDataset.from_specs(spec.data.eval, **common) if spec.data.eval else None
    evaluations = [check_evaluation(evaluation, media_rows(processor, modalities)) for evaluation in spec.evaluate]
    arguments = {"eval_strategy": "epoch" if eval_set else "no", **spec.trainer}
    if eval_set is None and arguments["eval_strategy"] != "no":
        raise RecipeError(f"trainer.eval_strategy is {arguments['eval_strategy']!r}, but data.eval is empty")
    prepared = _Prepared(spec, stage, modalities, train_set, eval_set, augmentation, arguments, evaluations)
    try:
        _training_arguments(prepared, Path("unused"), seed)
    except (TypeError, ValueError) as error:
        raise RecipeError(f"stage {stage.value}: trainer: {error}") from error
    return prepared


def _stage_one(model, processor, stage: _Prepared, heads, check_only: bool = False):
    """The stage-1 model of a stage, or, with `check_only`, the errors that it would be built with."""
    spec = stage.spec
    return build_stage_one(
        model, processor, stage.modalities[0], spec.objective, heads, spec.text_side, spec.text_tokenizer, check_only
    )


def _switches(spec: StageSpec) -> dict[str, bool]:
    names = ("train_encoder", "train_query_tokens", "train_shared")
    return {name: getattr(spec, name) for name in names}


def _check_init_from(config, spec: StageSpec) -> None:
    for name, other in spec.init_from.items():
        resolve_modalities(config, [name, other])
        if config.modalities[name].converter != config.modalities[other].converter:
            raise StageError(f"init_from: {name} and {other} have different converters")


def _start_from(model, init_from: dict[str, str]) -> None:
    """Give an interface what another has learnt (video's stage 2 starts from the image interface, paper sec. 3.2)."""
    for name, other in init_from.items():
        own, given = (model.model.interfaces[row].state_dict() for row in (name, other))
        copy_tensors({key: given[key] for key in own.keys() & given.keys()}, own, f"init_from: {other} for {name}")


def _run(
    model, processor, prepared: _Prepared, folder: Path, seed: int, progress: bool, save: bool = True, heads=None
) -> StageResult:
    spec, stage, modalities = prepared.spec, prepared.stage, prepared.modalities
    set_seed(seed)
    _start_from(model, spec.init_from)
    freeze_for_stage(model, stage, modalities, **_switches(spec))
    receipt, parent = FreezeReceipt(model), interfaces_fingerprint(model)
    learner, task = model, "chat"
    if stage is Stage.CONVERT:
        task = stage_one_task(model.config, modalities)
        learner = _stage_one(model, processor, prepared, heads)
        if progress:
            sys.stderr.write(f"{prepared.title}: {learner.start}\n")
    trained = freeze_for_stage(learner, stage, modalities, **_switches(spec))
    for part in {part_of(name) for name in trained} & set(model.config.towers or ()):
        del model.config.towers[part]  # trained here: it will no longer be what its source holds
    trainer = _make_trainer(learner, processor, prepared, task, folder, seed, progress)
    trainer.receipt = receipt
    trainer.train()
    frozen = receipt.check()
    learner.eval()
    model.eval()
    log = next((entry for entry in reversed(trainer.state.log_history) if "loss" in entry), {})
    result = StageResult(folder, trained, log, skipped=prepared.train.skipped())
    model.config.stage = {"stage": stage.value, "modalities": modalities}
    data, weights = data_fingerprint(prepared.train.samples), interfaces_fingerprint(model)
    entry = lineage_entry(stage.value, modalities, parent, weights, data, frozen)
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


def _training_arguments(prepared: _Prepared, folder: Path, seed: int) -> TrainingArguments:
    settings = {
        "save_strategy": "no",
        "logging_steps": 10,
        "report_to": "none",
        "prediction_loss_only": True,
        "dataloader_pin_memory": torch.cuda.is_available(),
        **prepared.arguments,
        "output_dir": str(folder),
        "seed": seed,
        "remove_unused_columns": False,
        "label_names": ["labels"],
        "disable_tqdm": True,
        "ddp_find_unused_parameters": False,  # the model touches every trained parameter in every batch
    }
    return TrainingArguments(**settings)


def _make_trainer(
    learner, processor, prepared: _Prepared, task: str, folder: Path, seed: int, progress: bool
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
        args=_training_arguments(prepared, folder, seed),
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
    save(model, processor, saving)
    receipt.write(saving)
    for path in sorted(saving.iterdir(), key=lambda path: path.name == "config.json"):
        os.replace(path, folder / path.name)
    saving.rmdir()


def write_summary(result: TrainingResult, stream=None) -> None:
    """Where each stage's checkpoint is, and what its evaluations found."""
    stream = sys.stderr if stream is None else stream
    for stage in result.stages:
        loss = stage.log.get("loss")
        stream.write(f"{stage.folder}" + ("" if loss is None else f" (last loss {loss:.4f})") + "\n")
        if stage.skipped:
            stream.write(f"  {len(stage.skipped)} samples skipped, named in {stage.folder / 'log.jsonl'}\n")
        for name, found in stage.evaluations.items():
            stream.write(f"  {name}: {found['metric']} {100 * found['value']:.1f} % (n = {found['n']})\n")


__all__ = ["StageResult", "TrainingResult", "run_stage", "train", "write_summary"]
