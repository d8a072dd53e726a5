# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""What data is read as: the sources of data files or of a recipe's stages, each with the settings of its training.

Data files alone are a recipe of one stage, so that everything that a recipe may say can be said of them.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from xllm.training.batches.collator import XLLMDataCollator, chat_settings
from xllm.training.data.media_rows import DataError, MediaRows, media_rows
from xllm.training.recipes.recipe import Recipe, SourceSpec, StageSpec, load_recipe, shipped_recipes
from xllm.training.stage_one import stage_one_task, stage_one_tokenizer
from xllm.training.stages import Stage, resolve_modalities, resolve_stage


NO_MODEL = "."  # stands for the model of a recipe that is read without one
_SOURCE_FIELDS = {item.name for item in fields(SourceSpec)} - {"path", "dataset"}


@dataclass
class DataGroup:
    """Sources that are read together, and as what.

    Args:
        title (`str`): for people, e.g. "stage 2 (speech), training data".
        stage (`str`): the same for what a stage is trained and evaluated on.
        is_training, is_streamed (`bool`): whether it is trained on; whether it is never read as a whole.
        trained (`list[str]`): the rows that the stage names.
        sources (`list[SourceSpec]`), media (`MediaRows`): what is read, and what it may hold.
        collate (`dict`): arguments of the `XLLMDataCollator`, the processor aside.
    """

    title: str
    stage: str
    is_training: bool
    is_streamed: bool
    trained: list[str]
    sources: list[SourceSpec]
    media: MediaRows
    collate: dict[str, Any]

    def collator(self, processor) -> XLLMDataCollator:
        """What makes batches of it."""
        return XLLMDataCollator(processor, **self.collate)


@dataclass
class DataPlan:
    """Groups in order of their training; config and processor of the model, or None without one."""

    groups: list[DataGroup]
    config: Any = None
    processor: Any = None


def plan_data(
    data: Iterable[str],
    model: str | None = None,
    modality: str | None = None,
    recipe: str | None = None,
    limit: int | None = None,
    trust_remote_code: bool = False,
) -> DataPlan:
    """What `data` holds and how it is read.

    Args:
        data: data files or folders, or a recipe (file or name), and `key=value`: fields of each source
            (`text_column=caption`) or keys of the recipe (`data.max_length=512`, `stage=1`).
        model (`str`, *optional*): an X-LLM; default that of the recipe. Without one, nothing is known of tokens.
        modality (`str`, *optional*): the row that data files train; default that of the stage.
        recipe (`str`, *optional*): whose data is read, whatever its name looks like.
        limit (`int`, *optional*): only the first rows of each source.

    Raises:
        ValueError: nothing to read, a recipe, model or setting that is not there.
    """
    items = list(data)
    overrides = [item for item in items if "=" in item and not Path(item).exists()]
    paths = [item for item in items if item not in overrides]
    if recipe is None and len(paths) == 1 and _is_recipe(paths[0]):
        recipe = paths.pop()
    if recipe is None and not paths:
        raise DataError("give data files, or a recipe")
    found = _read_recipe(recipe, paths, overrides, model, modality)
    config, processor, generation = None, None, None
    if found.model not in (None, NO_MODEL):
        from xllm.assembly.opening import load_processor

        config, processor, generation = load_processor(found.model, trust_remote_code)
    groups = [group for stage in found.stages for group in _groups(stage, config, processor, generation)]
    if limit is not None:
        for group in groups:
            limits = (limit if spec.limit is None else min(limit, spec.limit) for spec in group.sources)
            group.sources = [replace(spec, limit=most) for spec, most in zip(group.sources, limits)]
    if recipe is None:
        groups[0].title = ", ".join(paths)
    return DataPlan(groups, config, processor)


def _is_recipe(item: str) -> bool:
    return item.endswith((".yaml", ".yml")) or (item in shipped_recipes() and not Path(item).exists())


def _read_recipe(
    recipe: str | None, paths: list[str], overrides: list[str], model: str | None, modality: str | None
) -> Recipe:
    """The recipe, or one of a stage that reads the data files."""
    if recipe is not None:
        if paths:
            raise DataError(f"give data files or the recipe {recipe}, not both; data.train=FILE replaces its data")
        return load_recipe(recipe, [*overrides, *([] if model is None else [f"model={model}"])])
    of_sources = [pair for pair in overrides if re.split(r"[.=]", pair)[0] in _SOURCE_FIELDS]
    stage: dict[str, Any] = {"stage": Stage.ALIGN.value, "data": {"train": [{"path": path} for path in paths]}}
    if modality is not None:
        stage["modalities"] = [modality]
    places = [f"data.train.{index}.{pair}" for index in range(len(paths)) for pair in of_sources]
    others = [pair for pair in overrides if pair not in of_sources]
    return load_recipe({"output_dir": "unused", "model": model or NO_MODEL, **stage}, [*places, *others])


def _groups(spec: StageSpec, config, processor, generation) -> list[DataGroup]:
    """What a stage trains on, its evaluation loss, and its evaluations."""
    stage = resolve_stage(spec.stage)
    named = spec.modalities or []
    rows = named if config is None else resolve_modalities(config, spec.modalities)
    media = MediaRows(trained=tuple(rows)) if processor is None else media_rows(processor, rows)
    collate: dict[str, Any] = {"max_length": spec.data.max_length, "loss_on": spec.data.loss_on}
    if config is not None and stage is not Stage.CONVERT:
        collate |= chat_settings(config, generation)
    elif config is not None:
        collate["task"] = stage_one_task(config, rows, spec.objective, spec.text_side)
        collate["modality"] = rows[0]
        if collate["task"] == "contrast":
            collate["text_tokenizer"] = stage_one_tokenizer(processor, None, spec.text_side, spec.text_tokenizer)
    of = "+".join(named) or ("text" if stage is Stage.TEXT else "all rows")
    name = f"stage {stage.value} ({of})"
    groups = [
        DataGroup(
            f"{name}, training data", spec.folder, True, spec.data.streaming, named, spec.data.train, media, collate
        )
    ]
    if spec.data.eval:
        groups.append(
            DataGroup(f"{name}, evaluation loss", spec.folder, False, False, named, spec.data.eval, media, collate)
        )
    of_chat = {} if config is None else chat_settings(config, generation)
    for evaluation in spec.evaluate:
        title = f"{name}, evaluation {evaluation.name}"
        groups.append(DataGroup(title, spec.folder, False, False, named, evaluation.data, media, of_chat))
    return groups


__all__ = ["DataGroup", "DataPlan", "plan_data"]
