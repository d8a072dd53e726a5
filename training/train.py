# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Runs a recipe: its stages one after the other, each from the previous one's checkpoint.

    train("recipe.yaml", ["trainer.max_steps=100", "output_dir=runs/a"]) -> TrainingResult    (a file, name or dict)
    run_stage(model, processor, stage, folder) -> StageResult    (objects in memory; `stage` is a StageSpec or a dict)

A data source may be `{"dataset": [...]}` with samples or a `datasets.Dataset` instead of a path. Everything that can
be wrong with recipe, model and data files is found before anything is written. A stage leaves, in
`output_dir/stageN-...`: the checkpoint that `from_pretrained`, the next stage and `xllm chat` open, `frozen.json`
(hashes of what did not move), `log.jsonl`, `losses.png`, `report.html`, the heads of stage 1, and `results.json` of
its evaluations.

Deviations from the authors' loop: the Trainer's semantics (gradients averaged over accumulated tokens, warm-up in
optimiser steps, cosine per step, clipping at 1.0) instead of summed gradients and a per-epoch cosine.
"""

import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import set_seed

from xllm.modeling_xllm.tower_sources import part_of
from xllm.modeling_xllm.weight_files import resolve_source
from xllm.training.adapters import begin_lora, check_adapters, merge_lora
from xllm.training.preparing import Prepared, check_optim, make_stage_one, prepare, switches
from xllm.training.recipes.recipe import Recipe, StageSpec, load_recipe
from xllm.training.recipes.strict import build
from xllm.training.running import StageResult, finished, run_prepared
from xllm.training.saving.checkpoints import full_disk
from xllm.training.saving.folders import (
    OTHER_FOLDER,
    ResumeError,
    check_free,
    check_same,
    is_finished,
    list_stages,
    locked,
    noted_end,
    read_record,
    stage_record,
)
from xllm.training.saving.interruption import Interruption
from xllm.training.stages import Stage, StageError, freeze_for_stage
from xllm.training.trainers.processes import is_first


@dataclass
class TrainingResult:
    """Results of all stages; `checkpoint` is the last one's folder."""

    stages: list[StageResult]

    @property
    def checkpoint(self) -> Path:
        return self.stages[-1].folder


def train(
    recipe: str | Path | Mapping | Recipe,
    overrides: Iterable[str] | Mapping[str, Any] = (),
    progress: Any = True,
    trust_remote_code: bool = False,
    resume: bool = False,
) -> TrainingResult:
    """Run all stages of a recipe.

    Args:
        recipe: a YAML file, the name of a shipped recipe, a dict of the same form, or a `Recipe`.
        overrides: `"a.b=value"` strings, or a mapping of dotted keys.
        progress (`bool`): show progress on standard error; or a stream to show it on.
        trust_remote_code (`bool`): run the user's modules that lie beside the model.
        resume (`bool`): go on where a run in the same folder has stopped: finished stages are not run again, one that
            was interrupted goes on from its last whole checkpoint. A folder that is yet to be used is begun.

    Raises:
        RecipeError: see `load_recipe`. StageError: a stage does not fit the model. DataError: see `load_source`.
        CheckpointError: the model cannot be opened. ResumeError: the output folder is in use; with `resume`, it was
            begun with another recipe, other data or another model, a finished stage has been removed, or a run is
            still writing there.
        Interrupted: a signal has ended the run; a checkpoint was saved.
    """
    recipe = load_recipe(recipe, overrides)
    folders = _folders(recipe)
    done = _count_finished(folders, resume)
    model, processor, prepared = prepare_all(recipe, trust_remote_code, done)
    results, heads = [], defaultdict(lambda: recipe.model)
    with full_disk(Path(recipe.output_dir).expanduser()), Interruption() as stop, ExitStack() as locks:
        if is_first():
            for folder in folders:
                locks.enter_context(locked(folder))
            _count_finished(folders, resume)  # once more: nobody has begun in the meantime
            list_stages(Path(recipe.output_dir).expanduser(), zip(folders, prepared))
        for index, (stage, folder) in enumerate(zip(prepared, folders)):
            first = stage.modalities[0] if stage.modalities else ""
            if index < done:
                result = finished(folder, stage, recipe.seed, progress, _opener(trust_remote_code, recipe.dtype))
            else:
                how = {"heads": heads[first], "resume": resume, "stop": stop}
                with noted_end(folder, is_first()):
                    result = run_prepared(model, processor, stage, folder, recipe.seed, progress, **how)
            results.append(result)
            if stage.stage is Stage.CONVERT:
                heads[first] = folder
    return TrainingResult(results)


