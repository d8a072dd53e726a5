# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""A stage before it runs: its recipe, model and data checked against each other; nothing is trained or written."""

import os
from collections.abc import Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments
from transformers.utils import logging

from xllm.modeling_xllm.packing import packing_problem
from xllm.modeling_xllm.stage_checkpoints import adapted_layers
from xllm.training.adapters import begin_lora
from xllm.training.data.augmentation import Augmentation
from xllm.training.data.dataset import ChatDataset
from xllm.training.data.long_media import LongMedia
from xllm.training.data.media_rows import DataError, MediaRows, media_rows
from xllm.training.evaluation.evaluation import EvaluationData, check_evaluation
from xllm.training.feature_cache import check_cached_rows
from xllm.training.recipes.recipe import RecipeError, StageSpec
from xllm.training.stage_one import build_stage_one, stage_one_task
from xllm.training.stages import Stage, StageError, freeze_for_stage, resolve_modalities, resolve_stage
from xllm.training.starts import check_reset
from xllm.training.streams.streaming import StreamingDataset
from xllm.training.trainers.distillation import count_equivalents
from xllm.training.trainers.engines import check_engine, deepspeed_settings, import_quietly
from xllm.training.trainers.optim_groups import entry_of_each


logger = logging.get_logger(__name__)

SAVE_STEPS = 500
MOST_WORKERS = 8  # processes that decode media
PREFETCHED = 2  # batches ahead, of each
FEW_SAMPLES = 256


@dataclass
class Prepared:
    """A stage whose recipe, model and data have been checked."""

    spec: StageSpec
    stage: Stage
    modalities: list[str]
    train: ChatDataset | StreamingDataset
    eval: ChatDataset | None
    augmentation: Augmentation
    arguments: dict[str, Any]
    evaluations: list[EvaluationData]

    @property
    def keeps_checkpoints(self) -> bool:
        """Whether the recipe asks for checkpoints; by default they are for `--resume`, until the stage is done."""
        return any(name.startswith("save_") for name in self.arguments)

    @property
    def title(self) -> str:
        names = "text" if self.stage is Stage.TEXT else "+".join(self.modalities)
        return f"stage {self.stage.value} ({names})"


def prepare(model, processor, spec: StageSpec, seed: int, media: dict | None = None) -> Prepared:
    """Check a stage against model and data; nothing is trained or written."""
    stage = resolve_stage(spec.stage)
    modalities = resolve_modalities(model.config, spec.modalities)
    if stage is Stage.CONVERT:
        stage_one_task(model.config, modalities, spec.objective, spec.text_side)
    elif given := [name for name in ("objective", "text_side", "text_tokenizer") if getattr(spec, name)]:
        raise StageError(f"{given[0]} belongs to stage 1; stage {stage.value} learns to say the answer")
    freeze_for_stage(model, stage, modalities, **switches(spec))
    _check_init_from(model.config, spec)
    check_reset(model.config, spec.reset, modalities)
    if stage is not Stage.CONVERT:
        check_optim(model, spec)
    if spec.data.packing and (problem := packing_problem(model)):
        raise RecipeError(f"stage {stage.value}.data.packing: {problem}; leave it out")
    _spread(spec)
    augmentation = Augmentation.from_spec(spec.data.augment)
    if spec.data.cache_features is not None:
        cached = [] if stage is Stage.TEXT else modalities
        check_cached_rows(model, cached, spec.data.cache_features, augmentation, f"stage {stage.value}")
    common = {"processor": processor, "modalities": modalities, "on_error": spec.data.on_error, "seed": seed}
    common["long_media"] = LongMedia(spec.data.max_seconds, spec.data.long_audio)
    common["cache_media"] = spec.data.cache_media and (True if media is None else media)
    train_set = _training_set(spec, augmentation, common)
    _check_modalities(stage, spec, media_rows(processor, modalities), train_set)
    if spec.distill is not None and isinstance(train_set, ChatDataset):
        logger.warning(count_equivalents(f"stage {stage.value}", train_set.samples))
    eval_set = ChatDataset.from_specs(spec.data.eval, **common) if spec.data.eval else None
    evaluations = [check_evaluation(evaluation, media_rows(processor, modalities)) for evaluation in spec.evaluate]
    arguments = {"eval_strategy": "epoch" if eval_set else "no", **spec.trainer}
    if eval_set is None and arguments["eval_strategy"] != "no":
        raise RecipeError(f"trainer.eval_strategy is {arguments['eval_strategy']!r}, but data.eval is empty")
    prepared = Prepared(spec, stage, modalities, train_set, eval_set, augmentation, arguments, evaluations)
    try:
        settings = training_arguments(prepared, Path("unused"), seed)
    except RecipeError:
        raise
    except (TypeError, ValueError) as error:
        raise RecipeError(f"stage {stage.value}: trainer: {error}") from error
    caches, distills = spec.data.cache_features is not None, spec.distill is not None
    muon = any(entry.muon for entry in spec.optim)
    check_engine(settings, model, caches, distills, spec.data.streaming, muon)
    return prepared


