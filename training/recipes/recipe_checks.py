# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""What the types of a recipe's keys cannot say, checked and put right before anything is opened."""

from typing import Any

from xllm.training.data.long_media import ACTIONS
from xllm.training.recipes.strict import RecipeError, check_argument, check_choice
from xllm.training.stages import Stage, resolve_stage
from xllm.training.trainers.distillation import check_distillation
from xllm.training.trainers.optim_groups import check_settings


def check_stage(where: str, stage: Any) -> None:
    """Check the values of a `StageSpec`, and leave out what its values switch off; `where` is its place in the recipe.

    Raises:
        RecipeError: a value that is not possible; the message names the key.
    """
    try:
        resolve_stage(stage.stage)
    except ValueError as error:
        raise RecipeError(f"{where}.{error}") from error
    if not stage.data.train:
        raise RecipeError(f"{where}.data.train is empty: give at least one source")
    for name, value in stage.trainer.items():
        stage.trainer[name] = check_argument(f"{where}.trainer", name, value)
    check_settings(where + ".optim", stage.optim)
    check_distillation(where, int(resolve_stage(stage.stage)), stage.distill)
    if stage.distill is not None and stage.data.long_audio == "chunk":
        raise RecipeError(f"{where}.distill: data.long_audio: chunk makes several media of one, whose text is one")
    if stage.data.cache_features is not None and stage.train_encoder:
        raise RecipeError(
            f"{where}.data.cache_features keeps what a frozen encoder gives, and train_encoder trains it; leave one "
            "of them out"
        )
    if stage.data.packing and resolve_stage(stage.stage) is Stage.CONVERT:
        raise RecipeError(f"{where}.data.packing is about rows of the language model; stage 1 has none, leave it out")
    if stage.data.streaming:
        _check_stream(where, stage)
    stage.evaluate = [evaluation for evaluation in stage.evaluate if evaluation.when]
    for source in [*stage.data.train, *stage.data.eval, *(s for one in stage.evaluate for s in one.data)]:
        source.exclude = {column: value for column, value in source.exclude.items() if value not in (None, [])}
        if empty := [column for column, value in source.where.items() if value in (None, [])]:
            raise RecipeError(f"{where}: no row would be left where {empty[0]} is {source.where[empty[0]]!r}")
    check_choice(where + ".data.on_error", stage.data.on_error, ("raise", "skip"))
    check_choice(where + ".data.loss_on", stage.data.loss_on, ("last", "all"))
    check_choice(where + ".data.long_audio", stage.data.long_audio, ACTIONS)
    if (seconds := stage.data.max_seconds) is not None and not seconds > 0:
        raise RecipeError(f"{where}.data.max_seconds is {seconds}, expected a number above 0, or null for no limit")
    if stage.data.long_audio == "chunk" and resolve_stage(stage.stage) is Stage.CONVERT:
        raise RecipeError(f"{where}.data.long_audio: chunk makes several media of one; stage 1 takes one per sample")


def _check_stream(where: str, stage: Any) -> None:
    steps = stage.trainer.get("max_steps", -1)
    if steps < 1:
        raise RecipeError(
            f"{where}.trainer.max_steps is {steps}; a stream has no end, give a number of steps, at least 1"
        )
    if stage.data.cache_media:
        raise RecipeError(f"{where}.data: cache_media keeps all media in memory, streaming none; choose one of them")
    if stage.data.shuffle_buffer < 1:
        raise RecipeError(
            f"{where}.data.shuffle_buffer is {stage.data.shuffle_buffer}, expected a number of rows, at least 1"
        )
    if stage.data.one_modality:
        raise RecipeError(f"{where}.data.one_modality has no effect on a stream; leave it out")
    for name in ("train_sampling_strategy", "num_train_epochs", "dataloader_drop_last"):
        if name in stage.trainer:
            raise RecipeError(f"{where}.trainer.{name} has no effect on a stream; leave it out")


__all__ = ["check_stage"]