def check(
    recipe: str | Path | Mapping | Recipe,
    overrides: Iterable[str] | Mapping[str, Any] = (),
    trust_remote_code: bool = False,
    resume: bool = False,
) -> list[str]:
    """What `train` would do, a line per stage, after all its checks; nothing is trained or written."""
    recipe = load_recipe(recipe, overrides)
    folders = _folders(recipe)
    done = _count_finished(folders, resume)
    model, _, prepared = prepare_all(recipe, trust_remote_code, done)
    lines = []
    for index, (stage, folder) in enumerate(zip(prepared, folders)):
        if resume and (record := read_record(folder)):
            check_same(folder, record, stage_record(stage, recipe.seed))
        if index >= done:
            begin_lora(model, stage.spec.lora)
        freeze_for_stage(model, stage.stage, stage.modalities, **switches(stage.spec))
        count = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        state = " (finished)" if index < done else ""
        lines.append(f"{stage.title}: {stage.train.summary()}, {count:,} parameters -> {folder}{state}")
        if index >= done and stage.spec.lora is not None and stage.spec.lora.merge:
            merge_lora(model)
    return lines


def _folders(recipe: Recipe) -> list[Path]:
    return [Path(recipe.output_dir).expanduser() / stage.folder for stage in recipe.stages]


def _count_finished(folders: list[Path], resume: bool) -> int:
    """How many stages, from the first one on, need not be run again; without `resume` no folder may be in use."""
    if not resume:
        for folder in folders if is_first() else ():  # it may have begun before the others look
            check_free(folder)
        return 0
    done = next((index for index, folder in enumerate(folders) if not is_finished(folder)), len(folders))
    for later in folders[done + 1 :]:
        if read_record(later):
            raise ResumeError(
                f"{folders[done]}: holds no finished stage, but {later.name} beside it was begun from it; bring that "
                f"folder back, or {OTHER_FOLDER}"
            )
    return done


def prepare_all(recipe: Recipe, trust_remote_code: bool, done: int) -> tuple[Any, Any, list[Prepared]]:
    """Model and processor of the recipe, or of the last stage that is `done`, and all stages checked."""
    set_seed(recipe.seed)
    model, processor = _open_model(recipe, trust_remote_code, _folders(recipe)[done - 1] if done else None)
    check_adapters(model, recipe.stages[done:])
    media = {}  # what one stage has decoded the next need not
    prepared = [prepare(model, processor, stage, recipe.seed, media) for stage in recipe.stages]
    converted = set()  # a later stage 1 of the same row continues the heads of the first
    for stage in prepared:
        if stage.stage is Stage.CONVERT:
            heads = None if stage.modalities[0] in converted else recipe.model
            check_optim(make_stage_one(model, processor, stage, heads, check_only=True), stage.spec)
            converted.add(stage.modalities[0])
    return model, processor, prepared


def run_stage(
    model,
    processor,
    stage: StageSpec | Mapping,
    folder: str | Path,
    seed: int = 42,
    progress: bool = True,
    save: bool = True,
    resume: bool = False,
) -> StageResult:
    """Run one stage on a model in memory; the model is trained in place.

    Args:
        model (`XLLMForConditionalGeneration`), processor (`XLLMProcessor`).
        stage (`StageSpec` or `dict`): as in a recipe; a source may hold a `dataset` instead of a `path`.
        folder: for checkpoint, log and plot.
        save (`bool`): write the checkpoint; without it only log, plot and heads.
        resume (`bool`): go on from the last checkpoint in `folder`; the model is what the stage was begun with.

    Raises:
        as `train`.
    """
    spec = build(StageSpec, dict(stage) if isinstance(stage, Mapping) else stage, "stage", "")
    check_adapters(model, [spec])
    folder = Path(folder)
    if not resume:
        check_free(folder)
    prepared = prepare(model, processor, spec, seed)
    with full_disk(folder), Interruption() as stop, locked(folder), noted_end(folder, is_first()):
        return run_prepared(model, processor, prepared, folder, seed, progress, save, resume=resume, stop=stop)


def _open_model(recipe: Recipe, trust_remote_code: bool, last: Path | None):
    if recipe.init is not None and last is None:
        from xllm.training.recipes.standins import build_standin

        return build_standin(recipe.init, recipe.source)
    return _opener(trust_remote_code, recipe.dtype)(last or recipe.model)


def _check_rounding(model, dtype: str) -> None:
    """Raises a `StageError` if a part that the checkpoint will hold itself would be saved in half precision."""
    if dtype in ("bfloat16", "float16"):
        held = {part_of(name) for name, _ in model.named_parameters()} - {"interfaces", *(model.config.towers or {})}
        if held:
            raise StageError(
                f"dtype: {dtype}: the checkpoint holds {', '.join(sorted(held))} itself, not by its source, and would "
                "hold it rounded; leave dtype out"
            )


def _opener(trust_remote_code: bool, dtype: str) -> Callable[[str | Path], tuple[Any, Any]]:
    """Opens a checkpoint as a stage needs it."""

    def load(folder: str | Path) -> tuple[Any, Any]:
        from xllm.assembly.opening import load_checkpoint

        model, processor = load_checkpoint(str(folder), trust_remote_code, dtype=dtype)
        _check_rounding(model, dtype)
        for tower in (model.config.towers or {}).values():  # relative to this checkpoint; the next one lies elsewhere
            tower["name_or_path"] = resolve_source(tower["name_or_path"], folder)
        return model, processor

    return load


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


__all__ = ["StageResult", "TrainingResult", "prepare_all", "run_stage", "train", "write_summary"]