def _spread(spec: StageSpec) -> None:
    """What holds for all data of a stage is put into its sources that do not say otherwise."""
    for source in [*spec.data.train, *spec.data.eval, *(one for task in spec.evaluate for one in task.data)]:
        source.normalize_text = spec.data.normalize_text if source.normalize_text is None else source.normalize_text


def _training_set(spec: StageSpec, augmentation: Augmentation, common: dict) -> ChatDataset | StreamingDataset:
    if not spec.data.streaming:
        return ChatDataset.from_specs(spec.data.train, augmentation=augmentation, **common)
    common = {name: value for name, value in common.items() if name != "cache_media"}
    common["shuffle_buffer"] = spec.data.shuffle_buffer
    return StreamingDataset.from_specs(spec.data.train, augmentation=augmentation, **common)


def make_stage_one(model, processor, stage: Prepared, heads, check_only: bool = False):
    """The stage-1 model of a stage, or, with `check_only`, the errors that it would be built with."""
    spec = stage.spec
    return build_stage_one(
        model, processor, stage.modalities[0], spec.objective, heads, spec.text_side, spec.text_tokenizer, check_only
    )


def switches(spec: StageSpec) -> dict[str, bool]:
    """What `freeze_for_stage` takes beside stage and modalities."""
    names = ("train_encoder", "train_query_tokens", "train_shared")
    return {**{name: getattr(spec, name) for name in names}, "train_adapters": spec.lora is not None}


def check_optim(model, spec: StageSpec) -> None:
    """Check that the entries of `optim` name what the stage trains of `model`: an X-LLM, or its stage-1 model.

    Raises:
        RecipeError: see `entry_of_each`.
    """
    if not spec.optim:
        return
    if spec.lora is not None and not adapted_layers(model):  # names alone: an adapter is made when the stage begins
        with torch.device("meta"):
            model = type(model)(model.config)
        begin_lora(model, spec.lora)
    freeze_for_stage(model, spec.stage, spec.modalities, **switches(spec))
    entry_of_each(spec.optim, model)


def _check_init_from(config, spec: StageSpec) -> None:
    for name, other in spec.init_from.items():
        resolve_modalities(config, [name, other])
        if config.modalities[name].converter != config.modalities[other].converter:
            raise StageError(f"init_from: {name} and {other} have different converters")


def _check_modalities(stage: Stage, spec: StageSpec, media: MediaRows, data: ChatDataset | StreamingDataset) -> None:
    """Each row that the stage names, or if it names none at least one, has something to learn from; of a stream, whose
    other rows may hold it, a warning says that the first do not.

    Raises:
        DataError: the training data hold no item of it; the message names it.
    """
    if stage is Stage.TEXT:
        return
    is_stream = isinstance(data, StreamingDataset)
    samples = data.first if isinstance(data, StreamingDataset) else data.samples
    held = {part["type"] for sample in samples for part in sample.parts()}
    without = [name for name in media.trained if media.rows[name] not in held]
    if not is_stream and without and (spec.modalities or len(without) == len(media.trained)):
        raise DataError(
            f"stage {stage.value} trains {', '.join(without)}, but no sample of data.train holds any of it; the "
            "interface would learn nothing: give such data, or name other modalities"
        )
    if without:
        which = "none of the first samples" if is_stream else "no sample"
        logger.warning(f"stage {stage.value}: {which} of data.train holds {', '.join(without)}; see `modalities`")


def default_workers(prepared: Prepared) -> int:
    """How many processes decode media where the recipe says nothing: one for each core but one that a process of this
    machine has for itself, at most 8; none for text, for media kept in memory, or for a few samples.
    """
    length = len(prepared.train) if isinstance(prepared.train, Sized) else FEW_SAMPLES  # a stream has no length
    if prepared.stage is Stage.TEXT or prepared.spec.data.cache_media or length < FEW_SAMPLES:
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(0, min(MOST_WORKERS, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")) - 1))


def training_arguments(prepared: Prepared, folder: Path, seed: int) -> TrainingArguments:
    """The `trainer` part of a recipe, with our defaults and with what only the runner sets."""
    workers = prepared.arguments.get("dataloader_num_workers", default_workers(prepared))
    settings: dict[str, Any] = {
        "save_strategy": "steps",
        "save_steps": SAVE_STEPS,
        "save_total_limit": None if prepared.keeps_checkpoints else 1,
        "logging_steps": 10,
        "report_to": "none",
        "prediction_loss_only": True,
        "dataloader_pin_memory": torch.cuda.is_available(),
        "dataloader_num_workers": workers,
        "dataloader_persistent_workers": workers > 0,
        "dataloader_prefetch_factor": PREFETCHED if workers else None,
        **prepared.arguments,
        "output_dir": str(folder),
        "seed": seed,
        "remove_unused_columns": False,
        "logging_nan_inf_filter": False,
        "label_names": ["labels"],
        "disable_tqdm": True,
        # Each process runs what is trained in every batch; but encoders may leave out parts of themselves by chance.
        "ddp_find_unused_parameters": prepared.spec.train_encoder,
    }
    import_quietly()
    if settings.get("deepspeed"):
        settings["deepspeed"] = deepspeed_settings(settings["deepspeed"])
    return TrainingArguments(**settings)


__all__ = ["Prepared", "check_optim", "default_workers", "make_stage_one", "prepare", "switches", "training_arguments"]
