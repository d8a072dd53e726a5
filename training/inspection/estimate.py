# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""What a recipe will cost, from a few real steps of each stage: memory, tokens per second, hours.

Parameters, gradients and the optimiser's state are counted; the peak of memory and the time of a step are measured on
this machine, with this recipe's batches. From them follow the hours of the whole run, and on N devices like this one:
where the recipe counts epochs, N devices need a part of the steps; steps are taken to cost the same there (an upper
bound of what more devices give). `docs/estimate.md` does the sum for ChatGLM-6B.
"""

import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback, set_seed

from xllm.training.adapters import begin_lora, merge_lora
from xllm.training.preparing import Prepared, switches
from xllm.training.recipes.recipe import load_recipe
from xllm.training.running import make_learner, make_trainer
from xllm.training.saving.lineage import FreezeReceipt
from xllm.training.stages import freeze_for_stage
from xllm.training.train import prepare_all


@dataclass
class StageEstimate:
    """Of one stage; bytes, seconds, counts of a whole optimiser step (all its accumulated batches).

    Args:
        weights, gradients, optimizer (`int`): bytes that stay in memory.
        peak (`int`): most bytes in use: of the GPU in this stage, on a CPU of the process until then.
        tokens, padded (`float`): real tokens of the language model, and with padding; 0 in stage 1.
        first_step, step (`float`): seconds of the first step (with loading and warm-up) and the median of the others.
    """

    title: str
    parameters: int
    trained: int
    weights: int
    gradients: int
    optimizer: int
    peak: int
    samples: float
    tokens: float
    padded: float
    first_step: float
    step: float
    steps: int
    hours: float

    def line(self) -> str:
        """The stage in one line, for a reader."""
        held = _size(self.weights + self.gradients + self.optimizer)
        speed = f"{self.samples / self.step:,.1f} samples/s"
        if self.tokens:
            speed += f", {self.tokens / self.step:,.0f} tokens/s ({self.padded / self.tokens:.2f}x with padding)"
        return (
            f"{self.title}: {self.trained:,} of {self.parameters:,} parameters trained; {held} held, peak "
            f"{_size(self.peak)}; {self.step:.3g} s per step, {speed}; {self.steps:,} steps, {self.hours:.3g} hours"
        )


@dataclass
class _Probe(TrainerCallback):
    """Times the steps of a run, counts what they hold, and ends it after `steps` of them."""

    steps: int
    total: int = 0
    seconds: list[float] = field(default_factory=list)
    counts: dict[str, float] = field(default_factory=lambda: dict.fromkeys(("samples", "tokens", "padded"), 0.0))
    _since: float = 0.0

    def on_train_begin(self, args, state, control, **kwargs):
        self.total, self._since = state.max_steps, time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now = time.perf_counter()
        self.seconds.append(now - self._since)  # waiting for data included
        self._since = now
        control.should_training_stop = control.should_training_stop or len(self.seconds) >= self.steps

    def count(self, model: nn.Module, args: tuple, inputs: dict[str, Any]) -> None:
        """A hook before the learner's forward."""
        tensors = [value for value in inputs.values() if isinstance(value, torch.Tensor) and value.dim()]
        mask = inputs.get("attention_mask")
        self.counts["samples"] += len(mask if mask is not None else tensors[0])
        if mask is not None and "labels" in inputs:
            self.counts["tokens"] += float(mask.sum())
            self.counts["padded"] += mask.numel()


def estimate(
    recipe: Any,
    overrides: Iterable[str] = (),
    steps: int = 3,
    devices: int = 1,
    trust_remote_code: bool = False,
    report: Callable[[StageEstimate], None] = lambda stage: None,
) -> list[StageEstimate]:
    """Try `steps` optimiser steps of each stage, on its own data; nothing is kept.

    Args:
        recipe, overrides: as `train` takes them; the output folder is not touched.
        steps (`int`): of each stage, the first of which is not counted in the time of a step; at least 2.
        devices (`int`): how many like this one the run will have.
        report: called with each stage's estimate as soon as it is known.

    Raises:
        ValueError: too few steps or devices; else as `train`.
    """
    if steps < 2 or devices < 1:
        raise ValueError(f"steps is {steps}, devices {devices}; expected at least 2 steps and 1 device")
    found = []
    with tempfile.TemporaryDirectory() as folder:
        recipe = replace(load_recipe(recipe, overrides), output_dir=folder)
        model, processor, stages = prepare_all(recipe, trust_remote_code, done=0)
        for stage in stages:
            found.append(_try_stage(model, processor, stage, Path(folder), recipe.seed, steps, devices))
            report(found[-1])
    return found


def _try_stage(model, processor, stage: Prepared, folder: Path, seed: int, steps: int, devices: int) -> StageEstimate:
    spec = stage.spec
    stage.arguments |= dict.fromkeys(("save_strategy", "eval_strategy"), "no") | {"load_best_model_at_end": False}
    set_seed(seed)
    begin_lora(model, spec.lora)
    freeze_for_stage(model, stage.stage, stage.modalities, **switches(spec))
    learner, task = make_learner(model, processor, stage, heads=None, progress=False)
    freeze_for_stage(learner, stage.stage, stage.modalities, **switches(spec))
    trainer = make_trainer(learner, processor, stage, task, folder / spec.folder, seed, progress=False)
    trainer.receipt, trainer.groups = FreezeReceipt(nn.Module()), spec.optim  # what stays frozen need not be proved
    probe = _Probe(steps)
    trainer.add_callback(probe)
    hook = learner.register_forward_pre_hook(probe.count, with_kwargs=True)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    try:
        trainer.train()
    finally:
        hook.remove()
    tried, every = len(probe.seconds), list(learner.parameters())
    moving = [parameter for parameter in every if parameter.requires_grad]
    state = trainer.optimizer.state.values() if trainer.optimizer is not None else ()
    held = [value for one in state for value in one.values() if isinstance(value, torch.Tensor)]
    step = median(probe.seconds[1:] or probe.seconds)
    if spec.lora is not None and spec.lora.merge:
        merge_lora(model)
    count_epochs = trainer.args.max_steps <= 0
    total = -(-probe.total // devices) if count_epochs else probe.total
    return StageEstimate(
        title=stage.title,
        parameters=sum(parameter.numel() for parameter in every),
        trained=sum(parameter.numel() for parameter in moving),
        weights=_bytes([*every, *learner.buffers()]),
        gradients=_bytes(moving),
        optimizer=_bytes(held),
        peak=_peak(),
        **{name: value / tried for name, value in probe.counts.items()},
        first_step=probe.seconds[0],
        step=step,
        steps=total,
        hours=total * step / 3600,
    )


def _bytes(tensors: Iterable[torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _peak() -> int:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _size(count: float) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


__all__ = ["StageEstimate", "estimate"]
